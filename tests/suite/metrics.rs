//! `/metrics`, read by a parser that knows Prometheus's text format and nothing of the service.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, eventually, planted, serving_users};
use crate::network::{Proxy, url};
use crate::webhooks::with_a_closed_door;

pub(crate) type Labels = BTreeMap<String, String>;

/// A scrape. Parsing is strict: it panics at anything that the format (Prometheus documentation, "Exposition formats",
/// text 0.0.4) doesn't allow, or recommends against.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    /// By family: its type.
    types: BTreeMap<String, String>,
    /// By series' name and labels.
    values: BTreeMap<(String, Labels), f64>,
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// `{a="b",c="d"} 5` → labels and the rest.
fn labels(text: &str) -> (Labels, &str) {
    let Some(mut rest) = text.strip_prefix('{') else { return (Labels::new(), text) };
    let mut labels = Labels::new();
    loop {
        let (name, after) = rest.split_once("=\"").expect("a label has a value");
        assert!(is_name(name), "{name}");
        let (mut value, mut chars) = (String::new(), after.char_indices());
        let end = loop {
            match chars.next().expect("a label's value ends") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().unwrap().1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} in {text}"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert_eq!(labels.insert(name.to_owned(), value), None, "{name} twice");
        rest = &after[end + 1..];
        match rest.split_at(1) {
            (",", next) => rest = next,
            ("}", next) => return (labels, next),
            (other, _) => panic!("{other} in {text}"),
        }
    }
}

impl Scrape {
    fn parse(text: &str) -> Scrape {
        assert!(text.ends_with('\n'));
        let mut scrape = Scrape::default();
        let mut family = String::new();
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').unwrap();
                assert!(is_name(name) && name.starts_with("cdc_export_") && words.ends_with('.'), "{line}");
                let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).expect("HELP, then TYPE");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
                assert_eq!(scrape.types.insert(name.to_owned(), kind.to_owned()), None, "{name} twice");
                family = name.to_owned();
                continue;
            }
            let (name, rest) = line.split_at(line.find(['{', ' ']).unwrap());
            let suffix = name.strip_prefix(&*family).expect("samples come behind their TYPE");
            let suffixes: &[&str] =
                if scrape.types[&family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.contains(&suffix), "{line}");
            let (labels, rest) = labels(rest);
            let value = rest.strip_prefix(' ').unwrap();
            let value = if value == "+Inf" { f64::INFINITY } else { value.parse().unwrap() };
            assert_eq!(scrape.values.insert((name.to_owned(), labels), value), None, "twice: {line}");
        }
        scrape
    }

    pub(crate) async fn of(service: &Service) -> Scrape {
        let answer = service.call("GET", "/metrics", &[]).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
        Scrape::parse(&answer.text().await.unwrap())
    }

    /// Returns the names and labels of all series.
    pub(crate) fn series(&self) -> Vec<(String, Labels)> {
        self.values.keys().cloned().collect()
    }

    pub(crate) fn value(&self, name: &str, labels: &Labels) -> Option<f64> {
        self.values.get(&(name.to_owned(), labels.clone())).copied()
    }

    /// Returns the sum of the series of this name that have these labels, or `None` without such a series.
    fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> Option<f64> {
        let has = |labels: &Labels| wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|v| v == value));
        let found = self.values.iter().filter(|((n, labels), _)| n == name && has(labels)).map(|(_, value)| *value);
        found.reduce(|sum, value| sum + value)
    }

    pub(crate) fn count(&self, name: &str, wanted: &[(&str, &str)]) -> u64 {
        self.sum(name, wanted).unwrap_or_else(|| panic!("no {name} {wanted:?} in {self:#?}")) as u64
    }

    /// Returns the number of jobs that ended with this status.
    fn jobs(&self, export_type: &str, status: &str) -> u64 {
        let labels = [("dataset", "users"), ("export_type", export_type), ("status", status)];
        self.sum("cdc_export_jobs_total", &labels).unwrap_or(0.0) as u64
    }

    fn label_names(&self, family: &str) -> BTreeSet<&str> {
        let suffixes = ["", "_bucket", "_sum", "_count"];
        let of_it = |name: &str| name.strip_prefix(family).is_some_and(|suffix| suffixes.contains(&suffix));
        let labels = self.values.keys().filter(|(name, _)| of_it(name)).flat_map(|(_, labels)| labels.keys());
        labels.map(String::as_str).filter(|name| *name != "le").collect()
    }
}

/// Waits for a scrape that shows something: values from the database are at most a second old.
async fn scrape_with(service: &Service, what: &str, shows: impl Fn(&Scrape) -> bool) -> Scrape {
    eventually(what, || async { Some(Scrape::of(service).await).filter(|scrape| shows(scrape)) }).await
}

#[tokio::test]
async fn everything_begins_at_zero() {
    let (_, service) = serving_users(0).await;
    let scrape = Scrape::of(&service).await;
    for name in
        ["jobs_total", "failures_total", "rows_total", "bytes_total", "late_rows_total", "duration_seconds_count"]
    {
        assert_eq!(scrape.sum(&format!("cdc_export_{name}"), &[]), None, "no dataset has had a job");
    }
    assert_eq!(scrape.count("cdc_export_lease_takeovers_total", &[]), 0);
    assert_eq!(scrape.count("cdc_export_maintenance_failures_total", &[("task", "purge")]), 0);
    assert_eq!(scrape.count("cdc_export_queue_oldest_seconds", &[]), 0);
    assert_eq!(scrape.count("cdc_export_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1);
    assert_eq!(scrape.count("cdc_export_database_up", &[]), 1);
    assert_eq!(scrape.count("cdc_export_output_ready", &[]), 1);
    for (pool, most) in [("api", 10), ("counting", 2), ("control", 3)] {
        assert_eq!(scrape.count("cdc_export_pool_connections", &[("pool", pool), ("state", "max")]), most, "{pool}");
        let open = scrape.count("cdc_export_pool_connections", &[("pool", pool), ("state", "idle")])
            + scrape.count("cdc_export_pool_connections", &[("pool", pool), ("state", "used")]);
        assert!(open <= most, "{pool}: {open}");
    }
}

#[tokio::test]
async fn a_purge_that_fails_is_counted() {
    let schema = "
        create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
        create trigger refuse before delete on cdc_export.change_log for each statement execute function refuse()";
    let database = Database::new_with(schema).await;
    let service = Start::on(&database).service().await;
    let failures = |scrape: &Scrape| scrape.count("cdc_export_maintenance_failures_total", &[("task", "purge")]);
    scrape_with(&service, "a failed purge", |scrape| failures(scrape) > 0).await;
}

#[tokio::test]
async fn ends_of_jobs_are_counted_with_what_they_amount_to() {
    let (database, service) = serving_users(19).await;
    let (full, file) = service.export("full", "one").await;
    service.says("export_completed", full["jobId"].as_str().unwrap()).await;
    let scrape = Scrape::of(&service).await;
    let series = [("dataset", "users"), ("export_type", "full")];
    assert_eq!((scrape.jobs("full", "completed"), scrape.jobs("delta", "completed")), (1, 0));
    assert_eq!(scrape.count("cdc_export_rows_total", &series), file.rows.len() as u64);
    assert_eq!(scrape.count("cdc_export_bytes_total", &series), full["bytesWritten"].as_u64().unwrap());
    assert_eq!(scrape.count("cdc_export_duration_seconds_count", &series[1..]), 1);
    let seconds = scrape.sum("cdc_export_duration_seconds_sum", &series[1..]).unwrap();
    let failed = [("dataset", "users"), ("export_type", "full"), ("status", "failed")];
    assert_eq!(scrape.sum("cdc_export_jobs_total", &failed), Some(0.0), "the first failure is an increase");
    assert!((seconds - full["durationSeconds"].as_f64().unwrap()).abs() < 0.001, "{seconds}: {full}");
    let buckets = scrape
        .values
        .iter()
        .filter(|((name, labels), _)| name == "cdc_export_duration_seconds_bucket" && labels["export_type"] == "full");
    for ((_, labels), value) in buckets {
        let most: f64 = labels["le"].replace("+Inf", "inf").parse().unwrap();
        assert_eq!(*value, f64::from(seconds <= most), "{labels:?}");
    }

    // Two rows with times before the watermark, and one after it.
    database.run("update users set name = 'late', updated_at = '2025-12-01' where id in (3, 4)").await;
    database.run("update users set name = 'new', updated_at = '2026-03-01' where id = 5").await;
    let (delta, _) = service.export("delta", "one").await;
    assert_eq!((&delta["rowsExported"], &delta["lateRows"]), (&json!(3), &json!(2)));
    service.says("export_completed", delta["jobId"].as_str().unwrap()).await;

    // A delta after a TRUNCATE fails.
    database.run("truncate users").await;
    let failed = service.submit("delta", "one").await;
    assert_eq!(service.ended(&failed).await["error"]["code"], "full_export_needed");
    service.says("export_failed", &failed).await;

    // One is cancelled as it runs, another as it waits behind that.
    let held = database.hold_exports().await;
    let [running, waiting] = [service.submit("full", "two").await, service.submit("full", "two").await];
    service.becomes(&running, "processing").await;
    for job in [&waiting, &running] {
        assert_eq!(service.call("POST", &format!("/exports/{job}/cancel"), &[]).await.status(), 202);
        service.becomes(job, "cancelled").await;
    }
    // Cancelled already, which is no second end.
    assert_eq!(service.call("POST", &format!("/exports/{running}/cancel"), &[]).await.status(), 200);
    service.says("export_cancelled", &running).await;
    held.rollback().await.unwrap();

    let scrape = Scrape::of(&service).await;
    let ends = |export_type| ["completed", "failed", "cancelled"].map(|status| scrape.jobs(export_type, status));
    assert_eq!((ends("full"), ends("incremental"), ends("delta")), ([1, 0, 2], [0, 0, 0], [1, 1, 0]));
    assert_eq!(scrape.count("cdc_export_failures_total", &[("dataset", "users"), ("code", "full_export_needed")]), 1);
    assert_eq!(scrape.count("cdc_export_failures_total", &[]), 1);
    let of_delta = [("dataset", "users"), ("export_type", "delta")];
    assert_eq!(scrape.count("cdc_export_late_rows_total", &of_delta), 2);
    assert_eq!(scrape.count("cdc_export_late_rows_total", &[]), 2);
    assert_eq!(scrape.count("cdc_export_rows_total", &of_delta), 3);
}

/// A thousand datasets have a thousand times as many.
#[tokio::test]
async fn a_dataset_has_at_most_twelve_series() {
    let (_, service) = serving_users(5).await;
    for export_type in ["full", "incremental", "delta"] {
        let (job, _) = service.export(export_type, "one").await;
        service.says("export_completed", job["jobId"].as_str().unwrap()).await;
    }
    let scrape = Scrape::of(&service).await;
    let is_counter = |name: &str| name.ends_with("_total") || name.starts_with("cdc_export_duration");
    let series = scrape.values.keys().filter(|(name, labels)| is_counter(name) && labels.contains_key("dataset"));
    assert_eq!(series.count(), 12);
}

#[tokio::test]
async fn a_take_over_is_counted_by_who_takes_over() {
    // With a second attempt, and without one.
    for (attempts, status) in [(2, "completed"), (1, "failed")] {
        let database = Database::with_users(5).await;
        let start = || Start::on(&database).with("LEASE_SECONDS", 3).with("MAX_ATTEMPTS", attempts);
        let mut doomed = start().with("FAILPOINTS", "worker.opened=hold").service().await;
        let id = doomed.submit("full", "one").await;
        doomed.reaches("worker.opened").await;
        doomed.signal(Signal::SIGKILL);
        doomed.dies().await;
        let heir = start().sharing_output(&doomed).service().await;
        heir.becomes(&id, status).await;
        heir.says(&format!("export_{status}"), &id).await;
        let scrape = Scrape::of(&heir).await;
        assert_eq!(scrape.count("cdc_export_lease_takeovers_total", &[]), 1);
        assert_eq!((scrape.jobs("full", status), scrape.count("cdc_export_jobs_total", &[])), (1, 1));
        let exhausted = scrape.sum("cdc_export_failures_total", &[("code", "attempts_exhausted")]);
        assert_eq!(exhausted, (status == "failed").then_some(1.0));
    }
}

#[tokio::test]
async fn the_queue_is_what_has_not_ended() {
    let database = Database::new().await;
    let service = Start::on(&database).with("WORKERS", 1).service().await;
    let (held, _) = service.held_export(&database, "full", "one").await;
    for consumer in ["one", "two", "three"] {
        service.submit("full", consumer).await;
    }
    database
        .run("update cdc_export.jobs set created_at = created_at - interval '1 hour' where consumer_id = 'three'")
        .await;
    let queued = |scrape: &Scrape| {
        ["pending", "processing"].map(|status| scrape.count("cdc_export_queue_jobs", &[("status", status)]))
    };
    let full = |scrape: &Scrape| queued(scrape) == [3, 1] && scrape.count("cdc_export_queue_oldest_seconds", &[]) > 0;
    let scrape = scrape_with(&service, "four jobs", full).await;
    let oldest = scrape.count("cdc_export_queue_oldest_seconds", &[]);
    assert!((3600..3660).contains(&oldest), "{oldest}");
    held.rollback().await.unwrap();
    let empty = |scrape: &Scrape| queued(scrape) == [0, 0];
    let scrape = scrape_with(&service, "an empty queue", empty).await;
    assert_eq!(scrape.sum("cdc_export_queue_oldest_seconds", &[]), Some(0.0));
}

#[tokio::test]
async fn of_many_consumers_those_furthest_behind_have_a_series() {
    let changes = "insert into watermarks (consumer_id, last_exported_at)
                   select 'c' || n, now() - n * interval '1 day' from generate_series(1, 150) as n;
                   insert into watermarks (consumer_id, last_exported_at) values ('ahead', now() + interval '1 day');
                   -- Neither is one that an export could have.
                   insert into watermarks (consumer_id, last_exported_at) values (E'\\n\" 1\\nforged 1', '2000-01-01');
                   insert into watermarks (consumer_id, dataset, last_exported_at) values ('c1', 'gone', '2000-01-01')";
    let database = Database::new_with(changes).await;
    // A dataset with triggers has no such series.
    let users =
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\ncapture = \"timestamp\"\n";
    let catalog = Catalog::of(users);
    let service = catalog.start(&database).service().await;
    let scrape = Scrape::of(&service).await;
    let ages = |scrape: &Scrape| -> BTreeMap<String, u64> {
        let of_it = scrape.values.iter().filter(|((name, _), _)| name == "cdc_export_watermark_age_seconds");
        of_it.map(|((_, labels), value)| (labels["consumer"].clone(), *value as u64)).collect()
    };
    let seen = ages(&scrape);
    let furthest: BTreeSet<_> = (52..=150).map(|n| format!("c{n}")).collect();
    assert_eq!(seen.keys().cloned().collect::<BTreeSet<_>>(), furthest, "99, since an odd one is among the hundred");
    let day = 24 * 60 * 60;
    assert!((150 * day..150 * day + 60).contains(&seen["c150"]), "{}", seen["c150"]);
    assert_eq!(scrape.count("cdc_export_watermarks_left_out", &[]), 152 - 99);

    database.run("delete from watermarks where consumer_id not in ('c7', 'ahead')").await;
    let scrape = scrape_with(&service, "few consumers", |scrape| ages(scrape).len() == 2).await;
    assert_eq!(ages(&scrape)["ahead"], 0);
    assert_eq!(scrape.count("cdc_export_watermarks_left_out", &[]), 0);
}

#[tokio::test]
async fn where_changes_are_not_captured_the_age_of_the_last_export_counts() {
    let (database, service) = serving_users(2).await;
    service.export("full", "a").await;
    let behind = |scrape: &Scrape| scrape.sum("cdc_export_behind_seconds", &[("consumer", "a")]);
    assert_eq!(behind(&Scrape::of(&service).await), Some(0.0));
    database.run("alter table users disable trigger all").await;
    scrape_with(&service, "an age", |scrape| behind(scrape) >= Some(1.0)).await;
}

#[tokio::test]
async fn of_consumers_that_acknowledge_it_is_seen_what_they_have_not() {
    let (database, service) = serving_users(5).await;
    let mut jobs = Vec::new();
    for export_type in ["full", "delta", "delta"] {
        jobs.push(service.export(export_type, "a").await.0);
    }
    service.export("full", "never").await;
    let names = ["cdc_export_unacknowledged_exports", "cdc_export_unacknowledged_seconds"];
    let seen = |scrape: &Scrape| names.map(|name| scrape.sum(name, &[("consumer", "a"), ("dataset", "users")]));
    let scrape = Scrape::of(&service).await;
    assert_eq!(seen(&scrape), [None, None], "nobody acknowledges");
    let ack = async |number: usize| {
        let path = format!("/exports/{}/ack", jobs[number - 1]["jobId"].as_str().unwrap());
        assert_eq!(service.call("POST", &path, &[]).await.status(), 200);
    };
    database
        .run("update cdc_export.exports set published_at = published_at - interval '1 hour' where number = 2")
        .await;
    ack(1).await;
    let scrape = scrape_with(&service, "two exports", |scrape| seen(scrape)[0] == Some(2.0)).await;
    let seconds = seen(&scrape)[1].unwrap();
    assert!((3600.0..3660.0).contains(&seconds), "{seconds}");
    assert_eq!(scrape.sum(names[0], &[("consumer", "never")]), None);
    ack(3).await;
    scrape_with(&service, "none", |scrape| seen(scrape) == [Some(0.0), Some(0.0)]).await;

    // The metrics show the hundred lanes that wait longest, and none of a dataset that doesn't exist any more.
    let rows = "select 'c' || n, dataset, 1, 'delta', 'completed', now() - n * interval '1 day'
                from generate_series(1, 150) n, unnest(array['users', 'gone']) dataset";
    // They ended a moment ago, so that retention keeps them.
    let rest = "update cdc_export.exports set finished_at = now() where status = 'completed';
                insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number, acknowledged)
                select consumer_id, dataset, 1, 1, 0 from exports where consumer_id like 'c%'";
    database.run(&(planted(rows) + rest)).await;
    let of_it = |scrape: &Scrape| -> BTreeSet<String> {
        let found = scrape.values.keys().filter(|(name, _)| name == names[0]);
        found.map(|(_, labels)| format!("{} {}", labels["consumer"], labels["dataset"])).collect()
    };
    let longest: BTreeSet<_> = (51..=150).map(|n| format!("c{n} users")).collect();
    scrape_with(&service, "a hundred", |scrape| of_it(scrape) == longest).await;
}

#[tokio::test]
async fn the_change_log_is_seen_to_grow_toward_its_cap() {
    let database = Database::with_users(100).await;
    let service =
        Start::on(&database).with("CHANGE_LOG_MAX_BYTES", "6KiB").with("CHANGE_LOG_MAX_AGE", "1h").service().await;
    service.export("full", "one").await;
    let scrape = Scrape::of(&service).await;
    assert_eq!(scrape.count("cdc_export_change_log_max_bytes", &[]), 6144);
    assert_eq!(scrape.count("cdc_export_change_log_max_age_seconds", &[]), 3600);

    database.run("update users set name = 'again'").await;
    let held = |scrape: &Scrape| (5_500..6_144).contains(&scrape.count("cdc_export_change_log_held_bytes", &[]));
    let scrape = scrape_with(&service, "a hundred rows held", held).await;
    assert_eq!(scrape.count("cdc_export_positions_given_up", &[]), 0);
    let bytes: i64 = database.one("select pg_total_relation_size('cdc_export.change_log')").await;
    assert_eq!(scrape.count("cdc_export_change_log_bytes", &[]), bytes.unsigned_abs());
    // Postgres's statistics come a little later.
    let counted = |scrape: &Scrape| scrape.count("cdc_export_change_log_rows", &[]) >= 100;
    scrape_with(&service, "a hundred rows logged", counted).await;

    database.run("update watermarks set deletions_saved_at = now() - interval '30 minutes'").await;
    let older = |scrape: &Scrape| scrape.count("cdc_export_change_log_held_seconds", &[]) >= 1800;
    scrape_with(&service, "half an hour held", older).await;
    database.run("update users set name = 'once more'; update users set name = 'and once more'").await;
    let given_up = |scrape: &Scrape| scrape.count("cdc_export_positions_given_up", &[]) == 1;
    let scrape = scrape_with(&service, "a position given up", given_up).await;
    assert_eq!(scrape.count("cdc_export_change_log_held_seconds", &[]), 0, "nobody's deletions are held");
    service.export("full", "one").await;
    scrape_with(&service, "a full export heals it", |s| s.count("cdc_export_positions_given_up", &[]) == 0).await;
}

#[tokio::test]
async fn without_a_database_a_scrape_tells_so() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("API_CONNECTIONS", 2);
    let service = service.service().await;
    let (job, _) = service.export("full", "one").await;
    service.says("export_completed", job["jobId"].as_str().unwrap()).await;
    assert_eq!(Scrape::of(&service).await.count("cdc_export_database_up", &[]), 1);
    proxy.open.send_replace(false);
    let down = |scrape: &Scrape| scrape.count("cdc_export_database_up", &[]) == 0;
    scrape_with(&service, "a database that is down", down).await;

    // Many more than there are connections: they share one look, which some of them have to wait for.
    let looks = || service.events("metrics_incomplete").len();
    let (scrapes, shared) = eventually("a look", || async {
        let before = looks();
        let scrapes = join_all((0..20).map(async |_| Scrape::of(&service).await)).await;
        let shared = looks() - before;
        (shared > 0).then_some((scrapes, shared))
    })
    .await;
    assert!(shared <= 3, "{shared} looks for 20 scrapes, where one lasts a second");
    for scrape in scrapes {
        assert_eq!((scrape.count("cdc_export_database_up", &[]), scrape.jobs("full", "completed")), (0, 1));
        for unknown in
            ["queue_jobs", "queue_oldest_seconds", "behind_seconds", "unacknowledged_seconds", "change_log_rows"]
        {
            assert_eq!(scrape.sum(&format!("cdc_export_{unknown}"), &[]), None, "an old value would be believed");
        }
    }
    assert!(!service.events("metrics_incomplete").is_empty());
    proxy.open.send_replace(true);
    let up = |scrape: &Scrape| scrape.sum("cdc_export_queue_jobs", &[]).is_some();
    scrape_with(&service, "the database again", up).await;
}

#[tokio::test]
async fn a_folder_that_takes_no_file_is_not_ready() {
    let database = Database::new().await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let scrape = Scrape::of(&service).await;
    assert_eq!(scrape.count("cdc_export_output_ready", &[]), 1);
    assert_eq!(scrape.sum("cdc_export_pool_connections", &[("pool", "control")]), None, "it runs no exports");
    std::fs::remove_dir_all(service.output()).unwrap();
    let gone = |scrape: &Scrape| scrape.count("cdc_export_output_ready", &[]) == 0;
    assert_eq!(scrape_with(&service, "a folder that is gone", gone).await.count("cdc_export_database_up", &[]), 1);
}

#[tokio::test]
async fn a_worker_without_an_api_is_watched_on_its_own_port() {
    let database = Database::new().await;
    let api = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let worker = Start::on(&database).sharing_output(&api).arguments(&["worker"]).with("METRICS_PORT", 0);
    let worker = worker.service().await;
    let (job, _) = api.export("full", "one").await;
    worker.says("export_completed", job["jobId"].as_str().unwrap()).await;
    assert_eq!(Scrape::of(&worker).await.jobs("full", "completed"), 1);
    assert_eq!(Scrape::of(&api).await.jobs("full", "completed"), 0);
    assert_eq!(worker.call("GET", "/health/ready", &[]).await.status(), 200);
    assert_eq!(worker.call("GET", "/metrics", &[("Host", "example.com")]).await.status(), 403);
    assert_eq!(worker.call("GET", "/exports", &[]).await.status(), 404);
}

/// Returns the rows of the table in `docs/METRICS.md`: name, type, names of labels.
fn documented() -> BTreeMap<String, (String, BTreeSet<String>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    let text = std::fs::read_to_string(file).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `cdc_export_"));
    let row = |row: &str| {
        let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (format!("cdc_export_{}", cells[0]), (cells[1].to_owned(), labels))
    };
    rows.map(row).collect()
}

#[tokio::test]
async fn the_documents_table_is_what_a_scrape_shows() {
    let changes = "
        insert into watermarks (consumer_id, last_exported_at, live_snapshot) values ('one', now(), pg_current_snapshot());
        insert into watermarks (consumer_id, dataset, last_exported_at) values ('one', 'polled', now());
        insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number, acknowledged) values ('one', 'users', 1, 1, 1)";
    let database = Database::new_with(changes).await;
    let service = with_a_closed_door(
        &database,
        "[[dataset]]\nname = \"polled\"\ntable = \"users\"\nupdated_at = \"updated_at\"\ncapture = \"timestamp\"\n\
         [[schedule]]\nname = \"yearly\"\nconsumer = \"one\"\ndataset = \"users\"\ntype = \"full\"\nevery = \"366d\"\n",
    )
    .await;
    let has_run = |scrape: &Scrape| {
        let shows = |name| scrape.types.contains_key(name);
        shows("cdc_export_schedule_last_run_seconds") && shows("cdc_export_deliveries_undelivered")
    };
    let scrape = scrape_with(&service, "the schedule runs, and its end is not told", has_run).await;
    let shown = scrape.types.iter().map(|(name, kind)| {
        let labels = scrape.label_names(name).into_iter().map(str::to_owned).collect();
        (name.clone(), (kind.clone(), labels))
    });
    let mut documented = documented();
    // These begin with the first failure, and with the first late row.
    for name in ["cdc_export_failures_total", "cdc_export_late_rows_total"] {
        assert!(documented.remove(name).is_some());
    }
    assert_eq!(documented, shown.collect());
}

#[test]
fn every_metric_is_documented_and_alerts_name_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
    let named = |text: &str, before: &str| -> BTreeSet<String> {
        let name = |rest: &str| rest.split(|c: char| !(c.is_ascii_lowercase() || c == '_')).next().unwrap().to_owned();
        let found = text.match_indices(before).map(|(at, _)| name(&text[at + before.len() - "cdc_export_".len()..]));
        found.collect()
    };
    let constants = named(&read("src/telemetry/metrics.rs"), "(\"cdc_export_");
    let constants: BTreeSet<_> =
        constants.into_iter().chain(named(&read("src/telemetry/metrics.rs"), "    \"cdc_export_")).collect();
    let documented: BTreeSet<_> = documented().into_keys().collect();
    assert_eq!(constants, documented);
    let used = named(&read("docs/alerts.yml"), "cdc_export_");
    assert!(used.len() > 5);
    assert_eq!(used.difference(&documented).collect::<Vec<_>>(), Vec::<&String>::new());
}
