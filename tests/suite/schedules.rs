//! Schedules: each slot makes one job, with any number of replicas, or a report that it made none.
//!
//! Slots are a year apart, so no slot is due by itself during a test. A test makes one due by setting the last used
//! slot back.

mod several_datasets;
mod users;

use cdc_export::schedule::timing::{self, Timing};
use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::harness::{Database, Service, eventually, stop, until};
use crate::keys::bearer;
use crate::schedules::users::{USERS, ended, jobs, schedule, users};

/// In both time zones the clocks go from 23:00 on a Saturday to 00:00 on Sunday, 28 March 2027 at 01:00 UTC.
#[test]
fn slot_of_a_named_day_survives_a_gap_that_ends_on_the_next_day() {
    let at = |text: &str| format!("{text}:00Z").parse::<DateTime<Utc>>().unwrap();
    let gap_ends = at("2027-03-28T01:00");
    for zone in ["America/Nuuk", "America/Scoresbysund"] {
        for pattern in ["0 23 * * 6", "30 23 * * SAT", "0 23 27 * *", "30 23 27 3 *"] {
            let timing = Timing::cron(pattern, timing::zone(zone).unwrap()).unwrap();
            assert_eq!(timing.next(at("2027-03-27T12:00")), Some(gap_ends), "{pattern} {zone}");
            assert_eq!(timing.latest(gap_ends), Some(gap_ends), "{pattern} {zone}");
            assert!(timing.latest(at("2027-03-28T00:59")) < Some(at("2027-03-27T12:00")), "{pattern} {zone}");
            assert!(timing.next(gap_ends) > Some(at("2027-03-28T12:00")), "{pattern} {zone}");
        }
    }
}

/// Makes this number of slots due again, by setting the last used slot back.
async fn set_back(database: &Database, name: &str, slots: i32) {
    let set_back =
        format!("update cdc_export.schedules set slot = slot - {slots} * interval '366 days' where name = '{name}'");
    database.run(&set_back).await;
}

async fn shown(service: &Service, name: &str) -> Value {
    let list: Value = service.ask("GET", "/schedules", &[]).await.json().await.unwrap();
    list["items"].as_array().unwrap().iter().find(|item| item["name"] == name).unwrap().clone()
}

/// Waits until the API shows the schedule in this state.
pub(crate) async fn becomes(service: &Service, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    eventually(what, async || Some(shown(service, name).await).filter(&is_so)).await
}

#[tokio::test]
async fn slots_missed_while_no_process_ran_make_one_export() {
    let database = users().await;
    let catalog = Catalog::of(
        &(USERS.to_owned() + &schedule("a", "a", "type = \"delta\"") + &schedule("b", "b", "type = \"full\"")),
    );
    let mut service = catalog.start(&database).service().await;
    ended(&database, 2).await;
    service.end().await;
    set_back(&database, "a", 10).await;
    let service = catalog.start(&database).sharing_output(&service).service().await;
    ended(&database, 3).await;
    let a = shown(&service, "a").await;
    assert_eq!((&a["skipped"], &a["lastJob"]["exportType"]), (&json!(0), &json!("delta")));
    // The other one's next export comes in a later round.
    set_back(&database, "b", 1).await;
    ended(&database, 4).await;
    let made =
        "select string_agg(consumer_id || ' ' || export_type || ' ' || status, ', ' order by consumer_id, created_at)
        from exports";
    let made: String = database.one(made).await;
    assert_eq!(made, "a delta completed, a delta completed, b full completed, b full completed");
    let [last, next] = ["lastSlot", "nextAt"].map(|time| a[time].as_str().unwrap().to_owned());
    let apart: f64 = database.one(&format!("select extract(epoch from timestamptz '{next}' - '{last}')::float8")).await;
    assert_eq!(apart, 366.0 * 86400.0);
}

#[tokio::test]
async fn a_crash_before_the_commit_loses_no_slot() {
    let database = users().await;
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("a", "a", "type = \"full\"")));
    let (mut doomed, _work) = catalog.start(&database).with("FAILPOINTS", "schedules.claimed=kill").spawn();
    doomed.wait().await.unwrap();
    assert_eq!((jobs(&database).await, database.one::<i64>("select count(*) from cdc_export.schedules").await), (0, 0));
    let _service = catalog.start(&database).service().await;
    assert_eq!(ended(&database, 1).await, ["full completed"]);
}

#[tokio::test]
async fn a_slot_with_a_busy_lane_is_skipped_and_reported() {
    let database = users().await;
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("a", "a", "type = \"delta\"")));
    let service = catalog.start(&database).service().await;
    ended(&database, 1).await;
    let held = database.hold_exports().await;
    let open = service.submit("full", "a").await;
    for skipped in 1..=2 {
        set_back(&database, "a", 1).await;
        let a = becomes(&service, "a", "a slot is skipped", |it| it["skipped"] == skipped).await;
        assert!(a["skippedAt"].is_string() && a["lastJob"]["exportType"] == "delta", "{a}");
    }
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&open).await["status"], "completed");
    assert_eq!(jobs(&database).await, 2);
    let told = service.events("schedule_skipped");
    assert_eq!(told.len(), 1, "the second one came within a minute: {told:?}");
    assert_eq!((&told[0]["schedule"], &told[0]["consumerId"]), (&json!("a"), &json!("a")));
    let metrics = service.ask("GET", "/metrics", &[]).await.text().await.unwrap();
    for line in [
        "cdc_export_schedule_slots_total{outcome=\"run\",schedule=\"a\"} 1",
        "cdc_export_schedule_slots_total{outcome=\"skipped\",schedule=\"a\"} 2",
        "cdc_export_schedule_slots_total{outcome=\"refused\",schedule=\"a\"} 0",
        "cdc_export_schedule_overdue_seconds{schedule=\"a\"} 0",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    set_back(&database, "a", 1).await;
    ended(&database, 3).await;
    assert_eq!(shown(&service, "a").await["skipped"], 0);
}

#[tokio::test]
async fn a_refused_slot_stays_due() {
    let database = users().await;
    database.run("create table orders (id int primary key)").await;
    let orders = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";
    let of_orders = schedule("late", "c", "type = \"full\"").replace("\"users\"", "\"orders\"");
    let catalog = Catalog::of(&(USERS.to_owned() + orders + &schedule("a", "a", "type = \"full\"") + &of_orders));
    let service = catalog.start(&database).service().await;
    let late = becomes(&service, "late", "it is refused", |it| it["refused"] == "not_tracked").await;
    assert!(late["refusedSince"].is_string() && late["lastSlot"].is_null() && late["nextAt"].is_string(), "{late}");
    // Rounds pass.
    for number in 1..=3 {
        ended(&database, number).await;
        set_back(&database, "a", 1).await;
    }
    ended(&database, 4).await;
    let told = service.events("schedule_refused");
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0]["code"], "not_tracked", "{told:?}");
    assert_eq!(told[0]["schedule"], "late", "{told:?}");
    catalog.track(&database, "orders").await;
    ended(&database, 5).await;
    let late = shown(&service, "late").await;
    assert!(late["refused"].is_null() && late["lastJob"]["dataset"] == "orders", "{late}");
}

#[tokio::test]
async fn a_slot_waits_while_too_many_exports_are_open() {
    let database = users().await;
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("a", "a", "type = \"full\"\nrun_at_start = false")));
    let service = catalog.start(&database).with("MAX_OPEN_JOBS", 1).service().await;
    becomes(&service, "a", "it is known", |it| it["lastSlot"].is_string()).await;
    assert_eq!(jobs(&database).await, 0, "it doesn't run at its start");
    let held = database.hold_exports().await;
    let open = service.submit("full", "other").await;
    set_back(&database, "a", 1).await;
    becomes(&service, "a", "it is refused", |it| it["refused"] == "too_many_open_jobs").await;
    let metrics = service.ask("GET", "/metrics", &[]).await.text().await.unwrap();
    let overdue =
        metrics.lines().find_map(|line| line.strip_prefix("cdc_export_schedule_overdue_seconds{schedule=\"a\"} "));
    assert!(overdue.unwrap().parse::<f64>().unwrap() > 0.0, "{metrics}");
    held.rollback().await.unwrap();
    assert_eq!(service.ended(&open).await["status"], "completed");
    ended(&database, 2).await;
    assert_eq!(service.events("schedule_refused").len(), 1);
}

#[tokio::test]
async fn an_export_that_needs_a_full_export_becomes_one() {
    let database =
        Database::empty_with("create table notes (id int primary key, note text); insert into notes values (1, 'a')")
            .await;
    let notes = "[[dataset]]\nname = \"users\"\ntable = \"notes\"\n";
    let catalog = Catalog::of(&(notes.to_owned() + &schedule("heals", "c", "type = \"delta\"\nheal = true")));
    catalog.track(&database, "users").await;
    let service = catalog.start(&database).with("CELL_MAX_BYTES", 1024).service().await;
    let mut expected = vec!["delta completed"];
    assert_eq!(ended(&database, 1).await, expected);
    // A full export that fails, as the last one, is made at each slot again.
    for (change, export) in [
        ("truncate notes; insert into notes values (2, 'b')", "full completed"),
        ("update notes set note = 'c'", "delta completed"),
        ("truncate notes; insert into notes values (3, repeat('x', 2000))", "full failed"),
        ("", "full failed"),
        ("update notes set note = 'x'", "full completed"),
        ("", "delta completed"),
    ] {
        database.run(change).await;
        set_back(&database, "heals", 1).await;
        expected.push(export);
        assert_eq!(ended(&database, expected.len()).await, expected, "{change}");
    }
    assert_eq!(service.events("export_healed").len(), 4);
}

#[tokio::test]
async fn a_clock_set_back_stops_no_schedule_and_uses_no_slot_twice() {
    let database = users().await;
    let catalog = Catalog::of(
        &(USERS.to_owned() + &schedule("a", "a", "type = \"full\"") + &schedule("b", "b", "type = \"full\"")),
    );
    let service = catalog.start(&database).service().await;
    ended(&database, 2).await;
    let next: String = shown(&service, "a").await["nextAt"].as_str().unwrap().to_owned();
    // As if the slot to come had been used, before the clock was set back.
    database.run(&format!("update cdc_export.schedules set slot = '{next}' where name = 'a'")).await;
    set_back(&database, "b", 1).await;
    ended(&database, 3).await;
    assert_eq!(
        (shown(&service, "a").await["lastSlot"].as_str(), service.events("schedule_clock_set_back").len()),
        (Some(&*next), 0)
    );
    // As if the clock had been years ahead.
    database.run("update cdc_export.schedules set slot = slot + interval '10 years' where name = 'a'").await;
    let a = becomes(&service, "a", "it goes on from now", |it| it["lastSlot"].as_str().unwrap() <= &*next).await;
    assert!(a["nextAt"].as_str().unwrap() <= &*next, "{a}");
    assert_eq!((jobs(&database).await, service.events("schedule_clock_set_back").len()), (3, 1));
}

#[tokio::test]
async fn a_changed_timing_makes_no_past_slot_due() {
    let database = users().await;
    let old = schedule("a", "a", "type = \"full\"");
    let catalog = Catalog::of(&(USERS.to_owned() + &old));
    let mut service = catalog.start(&database).service().await;
    ended(&database, 1).await;
    service.end().await;
    set_back(&database, "a", 1).await;
    let before: String = database.one("select slot::text from cdc_export.schedules").await;
    catalog.write(&(USERS.to_owned() + &old.replace("every = \"366d\"", "cron = \"0 0 1 1 *\"")));
    let service = catalog.start(&database).sharing_output(&service).service().await;
    let now: String = eventually("it is adopted", async || {
        let slot: String = database.one("select slot::text from cdc_export.schedules").await;
        (slot != before).then_some(slot)
    })
    .await;
    assert!(now.contains("-01-01 00:00:00"), "{now}");
    assert_eq!(jobs(&database).await, 1);
    let a = shown(&service, "a").await;
    assert_eq!((&a["cron"], &a["timezone"], &a["every"]), (&json!("0 0 1 1 *"), &json!("UTC"), &Value::Null));
    database.run("update cdc_export.schedules set slot = slot - interval '1 day'").await;
    ended(&database, 2).await;
}

#[tokio::test]
async fn a_key_sees_only_the_schedules_of_its_consumers() {
    let database = users().await;
    let nightly = schedule("nightly", "b", "type = \"full\"\nformat = \"ndjson\"\nrun_at_start = false")
        .replace("every = \"366d\"", "cron = \"15 2 * * 1-5\"\ntimezone = \"Europe/Berlin\"");
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("often", "a", "type = \"delta\"") + &nightly));
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 0 && printed.ends_with("\nschedules: often, nightly\n"), "{printed} {said}");
    // One process serves, and another one works.
    let api = catalog.start(&database).arguments(&["serve", "--no-workers"]).service().await;
    let waiting = shown(&api, "often").await;
    assert!(waiting["lastRunAt"].is_null() && waiting["nextAt"].is_string(), "{waiting}");
    let (mut worker, _work) = catalog.start(&database).sharing_output(&api).arguments(&["worker"]).spawn();
    ended(&database, 1).await;
    let often = becomes(&api, "often", "it ran", |it| it["lastJob"]["status"] == "completed").await;
    for (member, value) in [
        ("consumerId", json!("a")),
        ("dataset", json!("users")),
        ("exportType", json!("delta")),
        ("heal", json!(false)),
        ("refused", Value::Null),
    ] {
        assert_eq!(often[member], value, "{member}: {often}");
    }
    let nightly = becomes(&api, "nightly", "it is known", |it| it["lastSlot"].is_string()).await;
    assert!(nightly["lastRunAt"].is_null() && nightly["format"] == "ndjson", "{nightly}");

    let key = bearer(&database, "of b", &["export:read"], &["b"]).await;
    let writes = bearer(&database, "writes", &["export:write"], &[]).await;
    let keyed = catalog.start(&database).with("AUTH", "keys").arguments(&["serve", "--no-workers"]).service().await;
    let list: Value = keyed.call("GET", "/schedules", &[("Authorization", &key)]).await.json().await.unwrap();
    let names: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| &item["name"]).collect();
    assert_eq!(names, ["nightly"]);
    assert_eq!(keyed.call("GET", "/schedules", &[("Authorization", &writes)]).await.status(), 403);
    stop(&mut worker).await;
}

#[tokio::test]
async fn an_invalid_schedule_is_reported_with_its_line() {
    let database = users().await;
    let catalog = Catalog::of(
        &(USERS.to_owned()
            + "[[schedule]]\nname = \"a\"\nconsumer = \"c\"\ndataset = \"user\"\ntype = \"delta\"\ncron = \"61 * * * *\"\n"),
    );
    for command in [&["datasets", "check"][..], &["status"], &["serve"]] {
        let (code, _, said) = catalog.command(&database, command).await;
        let lines: Vec<_> = said.lines().collect();
        assert!(code == 2 && lines.len() == 2, "{command:?} {code} {said}");
        assert!(
            lines[0].contains(": line 11: schedule a: dataset: there is no dataset `user`; is it `users`?"),
            "{said}"
        );
        assert!(lines[1].contains(": line 13: schedule a: cron: "), "{said}");
    }
}

/// A draining process runs no new export, so it must not use the slot.
#[tokio::test]
async fn a_draining_process_leaves_its_slots_to_the_next_process() {
    let database = users().await;
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("a", "a", "type = \"full\"")));
    let mut service = catalog.start(&database).with("DRAIN_SECONDS", 600).service().await;
    ended(&database, 1).await;
    let held = database.hold_exports().await;
    let other = service.submit("full", "b").await;
    until("it runs", async || service.job(&other).await["status"] == "processing").await;
    service.signal(Signal::SIGTERM);
    eventually("it drains", async || service.events("draining").pop()).await;
    set_back(&database, "a", 1).await;
    let set: DateTime<Utc> = database.one("select clock_timestamp()").await;
    let passed = format!("select clock_timestamp() > '{set}'::timestamptz + interval '4 s'");
    until("several looks of a scheduler", async || database.one::<bool>(&passed).await).await;
    assert_eq!(jobs(&database).await, 2);
    held.rollback().await.unwrap();
    assert_eq!(service.exit().await, Some(0));

    let _next = catalog.start(&database).sharing_output(&service).service().await;
    assert_eq!(ended(&database, 3).await, ["full completed"; 3]);
}

/// Runs with a slot in each second, by the real clock.
#[tokio::test]
async fn a_schedule_of_every_second_uses_each_slot_once() {
    let database = users().await;
    let catalog = Catalog::of(&(USERS.to_owned() + &schedule("a", "a", "type = \"delta\"").replace("366d", "1s")));
    let first = catalog.start(&database).service().await;
    let second = catalog.start(&database).sharing_output(&first).service().await;
    let services = [first, second];
    eventually("ten slots", async || {
        let made: usize = services.iter().map(|service| service.events("export_submitted").len()).sum();
        (made >= 10).then_some(())
    })
    .await;
    for service in &services {
        service.signal(Signal::SIGTERM);
    }
    let mut slots = Vec::new();
    for mut service in services {
        assert_eq!(service.exit().await, Some(0));
        // The end of the log is read a moment later.
        until("the end of the log", async || !service.events("stopped").is_empty()).await;
        slots.extend(service.events("export_submitted").iter().map(|event| event["slot"].as_str().unwrap().to_owned()));
    }
    slots.sort();
    let used = slots.len();
    slots.dedup();
    assert_eq!((slots.len(), jobs(&database).await), (used, used as i64));
}
