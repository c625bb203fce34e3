//! The rules of `docs/alerts.yml`: what a process shows while something is wrong fires the alert that says so, and no
//! other. Prometheus's own tool evaluates the rules over two scrapes, one from before and one from while it is wrong.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::catalog::{Catalog, ended, submit};
use crate::harness::{Database, PROMPT, Service, lacks, planted, until};
use crate::keys;
use crate::metrics::Scrape;
use crate::network::{Proxy, url};

/// The datasets, a schedule that is always refused, and a receiver that is never there.
const FILE: &str = r#"
[[dataset]]
name = "users"
table = "users"
updated_at = "updated_at"

[[dataset]]
name = "polled"
table = "users"
updated_at = "updated_at"
capture = "timestamp"

[[dataset]]
name = "loose"
table = "loose"

[[dataset]]
name = "slow"
table = "slow"
filter = "takes_long(id)"

[[schedule]]
name = "yearly"
consumer = "scheduled"
dataset = "loose"
type = "delta"
every = "366d"

[[webhook]]
name = "closed"
url = "http://localhost:1/"
secret_env = "HOOK_SECRET"
allow_http = true
allow_private = true
"#;

const TABLES: &str = "
    create table loose (id int primary key);
    create table slow (id int primary key);
    insert into slow select generate_series(1, 100);
    create function takes_long(id int) returns boolean language plpgsql immutable
      as 'begin perform pg_sleep(0.2); return true; end'";

/// A process whose clients have a key if they need one.
struct Watched {
    database: Database,
    proxy: Proxy,
    catalog: Catalog,
    service: Service,
}

impl Watched {
    async fn start(auth: &str) -> Watched {
        let database = Database::new_with(TABLES).await;
        database.add_users(1, 5).await;
        let proxy = Proxy::to(&database.options).await;
        let catalog = Catalog::of(FILE);
        for dataset in ["users", "slow"] {
            catalog.track(&database, dataset).await;
        }
        let start = catalog.start(&database).with("DATABASE_URL", url(&database, &proxy)).with("AUTH", auth);
        let start = start
            .with("HOOK_SECRET", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3")
            .with("WORKERS", 4)
            .with("API_CONNECTIONS", 1)
            .with("GIVE_WAY_SECONDS", 1)
            .with("CHANGE_LOG_MAX_AGE", "30d")
            .with("FAILPOINTS", format!("store.claims_fail=time:1000,{PROMPT}"));
        let service = match auth {
            "keys" => keys::served(start, &database).await,
            _ => start.service().await,
        };
        Watched { database, proxy, catalog, service }
    }
}

/// Returns the alerts that fire within two hours, if the process shows `before` for five minutes, and then `after`.
/// `None` stands for a process that gives no answer.
fn fired(before: &Scrape, after: Option<&Scrape>) -> BTreeSet<String> {
    let mut file = format!(
        "rule_files: [{}]\nevaluation_interval: 30s\ntests:\n- interval: 30s\n  input_series:\n\
         \x20 - series: 'up{{job=\"cdc-export\", instance=\"a\"}}'\n    values: '1x10 {}x240'\n",
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/alerts.yml").display(),
        u8::from(after.is_some())
    );
    let series: BTreeSet<_> = before.series().into_iter().chain(after.iter().flat_map(|it| it.series())).collect();
    for (name, labels) in series.into_iter().filter(|_| after.is_some()) {
        let labels_text: Vec<_> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        let was = before.value(&name, &labels);
        let is = after.and_then(|after| after.value(&name, &labels));
        let first = was.map_or("_x10".to_owned(), |value| format!("{value}x10"));
        // What fails once fails again.
        let step =
            if name.ends_with("maintenance_failures_total") { is.unwrap_or(0.0) - was.unwrap_or(0.0) } else { 0.0 };
        let then = is.map_or("_x240".to_owned(), |value| format!("{value}+{step}x240"));
        let labels = [vec!["instance=\"a\"".to_owned()], labels_text].concat().join(",");
        writeln!(file, "  - series: '{name}{{{labels}}}'\n    values: '{first} {then}'").unwrap();
    }
    let expression = "group by (alertname) (max_over_time(ALERTS{alertstate=\"firing\"}[2h]))";
    writeln!(file, "  promql_expr_test: [{{expr: '{expression}', eval_time: 2h, exp_samples: []}}]").unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tests.yml"), &file).unwrap();
    let told = Command::new("promtool").args(["test", "rules"]).arg(folder.path().join("tests.yml")).output().unwrap();
    let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    assert!(told.contains("SUCCESS") || told.contains("alertname="), "{told}\n{file}");
    let names = told.split("alertname=\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
    names.collect()
}

fn names<const N: usize>(alerts: [&str; N]) -> BTreeSet<String> {
    alerts.iter().map(|name| format!("CdcExport{name}")).collect()
}

/// Fires each alert but `CdcExportAbsent`, which needs a Prometheus that knows no process. `tests/deploy_alerts.yml`
/// fires that one.
async fn fire_each(auth: &str) {
    let watched = Watched::start(auth).await;
    let Watched { database, proxy, catalog: _catalog, service } = &watched;
    let (loaded, _) = service.export("full", "reader").await;
    let ack = format!("/exports/{}/ack", loaded["jobId"].as_str().unwrap());
    assert_eq!(service.call("POST", &ack, &[]).await.status(), 200);
    service.export("full", "reader").await;
    service.export("full", "behind").await;
    let before = Scrape::of(service).await;
    assert_eq!(fired(&before, Some(&before)), names([]), "{auth}");

    // Exports that fail, and ones that give way.
    for consumer in ["one", "two", "three", "four"] {
        submit(service, "/exports/full", Some(consumer), json!({"dataset": "slow"})).await;
    }
    let reading = "select exists (select from pg_locks l join pg_stat_activity a using (pid)
                   where l.relation = 'slow'::regclass and l.granted and a.application_name like '%reader')";
    until("four exports gave way", async || {
        database.run("update cdc_export.jobs set run_at = clock_timestamp() where status = 'pending'").await;
        if database.one::<bool>(reading).await {
            database.open("lock table slow in access exclusive mode").await.rollback().await.unwrap();
        }
        service.events("export_gave_way").len() >= 4
    })
    .await;
    database
        .run("update cdc_export.jobs set cancel_requested_at = now() where status in ('pending', 'processing')")
        .await;
    let fails = "create or replace function takes_long(id int) returns boolean language plpgsql immutable
                   as 'begin raise exception ''no''; end'";
    database.run(fails).await;
    let failed = ended(service, "/exports/full", Some("five"), json!({"dataset": "slow"})).await;
    assert_eq!(failed["error"]["code"], "dataset_mismatch", "{failed}");
    database.run("alter table users disable trigger all").await;
    let failed = service.ended(&service.submit("delta", "behind").await).await;
    assert_eq!(failed["error"]["code"], "full_export_needed", "{failed}");

    let jobs = planted(
        "select 'waits' || n, 'gone', 1, 'full', 'pending', now() - interval '1 hour' from generate_series(1, 2) n
         union all select 'unpublished', 'users', 1, 'full', 'committed', now() - interval '2 hours'
         union all select 'lost' || n, 'users', 1, 'full', 'processing', now() - interval '1 minute' from generate_series(1, 3) n
         union all select 'told' || n, 'users', 1, 'full', 'cancelled', now() - interval '2 hours' from generate_series(1, 2) n",
    );
    let rest = "
        update cdc_export.jobs set lease_expires_at = now() - interval '1 hour', max_attempts = 1 where consumer_id like 'lost%';
        insert into cdc_export.deliveries (id, job, endpoint, event, created_at, run_at, dead_at)
          select gen_random_uuid(), id, 'closed', 'cancelled', created_at,
            case consumer_id when 'told1' then 'infinity' else now() + interval '1 hour' end,
            case consumer_id when 'told1' then created_at end
          from cdc_export.jobs where consumer_id like 'told%';
        update cdc_export.schedules set slot = now() - interval '400 days';
        update cdc_export.exports set published_at = published_at - interval '2 days', finished_at = finished_at - interval '2 days'
          where published_at is not null;
        insert into watermarks (consumer_id, dataset, last_exported_at) values ('polls', 'polled', now() - interval '3 days');
        insert into watermarks (consumer_id, log_lost) values ('rare', 'all');
        update watermarks set saved_at = now() - interval '2 days', deletions_saved_at = now() - interval '25 days'
          where deletions_snapshot is not null;
        create function refuse() returns trigger language plpgsql as $$ begin raise exception 'no'; end $$;
        create trigger refuse before delete on cdc_export.change_log for each statement execute function refuse()";
    database.run(&format!("{jobs} {rest}")).await;
    until("the purge fails, and lost jobs are taken over", async || {
        let scrape = Scrape::of(service).await;
        scrape.count("cdc_export_lease_takeovers_total", &[]) >= 3
            && scrape.count("cdc_export_maintenance_failures_total", &[("task", "purge")]) > 0
    })
    .await;
    let during = Scrape::of(service).await;
    let expected = names([
        "QueueStuck",
        "Unpublished",
        "UnpublishedLong",
        "DeliveriesOld",
        "DeliveriesDead",
        "Failed",
        "FullExportNeeded",
        "PositionGivenUp",
        "Behind",
        "WatermarkOld",
        "NotAcknowledged",
        "ScheduleOverdue",
        "ChangeLogNearItsCap",
        "MaintenanceFails",
        "LeaseTakeovers",
        "GivesWay",
    ]);
    assert_eq!(fired(&before, Some(&during)), expected, "{auth}");

    // The only connection of the API, and the folder.
    let lock = database.open("lock table cdc_export.lanes in access exclusive mode").await;
    let waits = async {
        loop {
            service.call("POST", "/exports/full", &[("X-Consumer-ID", "waits")]).await;
        }
    };
    let busy = async {
        until("the connection is in use", async || {
            let used = [("pool", "api"), ("state", "used")];
            let scrape = Scrape::of(service).await;
            scrape.count("cdc_export_pool_connections", &used) == 1
                && fired(&before, Some(&scrape)).contains("CdcExportPoolExhausted")
        })
        .await;
    };
    tokio::select! { () = busy => {}, () = waits => {} }
    lock.rollback().await.unwrap();
    std::fs::rename(service.output(), service.output().with_extension("away")).unwrap();
    until("the folder is gone", async || {
        fired(&before, Some(&Scrape::of(service).await)).contains("CdcExportOutputNotReady")
    })
    .await;
    std::fs::rename(service.output().with_extension("away"), service.output()).unwrap();

    // Claims that fail.
    let refuses = "create trigger refuse before update on cdc_export.jobs for each statement execute function refuse()";
    database.run(refuses).await;
    service.submit("full", "claimed-by-nobody").await;
    until("no job can be claimed", async || {
        fired(&before, Some(&Scrape::of(service).await)).contains("CdcExportWorkersNotReady")
    })
    .await;

    // The database.
    proxy.server.send_replace(database.options.clone().socket("/nonexistent"));
    let end = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and application_name like 'cdc-export %'";
    database.run(end).await;
    until("the database is away", async || {
        fired(&before, Some(&Scrape::of(service).await)).contains("CdcExportDatabaseDown")
    })
    .await;
    assert_eq!(fired(&before, None), names(["Down"]));
}

#[tokio::test]
async fn each_alert_fires_on_what_a_process_shows() {
    if !lacks("promtool", "prometheus") {
        fire_each("local").await;
    }
}

#[tokio::test]
async fn each_alert_fires_on_what_a_process_that_wants_keys_shows() {
    if !lacks("promtool", "prometheus") {
        fire_each("keys").await;
    }
}
