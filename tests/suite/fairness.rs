//! Shares: one table, one consumer or one key leaves workers, turns in the queue, open jobs and connections to others.

use futures_util::{StreamExt, stream};

use crate::catalog::{Catalog, export, post};
use crate::harness::{Database, Service, Start, eventually, planted, refusal, until};
use crate::keys::bearer;

const TWO_TABLES: &str =
    "[[dataset]]\nname = \"users\"\ntable = \"users\"\n[[dataset]]\nname = \"other\"\ntable = \"other\"\n";

/// A database with the tables of [`TWO_TABLES`], both tracked.
async fn two_tables() -> (Database, Catalog) {
    let database = Database::with_users(5).await;
    database.run("create table other (id int primary key); insert into other select generate_series(1, 5)").await;
    let catalog = Catalog::of(TWO_TABLES);
    for dataset in ["users", "other"] {
        catalog.track(&database, dataset).await;
    }
    (database, catalog)
}

/// Keeps all workers from claims until [`open_queue`].
async fn close_queue(database: &Database) {
    let schema =
        "create function closed() returns trigger language plpgsql as $$ begin raise exception 'closed'; end $$;
             create trigger closed before update of status on cdc_export.jobs for each row
               when (new.status = 'processing') execute function closed()";
    database.run(schema).await;
}

async fn open_queue(database: &Database) {
    database.run("drop trigger closed on cdc_export.jobs").await;
}

async fn submit(service: &Service, consumer: &str, dataset: &str) {
    let answer = post(service, "/exports/full", Some(consumer), &serde_json::json!({ "dataset": dataset })).await;
    assert_eq!(answer.status(), 202);
}

async fn all_ended(database: &Database) {
    let open = "select count(*) from exports where status in ('pending', 'processing') or published_at is null";
    until("all jobs ended", async || database.one::<i64>(open).await == 0).await;
}

#[tokio::test]
async fn a_locked_table_takes_one_worker_and_leaves_the_rest_to_others() {
    for workers in [1, 2] {
        let (database, catalog) = two_tables().await;
        let service = catalog.start(&database).with("WORKERS", workers).service().await;
        let held = database.hold_exports().await;
        for n in 0..8 {
            submit(&service, &format!("locked{n}"), "users").await;
        }
        for n in 0..4 {
            export(&service, "full", "other", &format!("free{n}")).await;
        }
        // Each worker may have met the lock before anybody knew of it. After that, one attempt at a time tries again.
        let attempts: i64 = database.one("select sum(attempt) from exports where dataset = 'users'").await;
        assert!(attempts <= workers + 1, "{attempts} attempts with {workers} workers");
        eventually("an attempt tries the table again", async || {
            let trials = "select count(*) from exports where dataset = 'users' and status = 'processing'";
            (database.one::<i64>(trials).await == 1).then_some(())
        })
        .await;
        held.rollback().await.unwrap();
        all_ended(&database).await;
        let completed = "select count(*) from exports
                         where status = 'completed' and not exists (select from cdc_export.locked_datasets)";
        assert_eq!(database.one::<i64>(completed).await, 12);
    }
}

#[tokio::test]
async fn consumers_take_turns() {
    for workers in [1, 2] {
        let (database, catalog) = two_tables().await;
        close_queue(&database).await;
        let service = catalog.start(&database).with("WORKERS", workers).service().await;
        for n in 0..20 {
            submit(&service, "many", ["users", "other"][n % 2]).await;
        }
        for _ in 0..10 {
            submit(&service, "few", "users").await;
        }
        open_queue(&database).await;
        all_ended(&database).await;
        let started = "select array_agg(consumer_id order by started_at) from exports";
        let order: Vec<String> = database.one(started).await;
        let first = order.iter().position(|consumer| consumer == "few").unwrap();
        assert!(first <= workers, "with {workers} workers: {order:?}");
        // A job is ready when the one before it in its lane is published.
        let view = "create view started as
                    select e.*, j.started_at from cdc_export.exports e join cdc_export.jobs j on j.id = e.job";
        database.run(view).await;
        let overtaken = "select max(overtaken) from (
              select (select count(*) from started m where m.consumer_id = 'many'
                  and m.started_at > before.published_at and m.started_at < few.started_at) as overtaken
              from started few
              join started before using (consumer_id, dataset)
              where consumer_id = 'few' and few.lane_sequence = before.lane_sequence + 1) jobs";
        let overtaken: i64 = database.one(overtaken).await;
        assert!(overtaken <= workers as i64, "with {workers} workers: {overtaken} {order:?}");
        let unordered = "select count(*) from started a join started b using (consumer_id, dataset)
                         where a.lane_sequence < b.lane_sequence and a.finished_at > b.started_at";
        assert_eq!(database.one::<i64>(unordered).await, 0, "a lane keeps its order");
    }
}

#[tokio::test]
async fn a_newcomer_goes_before_the_second_job_of_a_consumer_that_waits() {
    let (database, catalog) = two_tables().await;
    let start = catalog.start(&database).with("WORKERS", 1).with("FAILPOINTS", "worker.opened=hold@2");
    let service = start.service().await;
    for _ in 0..6 {
        submit(&service, "many", "users").await;
    }
    service.reaches("worker.opened").await;
    submit(&service, "new", "users").await;
    service.release("worker.opened").await;
    all_ended(&database).await;
    let order: Vec<String> = database.one("select array_agg(consumer_id order by started_at) from exports").await;
    assert_eq!(order.iter().position(|consumer| consumer == "new"), Some(2), "after the one that ran: {order:?}");
}

#[tokio::test]
async fn a_key_with_many_consumers_takes_turns_with_other_keys() {
    let (database, catalog) = two_tables().await;
    close_queue(&database).await;
    let (greedy, other) = (bearer(&database, "greedy", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let service = catalog.start(&database).with("AUTH", "keys").with("WORKERS", 1).service().await;
    let ask = async |key: &str, consumer: &str, dataset: &str| {
        let headers = [("Authorization", key), ("X-Consumer-ID", consumer)];
        let answer = service.post("/exports/full", &headers, &serde_json::json!({ "dataset": dataset })).await;
        assert_eq!(answer.status(), 202);
    };
    for n in 0..12 {
        ask(&greedy, &format!("made-{n}"), "users").await;
    }
    // A job in the partner's name gives the partner's own jobs no later turn.
    ask(&greedy, "partner", "users").await;
    ask(&other, "partner", "other").await;
    open_queue(&database).await;
    all_ended(&database).await;
    let order: Vec<String> = database.one("select array_agg(consumer_id order by started_at) from exports").await;
    assert!(order.iter().position(|consumer| consumer == "partner").unwrap() <= 2, "{order:?}");
}

/// A key can neither stop the exports of another key in other datasets, nor learn the idempotency keys that it sent.
#[tokio::test]
async fn the_open_jobs_of_a_key_are_no_limit_of_another_key() {
    let (database, catalog) = two_tables().await;
    close_queue(&database).await;
    let (greedy, other) = (bearer(&database, "greedy", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let service = catalog.start(&database).with("AUTH", "keys").service().await;
    let ask = async |key: &str, consumer: Option<&str>, dataset: &str, sent: &str| {
        let mut headers = vec![("Authorization", key), ("Idempotency-Key", sent)];
        headers.extend(consumer.map(|consumer| ("X-Consumer-ID", consumer)));
        service.post("/exports", &headers, &serde_json::json!({ "dataset": dataset })).await
    };
    for consumer in [None, Some("guessed")] {
        for n in 0..20 {
            assert_eq!(ask(&greedy, consumer, "users", &n.to_string()).await.status(), 202);
        }
        assert_eq!(refusal(ask(&greedy, consumer, "users", "20").await).await, (429, "too_many_open_jobs".to_owned()));
        assert_eq!(ask(&other, consumer, "other", "20").await.status(), 202, "{consumer:?}");
    }
    // Ad-hoc exports of the same dataset, with an idempotency key that the other key used for something else.
    assert_eq!(ask(&other, None, "users", "0").await.status(), 202);
    assert_eq!(refusal(ask(&other, None, "other", "0").await).await, (422, "idempotency_key_reused".to_owned()));
    assert_eq!(ask(&greedy, None, "users", "0").await.status(), 202, "its first request, sent again");
    assert_eq!(database.one::<i64>("select count(*) from exports where consumer_id is null").await, 22);
    open_queue(&database).await;
    all_ended(&database).await;
}

#[tokio::test]
async fn one_key_asks_for_fewer_open_jobs_than_half_of_what_is_left() {
    let (database, catalog) = two_tables().await;
    close_queue(&database).await;
    let (greedy, other) = (bearer(&database, "greedy", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let service = catalog.start(&database).with("AUTH", "keys").with("MAX_OPEN_JOBS", 10).service().await;
    let ask = async |key: &str, consumer: String| {
        let headers = [("Authorization", key), ("X-Consumer-ID", &consumer)];
        service.call("POST", "/exports/full", &headers).await
    };
    // Jobs that no key asked for count for none.
    database.run(&planted("select 'scheduled', 'users', 1, 'full', 'pending', now()")).await;
    let answers: Vec<_> = stream::iter(0..20).map(|n| ask(&greedy, format!("g{n}"))).buffered(4).collect().await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status() == 202);
    // With the fourth it would have as many as half of the six that are left.
    assert_eq!(taken.len(), 3);
    for answer in refused {
        assert_eq!(answer.headers()["Retry-After"], "2");
        assert_eq!(refusal(answer).await, (429, "too_many_open_jobs".to_owned()));
    }
    for n in 0..2 {
        assert_eq!(ask(&other, format!("o{n}")).await.status(), 202);
    }
    assert_eq!(refusal(ask(&other, "o2".to_owned()).await).await, (429, "too_many_open_jobs".to_owned()));
    // The next key finds a place, however many keys somebody has.
    assert_eq!(ask(&bearer(&database, "third", &[], &[]).await, "t0".to_owned()).await.status(), 202);
    // The only usable key has no limit of its own.
    let changes = "update cdc_export.keys set revoked_at = now() where name <> 'greedy';
                   delete from cdc_export.exports where consumer_id <> 'g0'";
    database.run(changes).await;
    eventually("the only key fills the queue", async || {
        let open: i64 = database.one("select count(*) from exports").await;
        let status = ask(&greedy, format!("a{open}")).await.status();
        (open == 10 && status == 429).then_some(())
    })
    .await;
    open_queue(&database).await;
}

#[tokio::test]
async fn one_key_leaves_connections_to_others() {
    let database = Database::new().await;
    let (greedy, other) = (bearer(&database, "greedy", &[], &[]).await, bearer(&database, "other", &[], &[]).await);
    let start = Start::on(&database).with("AUTH", "keys").with("API_CONNECTIONS", 4).with("RATE_LIMIT", "1000000/s");
    let service = start.service().await;
    database.run("insert into watermarks (consumer_id, last_exported_at) values ('quiet', '2026-01-01')").await;
    let held = database.open("lock table cdc_export.lanes in access exclusive mode").await;
    let burst = stream::iter(0..270).map(async |n| {
        let consumer = format!("c{n}");
        let headers = [("Authorization", &*greedy), ("X-Consumer-ID", &consumer)];
        service.call("POST", "/exports/full", &headers).await.status()
    });
    let others = async {
        let waiting = "select count(*) from pg_stat_activity
                       where datname = current_database() and wait_event_type = 'Lock' and query like '%store.jobs.next_in_lanes%'";
        until("the burst waits", async || database.one::<i64>(waiting).await >= 3).await;
        for _ in 0..20 {
            let headers = [("Authorization", &*other), ("X-Consumer-ID", "quiet")];
            assert_eq!(service.call("GET", "/exports/watermark", &headers).await.status(), 200);
        }
        assert_eq!(database.one::<i64>(waiting).await, 3, "three quarters of the connections");
        held.rollback().await.unwrap();
    };
    let (statuses, ()) = tokio::join!(burst.buffer_unordered(270).collect::<Vec<_>>(), others);
    assert!(statuses.iter().filter(|status| **status == 202).count() > 200, "they waited: {statuses:?}");
}
