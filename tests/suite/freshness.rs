//! Freshness: how far each consumer is behind its table, and its state.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post, submit};
use crate::harness::{Database, Service, Start, ends, eventually, refusal, until};

const TABLES: &str = "
    create table logged (id int primary key, n int); insert into logged select n, n from generate_series(1, 3) n;
    create table polled (id int primary key, n int, at timestamptz not null default now() - interval '1 hour');
    create index on polled (at); insert into polled (id) values (1);
    create view whole as select * from logged;";

fn file() -> String {
    let block = |name: &str, rest: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n{rest}");
    block("logged", "")
        + &block("polled", "updated_at = \"at\"\ncapture = \"timestamp\"\noverlap = \"1s\"\nfresh_within = \"1d\"\n")
        + &block("whole", "capture = \"none\"\nfresh_within = \"1d\"\n")
}

async fn started(file: &str) -> (Database, Catalog, Service) {
    let database = Database::empty_with(TABLES).await;
    let catalog = Catalog::of(file);
    let service = catalog.serving(&database, &["logged"]).await;
    (database, catalog, service)
}

/// Returns a consumer's lane in `/consumers`.
async fn lane(service: &Service, consumer: &str, dataset: &str) -> Value {
    let page = service.get(&format!("/consumers?consumer={consumer}")).await;
    let lanes = page["items"].as_array().unwrap();
    lanes.iter().find(|lane| lane["dataset"] == dataset).cloned().unwrap_or_else(|| panic!("{page}"))
}

async fn state(service: &Service, consumer: &str, dataset: &str) -> String {
    lane(service, consumer, dataset).await["state"].as_str().unwrap_or("null").to_owned()
}

async fn now(database: &Database) -> DateTime<Utc> {
    database.one("select clock_timestamp()").await
}

/// Waits until the lane is so many seconds behind. They must be those that have passed, within a tolerance.
async fn is_behind(database: &Database, service: &Service, since: DateTime<Utc>, seconds: u64, within: u64) {
    let behind = async || {
        let told = lane(service, "a", "logged").await["behindSeconds"].as_u64()?;
        let passed = (now(database).await - since).num_seconds().unsigned_abs();
        (told >= seconds).then_some((told, passed))
    };
    let (told, passed) = eventually("a lane that is behind", behind).await;
    assert!(told.abs_diff(passed) <= within, "{told} {passed}");
}

#[tokio::test]
async fn the_age_of_a_change_counts_from_its_commit() {
    let (database, _catalog, service) = started(&file()).await;
    export(&service, "full", "logged", "a").await;
    let fresh = lane(&service, "a", "logged").await;
    assert_eq!((&fresh["state"], &fresh["behindSeconds"]), (&json!("fresh"), &json!(0)));

    // Written long before its commit, by a transaction that began before the next export, and after nothing else for a
    // while.
    let writer = database.open("update logged set n = 0 where id = 1").await;
    let written = now(&database).await;
    until("three seconds", async || (now(&database).await - written).num_seconds() >= 3).await;
    export(&service, "delta", "logged", "a").await;
    assert_eq!(lane(&service, "a", "logged").await["behindSeconds"], 0);
    let committed = now(&database).await;
    writer.commit().await.unwrap();
    is_behind(&database, &service, committed, 2, 1).await;

    // A later change is not the oldest one. Nor is one of a transaction that is under way.
    let open = database.open("update logged set n = 0 where id = 3").await;
    database.run("update logged set n = 0 where id = 2").await;
    is_behind(&database, &service, committed, 4, 1).await;
    export(&service, "delta", "logged", "a").await;
    assert_eq!(lane(&service, "a", "logged").await["behindSeconds"], 0);
    open.rollback().await.unwrap();
}

#[tokio::test]
async fn a_truncated_table_is_a_change_and_its_export_is_fresh_until_there_are_rows() {
    let (database, _catalog, service) = started(&file()).await;
    export(&service, "full", "logged", "a").await;
    database.run("truncate logged").await;
    let truncated = now(&database).await;
    is_behind(&database, &service, truncated, 2, 1).await;
    export(&service, "full", "logged", "a").await;
    let told = lane(&service, "a", "logged").await;
    assert_eq!((&told["state"], &told["behindSeconds"]), (&json!("fresh"), &json!(0)), "{told}");
    let exported = now(&database).await;
    database.run("insert into logged values (1, 1)").await;
    is_behind(&database, &service, exported, 2, 2).await;
}

#[tokio::test]
async fn a_change_while_no_process_was_there_counts_from_the_last_one() {
    let (database, catalog, service) = started(&file()).await;
    export(&service, "full", "logged", "a").await;
    service.stop().await;
    // The log has been quiet for long.
    let stopped = now(&database).await;
    database.run("update cdc_export.moments set at = at - interval '1 hour', since = since - interval '1 hour'").await;
    database.run("update logged set n = 0 where id = 1").await;
    let service = catalog.start(&database).service().await;
    // A process records its end.
    is_behind(&database, &service, stopped, 1, 2).await;
}

#[tokio::test]
async fn a_change_beside_a_stopped_process_counts_from_its_last_look() {
    let (database, catalog, service) = started(&file()).await;
    export(&service, "full", "logged", "a").await;
    let other = catalog.start(&database).arguments(&["serve", "--no-workers"]).service().await;
    service.signal(nix::sys::signal::Signal::SIGSTOP);
    let stopped = now(&database).await;
    database.run("update logged set n = 0 where id = 1").await;
    until("five seconds", async || (now(&database).await - stopped).num_seconds() >= 5).await;
    let told = lane(&other, "a", "logged").await["behindSeconds"].as_u64();
    service.signal(nix::sys::signal::Signal::SIGCONT);
    assert!((4..9).contains(&told.unwrap()), "{told:?}");
}

#[tokio::test]
async fn the_age_of_a_change_is_unknown_while_the_worker_is_dead() {
    let (database, catalog, service) = started(&file()).await;
    for dataset in ["logged", "polled"] {
        export(&service, "full", dataset, "a").await;
    }
    let other = catalog.start(&database).arguments(&["serve", "--no-workers"]).service().await;
    service.signal(nix::sys::signal::Signal::SIGKILL);
    let sessions = "select exists (select from pg_stat_activity
                    where datname = current_database() and application_name ~ ' at [0-9a-f]{32}$')";
    until("its sessions end", async || !database.one::<bool>(sessions).await).await;
    let unchanged = lane(&other, "a", "logged").await;
    assert_eq!((&unchanged["state"], &unchanged["behindSeconds"]), (&json!("fresh"), &json!(0)), "{unchanged}");
    database.run("update logged set n = 0 where id = 1").await;
    let changed = lane(&other, "a", "logged").await;
    assert_eq!((&changed["state"], &changed["behindSeconds"]), (&json!(null), &json!(null)), "{changed}");
    let all = other.get("/consumers/a").await;
    assert_eq!((&all["states"], &all["behindSeconds"]), (&json!({ "fresh": 1 }), &json!(null)), "{all}");
    let again = catalog.start(&database).sharing_output(&other).service().await;
    until("it is known", async || lane(&again, "a", "logged").await["behindSeconds"].as_u64() >= Some(1)).await;
}

#[tokio::test]
async fn a_quiet_database_is_not_written_to() {
    let (database, _catalog, _service) = started(&file()).await;
    let moments = async || database.one::<i64>("select count(*) from cdc_export.moments").await;
    let writer = database.open("update logged set n = 0").await;
    // A moment covers the writes of `track` and the start by now. Other tables don't count, nor does a waiting writer.
    let settled = eventually("no more moments", async || {
        let before = moments().await;
        let looked = now(&database).await;
        until("two looks", async || (now(&database).await - looked).num_seconds() >= 3).await;
        (moments().await == before).then_some(before)
    })
    .await;
    database.run("create table other (id int); insert into other select generate_series(1, 10)").await;
    let looked = now(&database).await;
    until("two looks", async || (now(&database).await - looked).num_seconds() >= 3).await;
    assert_eq!(moments().await, settled);
    writer.commit().await.unwrap();
    until("a moment", async || moments().await > settled).await;
}

#[tokio::test]
async fn a_lane_has_the_state_that_needs_somebody_most() {
    let limit = "fresh_within = \"1s\"\n";
    let of = |filter: &str| format!("[[dataset]]\nname = \"logged\"\ntable = \"logged\"\n{filter}{limit}");
    let (database, catalog, service) = started(&of("filter = \"n <> 7 or 1 / (n - 7) = 1\"\n")).await;
    export(&service, "full", "logged", "a").await;
    assert_eq!(state(&service, "a", "logged").await, "fresh");
    let until = async |wanted: &str| {
        eventually(wanted, async || (state(&service, "a", "logged").await == wanted).then_some(())).await;
    };
    database.run("update logged set n = 1 where id = 2").await;
    until("behind").await;

    // Each row of 7 divides by zero.
    database.run("update logged set n = 7 where id = 1").await;
    let mut failed = Vec::new();
    for _ in 0..2 {
        let job = ended(&service, "/exports/delta", Some("a"), json!({ "dataset": "logged" })).await;
        assert_eq!(job["status"], "failed", "{job}");
        failed.push(job["finishedAt"].clone());
    }
    let told = lane(&service, "a", "logged").await;
    assert_eq!((&told["state"], &told["failures"], &told["failingSince"]), (&json!("failing"), &json!(2), &failed[0]));
    database.run("update logged set n = 1 where id = 1").await;
    let last = export(&service, "delta", "logged", "a").await;
    let told = lane(&service, "a", "logged").await;
    assert_eq!((&told["state"], &told["failures"], &told["failingSince"]), (&json!("fresh"), &json!(0), &json!(null)));

    // It acknowledges, and then doesn't.
    let id = last["jobId"].as_str().unwrap();
    assert_eq!(service.call("POST", &format!("/exports/{id}/ack"), &[]).await.status(), 200);
    export(&service, "delta", "logged", "a").await;
    until("not_loaded").await;
    database.run("truncate logged").await;
    until("needs_full").await;
    export(&service, "full", "logged", "a").await;
    database.run("alter table logged disable trigger all").await;
    until("not_tracked").await;
    catalog.write("[[dataset]]\nname = \"other\"\ntable = \"logged\"\ncapture = \"none\"\n");
    until("gone").await;
}

/// After the restore of a dump, a full export would pass.
#[tokio::test]
async fn a_lane_whose_changes_are_not_captured_is_not_tracked_whatever_its_continuity_is() {
    let (database, catalog, service) = started(&file()).await;
    export(&service, "delta", "logged", "b").await;
    export(&service, "full", "logged", "a").await;
    let exported = now(&database).await;
    database.run("update watermarks set guard_state = jsonb_set(guard_state, '{database}', '\"1\"')").await;
    ends(catalog.command(&database, &["untrack", "logged"]).await, 0, "");
    for consumer in ["a", "b"] {
        let told = lane(&service, consumer, "logged").await;
        let found = (&told["state"], &told["continuity"]);
        assert_eq!(found, (&json!("not_tracked"), &json!("database_restored")), "{told}");
    }
    is_behind(&database, &service, exported, 2, 2).await;
}

#[tokio::test]
async fn a_lane_whose_table_is_gone_is_failing() {
    let (database, _catalog, service) = started(&file()).await;
    export(&service, "full", "logged", "a").await;
    let exported = now(&database).await;
    database.run("alter table logged rename to away").await;
    is_behind(&database, &service, exported, 2, 2).await;
    assert_eq!(state(&service, "a", "logged").await, "failing");
    database.run("alter table away rename to logged").await;
    assert_eq!(state(&service, "a", "logged").await, "fresh");
}

#[tokio::test]
async fn without_triggers_the_rows_times_or_the_last_export_tell_it() {
    let (database, _catalog, service) = started(&file()).await;
    for dataset in ["polled", "whole"] {
        let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": dataset })).await;
        assert_eq!(job["status"], "completed", "{job}");
    }
    assert_eq!(lane(&service, "a", "polled").await["behindSeconds"], 0);
    let changes =
        "insert into polled values (2, 0, now() - interval '10 minutes'), (3, 0, now() - interval '5 minutes');
             insert into polled values (4, 0, 'infinity'), (5, 0, now() + interval '1 day')";
    database.run(changes).await;
    let told = lane(&service, "a", "polled").await["behindSeconds"].as_u64().unwrap();
    assert!((600..620).contains(&told), "{told}");
    database
        .run("update cdc_export.exports set finished_at = finished_at - interval '2 hours' where dataset = 'whole'")
        .await;
    let told = lane(&service, "a", "whole").await;
    assert!((7200..7220).contains(&told["behindSeconds"].as_u64().unwrap()) && told["state"] == "fresh", "{told}");
    // Nothing counts its rows, so it is looked up.
    database.run("alter table whole rename to away").await;
    let until = async |wanted: &str| {
        eventually(wanted, async || (state(&service, "a", "whole").await == wanted).then_some(())).await;
    };
    until("failing").await;
    database.run("alter table away rename to whole").await;
    until("fresh").await;
}

#[tokio::test]
async fn a_consumer_is_told_over_all_its_datasets_and_can_be_removed() {
    let (database, _catalog, service) = started(&file()).await;
    let call = async |method: &str, id: &str| service.call(method, &format!("/consumers/{id}"), &[]).await;
    assert_eq!(call("GET", "a").await.status(), 404);
    assert_eq!(call("GET", "a%20b").await.status(), 400);
    for dataset in ["logged", "polled", "whole"] {
        export(&service, "full", dataset, "a").await;
    }
    export(&service, "delta", "logged", "b").await;
    database.run("update logged set n = 0; truncate polled; insert into polled (id) values (9)").await;
    let told: Value = call("GET", "a").await.json().await.unwrap();
    assert_eq!(told["state"], "fresh", "{told}");
    assert_eq!(told["datasets"], 3, "{told}");
    assert_eq!(told["states"], json!({ "fresh": 3 }), "{told}");
    assert_eq!(told["failures"], 0, "{told}");

    let held = database.open("lock table logged in access exclusive mode").await;
    let open = submit(&service, "/exports/delta", Some("a"), json!({ "dataset": "logged" })).await;
    assert_eq!(refusal(call("DELETE", "a").await).await, (409, "still_open".to_owned()));
    held.rollback().await.unwrap();
    let last = service.ended(&open).await;
    assert_eq!(call("DELETE", "a").await.status(), 204);
    assert_eq!(call("DELETE", "a").await.status(), 404);
    assert_eq!(call("GET", "a").await.status(), 404);
    let page: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let names: Vec<_> = page["items"].as_array().unwrap().iter().map(|item| item["consumerId"].clone()).collect();
    assert_eq!(names, ["b"]);

    // Failures before the removal don't count.
    database.run("truncate logged; insert into logged select n, n from generate_series(1, 3) n").await;
    let job = ended(&service, "/exports/delta", Some("b"), json!({ "dataset": "logged" })).await;
    assert_eq!(job["status"], "failed", "{job}");
    assert_eq!(lane(&service, "b", "logged").await["failures"], 1);
    assert_eq!(call("DELETE", "b").await.status(), 204);
    let held = database.open("lock table logged in access exclusive mode").await;
    let open = submit(&service, "/exports/delta", Some("b"), json!({ "dataset": "logged" })).await;
    let told = lane(&service, "b", "logged").await;
    assert_eq!((&told["failures"], &told["state"]), (&json!(0), &json!("new")), "{told}");
    held.rollback().await.unwrap();
    service.ended(&open).await;

    // The next one is a first one, whose number and place follow those of before.
    let again = export(&service, "delta", "logged", "a").await;
    assert_eq!((&again["rowsExported"], &again["watermarkFrom"]), (&json!(3), &json!(null)), "{again}");
    assert_eq!(again["order"].as_i64(), last["order"].as_i64().map(|order| order + 1));
    assert_eq!(again["number"].as_i64(), last["number"].as_i64().map(|number| number + 1));
    assert_eq!(call("GET", "a").await.json::<Value>().await.unwrap()["datasets"], 1);
    let lines = service.events("audit");
    let removed = lines.iter().filter(|line| line["action"] == "remove_consumer").map(|line| &line["consumer"]);
    assert_eq!(removed.collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn older_moments_are_thinned() {
    let (database, _catalog, service) = started(&file()).await;
    service.stop().await;
    // One each second for 20 minutes, one each minute for a day before, and one of a cluster that was further on.
    let changes = "
        delete from cdc_export.moments;
        insert into cdc_export.moments (at, snapshot, next_xid, log_sequence, open_xids)
        select now() - n * interval '1 second', '5:5:'::pg_snapshot, '5'::xid8, 0, '{}'::xid8[] from generate_series(1, 1200) n
        union all
        select now() - interval '1 day' - n * interval '1 minute', '5:5:', '5', 0, '{}' from generate_series(1, 1440) n
        union all
        select now(), '5:999999999999:', '999999999999', 0, '{}'
        union all
        select now() - interval '100 days', '5:5:', '5', 0, '{}'";
    database.run(changes).await;
    database
        .run(&include_str!("../../src/store/moments/thin.sql").replace("$1", "1209600").replace("$2", "now()"))
        .await;
    let kept = "select jsonb_agg(count order by bucket) from (
        select case when at > now() - interval '10 minutes' then 1 when at > now() - interval '1 day' then 2 else 3 end as bucket,
          count(*) from cdc_export.moments group by 1) found";
    let kept: Value = database.one(kept).await;
    let kept: Vec<_> = kept.as_array().unwrap().iter().map(|count| count.as_i64().unwrap()).collect();
    // A bucket may be cut at each end.
    assert!((598..=600).contains(&kept[0]) && (60..=62).contains(&kept[1]), "{kept:?}");
    assert!((288..=290).contains(&kept[2]), "{kept:?}");
}

#[tokio::test]
async fn what_a_removed_consumer_had_loaded_is_no_part_of_what_comes_after_it() {
    let database = Database::empty_with(TABLES).await;
    let catalog = Catalog::of(&file());
    catalog.track(&database, "logged").await;
    let service = catalog.start(&database).with("MANIFESTS", "on").service().await;
    let id = |job: &Value| job["jobId"].as_str().unwrap().to_owned();
    let first = export(&service, "full", "logged", "a").await;
    let second = export(&service, "delta", "logged", "a").await;
    assert_eq!(service.manifest(&second).await["export"]["previous"], first["digest"]);
    assert_eq!(service.call("DELETE", "/consumers/a", &[]).await.status(), 204);
    database.run("delete from logged").await;

    // A consumer that goes on from there would keep the rows that were deleted meanwhile.
    let after = json!({ "dataset": "logged", "after": id(&second) });
    let refused = refusal(post(&service, "/exports/delta", Some("a"), &after).await).await;
    assert_eq!(refused, (409, "database_restored".to_owned()));
    // One that says nothing gets a file, though it is an empty one, and a chain of its own.
    let asked = json!({ "dataset": "logged", "skipEmpty": true, "after": null });
    let anew = ended(&service, "/exports/delta", Some("a"), asked).await;
    assert_eq!(anew["status"], "completed", "{anew}");
    assert_eq!(anew["skipped"], false, "{anew}");
    assert_eq!(anew["number"], 3, "{anew}");
    assert_eq!(service.manifest(&anew).await["export"]["previous"], Value::Null);
    // An acknowledgement that comes late says nothing of them.
    let acknowledged = service.call("POST", &format!("/exports/{}/ack", id(&first)), &[]).await;
    assert!(acknowledged.status().is_success(), "{acknowledged:?}");
    assert_eq!(lane(&service, "a", "logged").await["unacknowledged"], Value::Null);
    // As long as it had no row, each export is a first one.
    database.run("insert into logged values (7, 7)").await;
    let filled = export(&service, "delta", "logged", "a").await;
    assert_eq!(service.manifest(&filled).await["export"]["previous"], Value::Null);
    let next = export(&service, "delta", "logged", "a").await;
    assert_eq!(service.manifest(&next).await["export"]["previous"], filled["digest"]);
    // A folder that has all of them is whole.
    let folder = service.path(&next).parent().unwrap().to_str().unwrap().to_owned();
    ends(Start::plain().arguments(&["verify", &folder]).output().await, 0, "");
}
