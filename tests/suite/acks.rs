//! Acknowledgements of a loader: the exports that they cover, the counts of the others, and their retention.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Database, PROMPT, Service, Start, UNKNOWN_JOB, ends, planted, refusal, serving_users, until};
use crate::lost_files::dead_after_a_commit;

pub(crate) fn id_of(job: &Value) -> &str {
    job["jobId"].as_str().unwrap()
}

async fn ack(service: &Service, id: &str) -> reqwest::Response {
    service.call("POST", &format!("/exports/{id}/ack"), &[]).await
}

/// Acknowledges a job. Returns the job in the answer.
async fn acked(service: &Service, job: &Value) -> Value {
    let answer = ack(service, id_of(job)).await;
    assert_eq!(answer.status(), 200, "{job}");
    answer.json().await.unwrap()
}

/// Returns the number of a consumer's unacknowledged exports in `/consumers`, and since when.
async fn told(service: &Service, consumer: &str) -> (Value, Value) {
    let page: Value = service.call("GET", &format!("/consumers?consumer={consumer}"), &[]).await.json().await.unwrap();
    let [of] = page["items"].as_array().unwrap().as_slice() else { panic!("{page}") };
    let missing = || panic!("{of}");
    let member = |name: &str| of.get(name).cloned().unwrap_or_else(missing);
    (member("unacknowledged"), member("unacknowledgedSince"))
}

/// When a job was published, as the API would tell it.
async fn published(database: &Database, job: &Value) -> Value {
    let time = "to_char(published_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    database.one::<String>(&format!("select {time} from exports where job = '{}'", id_of(job))).await.into()
}

/// Returns the columns of the lane's row that acknowledgements change.
async fn recorded(database: &Database, consumer: &str) -> String {
    let lane = format!("from cdc_export.lanes where consumer_id = '{consumer}'");
    database.one(&format!("select concat(acknowledged, ' ', acknowledged_at) {lane}")).await
}

async fn exported(service: &Service, consumer: &str, exports: usize) -> Vec<Value> {
    let mut jobs = Vec::new();
    for number in 0..exports {
        jobs.push(service.export(if number == 0 { "full" } else { "delta" }, consumer).await.0);
    }
    jobs
}

#[tokio::test]
async fn an_acknowledgement_covers_all_earlier_exports_and_is_never_taken_back() {
    let (database, service) = serving_users(5).await;
    let jobs = exported(&service, "a", 4).await;
    service.export("full", "b").await;
    for consumer in ["a", "b"] {
        assert_eq!(told(&service, consumer).await, (Value::Null, Value::Null), "nobody acknowledges there");
    }
    assert_eq!(jobs[0]["acknowledged"], Value::Null);

    let answer = acked(&service, &jobs[1]).await;
    assert_eq!((&answer["jobId"], &answer["acknowledged"]), (&jobs[1]["jobId"], &json!(true)));
    assert_eq!(answer, service.job(id_of(&jobs[1])).await);
    let shown = join_all(jobs.iter().map(|job| service.job(id_of(job)))).await;
    let shown: Vec<_> = shown.iter().map(|job| &job["acknowledged"]).collect();
    assert_eq!(shown, [&json!(true), &json!(true), &json!(false), &json!(false)]);
    assert_eq!(told(&service, "a").await, (json!(2), published(&database, &jobs[2]).await));
    let event = service.says("export_acknowledged", id_of(&jobs[1])).await;
    assert_eq!((&event["consumerId"], &event["dataset"], &event["number"]), (&json!("a"), &json!("users"), &json!(2)));

    // Again, and an earlier one.
    let before = recorded(&database, "a").await;
    for job in [&jobs[1], &jobs[0]] {
        assert_eq!(acked(&service, job).await["acknowledged"], true);
    }
    assert_eq!(recorded(&database, "a").await, before);
    assert_eq!(service.events("export_acknowledged").len(), 1);

    acked(&service, &jobs[3]).await;
    assert_eq!(told(&service, "a").await, (json!(0), Value::Null));
    assert_eq!(told(&service, "b").await, (Value::Null, Value::Null));
    let (next, _) = service.export("delta", "a").await;
    assert_eq!(next["acknowledged"], false);
    assert_eq!(told(&service, "a").await, (json!(1), published(&database, &next).await));
    // The file may be gone by the time that its loader has committed the rows.
    assert_eq!(service.call("DELETE", &format!("/exports/{}", id_of(&next)), &[]).await.status(), 204);
    acked(&service, &next).await;
    assert_eq!(told(&service, "a").await, (json!(0), Value::Null));
}

#[tokio::test]
async fn what_was_never_published_for_a_consumer_is_not_acknowledged() {
    let (database, service) = serving_users(5).await;
    let refused = async |id: &str| refusal(ack(&service, id).await).await;
    let not_completed = (409, "not_completed".to_owned());
    service.export("full", "a").await;

    let (held, running) = service.held_export(&database, "delta", "a").await;
    let waiting = service.submit("delta", "a").await;
    for id in [&running, &waiting] {
        assert_eq!(refused(id).await, not_completed);
        service.call("POST", &format!("/exports/{id}/cancel"), &[]).await;
        service.becomes(id, "cancelled").await;
        assert_eq!(refused(id).await, not_completed);
    }
    held.rollback().await.unwrap();
    database.run("truncate users").await;
    let failed = service.submit("delta", "a").await;
    assert_eq!(service.ended(&failed).await["status"], "failed");
    assert_eq!(refused(&failed).await, not_completed);

    let ad_hoc: Value = service.call("POST", "/exports", &[]).await.json().await.unwrap();
    for _ in 0..2 {
        assert_eq!(refused(id_of(&ad_hoc)).await, (409, "ad_hoc".to_owned()));
        assert_eq!(service.ended(id_of(&ad_hoc)).await["acknowledged"], Value::Null);
    }
    for unknown in [UNKNOWN_JOB, "x", "0", "%00"] {
        assert_eq!(refused(unknown).await, (404, "not_found".to_owned()), "{unknown}");
    }
    assert_eq!(recorded(&database, "a").await, " ");
    assert_eq!(service.call("GET", &format!("/exports/{failed}/ack"), &[]).await.status(), 405);
    service.refuses("POST", &format!("/exports/{failed}/ack?number=1"), &[], 400, "parameter_unknown").await;
}

/// A committed export may be lost before it has its name. Nobody can have loaded it, before or after.
#[tokio::test]
async fn an_export_that_is_given_up_was_not_loaded() {
    let database = Database::with_users(5).await;
    let (_doomed, id, _) = dead_after_a_commit(&database, Start::on(&database), "/exports/full", Some("a")).await;
    let elsewhere = Start::on(&database).service().await;
    let refused = async || refusal(ack(&elsewhere, &id).await).await;
    assert_eq!(refused().await, (409, "not_completed".to_owned()));
    database.run("update cdc_export.exports set finished_at = finished_at - interval '1 minute'").await;
    assert_eq!(elsewhere.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    assert_eq!(elsewhere.job(&id).await["error"]["code"], "file_lost");
    assert_eq!(refused().await, (409, "not_completed".to_owned()));
    assert_eq!(told(&elsewhere, "a").await, (Value::Null, Value::Null));
    let (next, _) = elsewhere.export("full", "a").await;
    acked(&elsewhere, &next).await;
    assert_eq!(told(&elsewhere, "a").await, (json!(0), Value::Null));
}

#[tokio::test]
async fn an_export_is_acknowledged_while_the_next_one_is_published() {
    let database = Database::with_users(5).await;
    let mut before = Start::on(&database).service().await;
    let (first, _) = before.export("full", "a").await;
    before.end().await;
    // Maintenance would publish what the worker is held up with.
    let failpoints = "publisher.named=hold,maintenance.look=time:86400000";
    let service = Start::on(&database).sharing_output(&before).with("FAILPOINTS", failpoints).service().await;
    let next = service.submit("delta", "a").await;
    // Its file has its name, and nobody has been told.
    service.reaches("publisher.named").await;
    acked(&service, &first).await;
    assert_eq!(refusal(ack(&service, &next).await).await, (409, "not_completed".to_owned()));
    assert_eq!(told(&service, "a").await, (json!(0), Value::Null));
    service.release("publisher.named").await;
    let next = service.becomes(&next, "completed").await;
    assert_eq!(told(&service, "a").await, (json!(1), published(&database, &next).await));

    // In the very transaction that gives a number: an acknowledgement waits for it, and neither undoes the other.
    let publishing = database.open("update cdc_export.lanes set last_number = last_number + 1").await;
    let (answer, ()) = tokio::join!(acked(&service, &next), async {
        let waits = "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and query like '%acknowledgements.acknowledge%')";
        until("it waits", async || database.one::<bool>(waits).await).await;
        publishing.commit().await.unwrap();
    });
    assert_eq!(answer["acknowledged"], true);
    let numbers = "select concat(last_number, ' ', acknowledged) from cdc_export.lanes";
    assert_eq!(database.one::<String>(numbers).await, "3 2");
}

/// Inserts this number of a consumer's published exports.
async fn plant(database: &Database, consumer: &str, count: u32) {
    let rows =
        format!("select '{consumer}', 'users', n, 'delta', 'completed', now() from generate_series(1, {count}) n");
    let lane = format!(
        "insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number) values ('{consumer}', 'users', {count}, {count})"
    );
    database.run(&(planted(&rows) + &lane)).await;
}

#[tokio::test]
async fn of_many_at_once_the_latest_stands() {
    let database = Database::new().await;
    plant(&database, "a", 40).await;
    let statements = "create function never_back() returns trigger language plpgsql as $$
         begin
           if new.acknowledged < old.acknowledged then raise 'back from % to %', old.acknowledged, new.acknowledged; end if;
           perform pg_sleep(0.01);
           return new;
         end $$;
         create trigger never_back before update on cdc_export.lanes for each row execute function never_back()";
    database.run(statements).await;
    let [one, two] = [Start::on(&database).service().await, Start::on(&database).service().await];
    let ids: Vec<String> = database.one("select array_agg(job::text order by number * 7 % 41) from exports").await;
    // Each twice, by either service.
    let orders = [[&one, &two], [&two, &one]];
    let acks = ids.iter().zip(orders.iter().cycle()).map(|(id, services)| async move {
        for service in services {
            let answer = service.ask("POST", &format!("/exports/{id}/ack"), &[]).await;
            let (status, job) = (answer.status(), answer.json::<Value>().await.unwrap());
            assert_eq!((status.as_u16(), &job["acknowledged"]), (200, &json!(true)), "{job}");
        }
    });
    join_all(acks).await;
    assert!(recorded(&database, "a").await.starts_with("40 "));
    assert_eq!(told(&one, "a").await, (json!(0), Value::Null));
}

/// A restore or a manual write may leave a lane whose numbers skip some that were handed out. Its numbers may also be
/// smaller than the acknowledged one.
#[tokio::test]
async fn numbers_that_skip_or_were_put_back_are_counted_by_what_is_there() {
    let (database, service) = serving_users(5).await;
    let jobs = exported(&service, "a", 3).await;
    acked(&service, &jobs[0]).await;
    database.run("update cdc_export.lanes set last_number = 9").await;
    let (tenth, _) = service.export("delta", "a").await;
    assert_eq!(tenth["number"], 10);
    assert_eq!(told(&service, "a").await, (json!(3), published(&database, &jobs[1]).await), "2, 3 and 10");
    acked(&service, &tenth).await;
    assert_eq!(told(&service, "a").await, (json!(0), Value::Null));

    // The database goes back to the second export, except for the acknowledgement.
    let statements = "delete from cdc_export.exports where number > 2; update cdc_export.lanes set last_number = 2, acknowledged = 10";
    database.run(statements).await;
    assert_eq!(told(&service, "a").await, (json!(0), Value::Null));
    let metrics = service.call("GET", "/metrics", &[]).await.text().await.unwrap();
    let negative = metrics.lines().find(|line| line.contains("_unacknowledged_") && line.contains("} -"));
    assert_eq!(negative, None);
    let (third, _) = service.export("full", "a").await;
    assert_eq!((&third["number"], told(&service, "a").await), (&json!(3), (json!(0), Value::Null)));
    // The next acknowledgement sets that right, though its number is the smaller one.
    acked(&service, &third).await;
    assert!(recorded(&database, "a").await.starts_with("3 "));
    let (fourth, _) = service.export("delta", "a").await;
    assert_eq!(told(&service, "a").await, (json!(1), published(&database, &fourth).await));
}

#[tokio::test]
async fn a_thousand_are_counted_and_no_more() {
    let database = Database::new().await;
    plant(&database, "a", 1_002).await;
    plant(&database, "b", 1_000).await;
    database.run("update cdc_export.lanes set acknowledged = 1, acknowledged_at = now()").await;
    let service = Start::on(&database).service().await;
    assert_eq!(told(&service, "a").await.0, 1_000);
    assert_eq!(told(&service, "b").await.0, 999);
}

/// Returns the numbers of a consumer's exports that are left: of its jobs, and of those whose file is still there.
async fn left(database: &Database, consumer: &str) -> (Vec<i64>, Vec<i64>) {
    let numbers = |condition: &str| {
        let numbered = format!("from exports where consumer_id = '{consumer}' and number is not null {condition}");
        format!("select coalesce(array_agg(number order by number), '{{}}') {numbered}")
    };
    (database.one(&numbers("")).await, database.one(&numbers("and file_removed_at is null")).await)
}

/// Waits until a retention that keeps one export has run: a lane that acknowledges nothing has one left.
async fn swept(database: &Database) {
    until("the retention", async || left(database, "never").await == (vec![3], vec![3])).await;
}

#[tokio::test]
async fn what_is_not_acknowledged_is_kept() {
    let database = Database::with_users(5).await;
    let mut service = Start::on(&database).service().await;
    let mut jobs = exported(&service, "a", 4).await;
    acked(&service, &jobs[1]).await;
    exported(&service, "never", 3).await;
    // One that was cancelled is no export that somebody has yet to load.
    let held = database.hold_exports().await;
    let cancelled = service.submit("delta", "a").await;
    service.call("POST", &format!("/exports/{cancelled}/cancel"), &[]).await;
    service.becomes(&cancelled, "cancelled").await;
    held.rollback().await.unwrap();
    jobs.push(service.export("delta", "a").await.0);
    // Without its file it can't be loaded any more, but its loader still asks what came after the one before.
    assert_eq!(service.call("DELETE", &format!("/exports/{}", id_of(&jobs[2])), &[]).await.status(), 204);
    service.end().await;

    let files = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", 1).service().await;
    let done = "select file_removed_at is not null from exports where consumer_id = 'never' and number = 2";
    until("files go", async || database.one::<bool>(done).await).await;
    assert_eq!(left(&database, "a").await.1, [4, 5]);
    files.stop().await;
    let both = || Start::on(&database).sharing_output(&service).with("RETAIN_FILES", 1).with("RETAIN_JOBS", 1);
    let keeping = both().service().await;
    swept(&database).await;
    assert_eq!(left(&database, "a").await, (vec![3, 4, 5], vec![4, 5]));
    let cancelled = "select count(*) from exports where consumer_id = 'a' and status = 'cancelled'";
    assert_eq!(database.one::<i64>(cancelled).await, 0);
    assert!(keeping.events("unacknowledged_removed").is_empty(), "{}", keeping.log());
    assert_eq!(told(&keeping, "a").await, (json!(3), published(&database, &jobs[2]).await));
    acked(&keeping, &jobs[4]).await;
    keeping.stop().await;

    let _keeping = both().service().await;
    until("it goes", async || left(&database, "a").await == (vec![5], vec![5])).await;
}

#[tokio::test]
async fn what_nobody_acknowledges_for_long_goes_and_is_told_once() {
    let database = Database::with_users(5).await;
    let mut service = Start::on(&database).service().await;
    let jobs = exported(&service, "a", 6).await;
    acked(&service, &jobs[0]).await;
    exported(&service, "never", 3).await;
    service.end().await;
    // The first three are older than an hour, and nearly so the fourth.
    let statements = "update cdc_export.exports set finished_at = finished_at - interval '2 hours',
           published_at = published_at - case number when 4 then interval '50 minutes' else interval '2 hours' end
         where consumer_id = 'a' and number <= 4";
    database.run(statements).await;
    let keeping = || {
        Start::on(&database)
            .sharing_output(&service)
            .with("RETAIN_FILES", 1)
            .with("RETAIN_JOBS", 1)
            .with("RETAIN_UNACKED", "1h")
    };
    let first = keeping().service().await;
    swept(&database).await;
    assert_eq!(left(&database, "a").await, (vec![4, 5, 6], vec![4, 5, 6]));
    let told_of = |service: &Service| -> Vec<Value> {
        let events = service.events("unacknowledged_removed");
        events.iter().map(|line| json!([line["consumerId"], line["dataset"], line["number"], line["jobId"]])).collect()
    };
    let lines = [(1, 2), (2, 3)].map(|(at, number)| json!(["a", "users", number, jobs[at]["jobId"]]));
    assert_eq!(told_of(&first), lines);
    assert_eq!(first.events("unacknowledged_removed")[0]["level"], "WARN");
    // Those that are left are still to be acknowledged.
    assert_eq!(told(&first, "a").await.0, 3);
    first.stop().await;

    // The last one's hour passes, and that of the fourth; a lane's last job stays, without its file.
    database
        .run("update cdc_export.exports set published_at = published_at - interval '2 hours' where number in (4, 5)")
        .await;
    let second = keeping().service().await;
    until("they go", async || left(&database, "a").await == (vec![6], vec![6])).await;
    let numbers: Vec<Value> = told_of(&second).iter().map(|line| line[2].clone()).collect();
    assert_eq!(numbers, [json!(4), json!(5)]);
}

/// Two processes remove the same files: the one that recorded a file's end reports it.
#[tokio::test]
async fn two_that_remove_the_same_tell_of_it_once() {
    let database = Database::new().await;
    plant(&database, "a", 4).await;
    database.run("update cdc_export.lanes set acknowledged = 1, acknowledged_at = now()").await;
    let store = cdc_export::store::Store::new(database.pool.clone());
    let id = uuid::Uuid::parse_str(&database.one::<String>("select job::text from exports where number = 2").await);
    let id = cdc_manifest::JobId::from(id.unwrap());
    let export = [(id, "users")];
    assert_eq!(store.files_removed(&export).await.unwrap(), [(id, "users".to_owned())]);
    assert_eq!(store.files_removed(&export).await.unwrap(), []);
}

#[tokio::test]
async fn the_command_line_shows_what_is_not_acknowledged() {
    let (database, service) = serving_users(5).await;
    for place in [vec![], vec!["--server".to_owned(), service.address.clone()]] {
        let consumer = format!("c{}", place.len());
        let run = async |arguments: &[&str]| {
            let arguments: Vec<_> = arguments.iter().copied().chain(place.iter().map(String::as_str)).collect();
            Start::on(&database).sharing_output(&service).arguments(&arguments).output().await
        };
        let jobs = exported(&service, &consumer, 3).await;
        let status = async || {
            let (printed, _) = ends(run(&["status"]).await, 0, "");
            printed.lines().find(|line| line.starts_with(&format!("{consumer} "))).unwrap().to_owned()
        };
        assert!(!status().await.contains("acknowledged"));
        for job in [&jobs[1], &jobs[0]] {
            acked(&service, job).await;
        }
        let since = published(&database, &jobs[2]).await;
        assert_eq!(told(&service, &consumer).await, (json!(1), since.clone()));
        let line = status().await;
        assert!(line.ends_with(&format!("  (1 not acknowledged since {})", since.as_str().unwrap())), "{line}");
        let (_, json, _) = run(&["status", "--json"]).await;
        let json: Value = serde_json::from_str(&json).unwrap();
        let of = json["consumers"].as_array().unwrap().iter().find(|of| of["consumerId"] == consumer.as_str()).unwrap();
        assert_eq!((&of["unacknowledged"], &of["unacknowledgedSince"]), (&json!(1), &since));
        acked(&service, &jobs[2]).await;
        assert!(!status().await.contains("acknowledged"));
    }
}

/// An acknowledgement waits for a lane that somebody holds no longer than any call does.
#[tokio::test]
async fn an_acknowledgement_is_answered_in_time() {
    let database = Database::with_users(5).await;
    let service = Start::on(&database).with("FAILPOINTS", PROMPT).service().await;
    let (job, _) = service.export("full", "a").await;
    let held = database.open("select from cdc_export.lanes for update").await;
    assert_eq!(refusal(ack(&service, id_of(&job)).await).await, (503, "database_unavailable".to_owned()));
    held.rollback().await.unwrap();
    acked(&service, &job).await;
}
