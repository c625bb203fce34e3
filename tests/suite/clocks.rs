//! Clocks that are wrong, and times that are by a clock of another zone.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::{Csv, Database, ends, eventually, until};

/// A database whose clock a test sets: its functions of the present time add `clock.ahead`. The service's views are
/// made again, because a view keeps the functions that it was made with.
async fn with_a_clock() -> Database {
    let database = Database::with_users(5).await;
    database.run("create table public.clock (ahead interval not null); insert into public.clock values ('0')").await;
    let replaced = "set allow_system_table_mods = on;
         do $do$
         declare
           views constant text[] := array(
             select format('create or replace view %s as %s', c.oid::regclass, pg_get_viewdef(c.oid))
             from pg_class c where c.relnamespace = 'cdc_export'::regnamespace and c.relkind = 'v' order by c.oid);
           name text;
           view text;
         begin
           foreach name in array array['clock_timestamp', 'statement_timestamp'] loop
             execute format('alter function pg_catalog.%s() rename to real_%s', name, name);
             execute format(
               'create function pg_catalog.%s() returns timestamptz language sql volatile
                as $$select pg_catalog.real_%s() + (select ahead from public.clock)$$', name, name);
           end loop;
           foreach view in array views loop
             execute view;
           end loop;
         end $do$";
    database.run(replaced).await;
    database
}

async fn set_ahead(database: &Database, ahead: &str) {
    database.run(&format!("update public.clock set ahead = '{ahead}'")).await;
}

/// The database's clock is 20 days ahead for a while. Everything is then older than it may be.
#[tokio::test]
async fn a_clock_that_jumps_ahead_removes_nothing_by_age() {
    let database = with_a_clock().await;
    // A table that no position keeps the log of.
    database.run("create table other (id int primary key)").await;
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n");
    let catalog = Catalog::of(&(block("users") + &block("other")));
    let failpoints = "maintenance.clock=time:1800000,maintenance.folder=time:200";
    catalog.track(&database, "other").await;
    let service = catalog.start(&database).with("FAILPOINTS", failpoints);
    let service = service.with("RETAIN_FILES", "7d,1").with("RETAIN_JOBS", "7d").service().await;
    let (kept, _) = service.export("full", "a").await;
    set_ahead(&database, "20 days").await;
    let jumped = eventually("the jump is seen", async || service.events("clock_jumped").pop()).await;
    let seconds = jumped["seconds"].as_i64().unwrap();
    assert!((1_727_940..1_728_060).contains(&seconds), "{jumped}");

    // The bound by count holds: of b's files one stays.
    let (counted, _) = service.export("full", "b").await;
    service.export("full", "b").await;
    until("a file goes by count", async || !service.path(&counted).exists()).await;
    // A round of the purge begins with the positions that are too old.
    let logged = "select count(*) from cdc_export.change_log where table_oid = 'other'::regclass";
    database.run("insert into other values (1)").await;
    until("a purge ends", async || database.one::<i64>(logged).await == 0).await;
    assert!(service.path(&kept).exists(), "{}", service.log());
    assert_eq!(database.one::<i64>("select count(*) from watermarks where log_lost is not null").await, 0);

    set_ahead(&database, "0").await;
    until("the clock is seen to go back", async || service.events("clock_jumped").len() == 2).await;
    database.run("update users set name = 'new' where id = 2").await;
    assert_eq!(service.export("delta", "a").await.1.ids(), [2]);
    assert_eq!(service.events("removal_by_age_begins"), Vec::<Value>::new());
}

/// Changes of a table whose times are local, with one row a year ahead of them.
#[tokio::test]
async fn local_times_are_read_by_their_own_clock() {
    for zone in ["America/New_York", "Asia/Kolkata"] {
        let local = |time: &str| format!("({time}) at time zone '{zone}'");
        let database = Database::empty_with(&format!(
            "create table t (id int primary key, at timestamp);
             insert into t select n, {} from generate_series(1, 5) n",
            local("now() - interval '1 hour'")
        ))
        .await;
        let catalog = Catalog::of(&format!(
            "[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\noverlap = \"0s\"\n\
             time_zone = \"{zone}\"\n"
        ));
        let service = catalog.start(&database).service().await;
        assert_eq!(export(&service, "full", "t", "a").await["rowsExported"], 5);
        database.run(&format!("insert into t values (6, {})", local("now() + interval '1 year'"))).await;
        export(&service, "incremental", "t", "a").await;
        let bounded = "select last_exported_at between now() - interval '5 minutes' and now() from watermarks";
        assert!(database.one::<bool>(bounded).await, "{zone}");

        database.run(&format!("update t set at = {} where id = 1", local("clock_timestamp()"))).await;
        let job = export(&service, "incremental", "t", "a").await;
        // The row ahead comes each time.
        assert_eq!(Csv::read(&service.path(&job)).ids(), [1, 6], "{zone}");
        assert_eq!(job["lateRows"], 0, "{zone}");
    }
}

/// In New York the clocks go back from 02:00 to 01:00 at 06:00 UTC of this day.
#[tokio::test]
async fn an_overlap_of_an_hour_more_finds_times_that_come_twice() {
    for (overlap, found) in [("5m", vec![1]), ("65m", vec![1, 2])] {
        let database = with_a_clock().await;
        let goes_to = |time: &str| {
            format!(
                "update public.clock set ahead = timestamptz '2026-11-01 {time}' - pg_catalog.real_clock_timestamp()"
            )
        };
        database
            .run("create table t (id int primary key, at timestamp); insert into t values (1, '2026-11-01 01:58')")
            .await;
        database.run(&goes_to("05:59Z")).await;
        let block = "[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n\
                     time_zone = \"America/New_York\"\n";
        let service = Catalog::of(&format!("{block}overlap = \"{overlap}\"\n")).start(&database).service().await;
        export(&service, "full", "t", "a").await;
        database.run(&(goes_to("06:10Z") + "; insert into t values (2, '2026-11-01 01:09')")).await;
        let job = export(&service, "incremental", "t", "a").await;
        assert_eq!(Csv::read(&service.path(&job)).ids(), found, "{overlap}");
    }
}

#[tokio::test]
async fn a_watermark_set_by_hand_is_a_moment_of_local_times() {
    let database = Database::empty_with(
        "create table t (id int primary key, at timestamp);
         insert into t select n, (now() - n * interval '1 hour') at time zone 'America/New_York'
         from generate_series(1, 5) n",
    )
    .await;
    let block = "[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\ntime_zone = \"America/New_York\"\n";
    let service = Catalog::of(block).serving(&database, &["t"]).await;
    export(&service, "full", "t", "a").await;
    database.run("update watermarks set last_exported_at = now() - interval '150 minutes'").await;
    let job = export(&service, "incremental", "t", "a").await;
    assert_eq!(Csv::read(&service.path(&job)).ids(), [1, 2]);
}

#[tokio::test]
async fn times_without_a_zone_need_one_if_they_alone_tell_the_changes() {
    let database = Database::empty_with("create table t (id int primary key, at timestamptz)").await;
    let block = "[[dataset]]\nname = \"t\"\ntable = \"t\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n";
    let catalog = Catalog::of(block);
    let service = catalog.start(&database).service().await;
    export(&service, "full", "t", "a").await;
    database.run("alter table t alter at type timestamp").await;
    let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": "t" })).await;
    assert_eq!(job["error"]["code"], "dataset_mismatch", "{job}");
    let why = "name its zone, as time_zone = \"America/New_York\"";
    assert!(job["error"]["detail"].as_str().unwrap().contains(why), "{job}");
    service.stop().await;

    ends(catalog.command(&database, &["datasets", "check"]).await, 2, why);
    ends(catalog.start(&database).output().await, 2, why);
    // A pattern's dataset isn't ready, and stops no start.
    let pattern = block.replace("[[dataset]]\nname = \"t\"\ntable = \"t\"", "[[tables]]\nmatch = [\"public.t\"]");
    database.run("create index on t (at)").await;
    let catalog = Catalog::of(&pattern);
    let service = catalog.start(&database).service().await;
    let described = service.get("/datasets/t").await;
    assert!(described["ready"] == false && described["problems"][0].as_str().unwrap().contains(why), "{described}");
    service.stop().await;

    catalog.write(&format!("{pattern}time_zone = \"UTC\"\n"));
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    catalog.write(&format!("{pattern}time_zone = \"America/New_Yrok\"\n"));
    let wrong = "there is no time zone of this name, such as Europe/Berlin";
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, wrong);
}
