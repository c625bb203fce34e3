//! Beside many jobs that have ended, every question costs what its answer has. `TEST_JOBS=1000000` has as many of them
//! as that, and tells how long each list took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, ends, eventually, option_env, planted, until};
use crate::plans::{cost_of, log_plans, plans};

/// So many, and some that are rare. Those of the consumer `early` are all older than the others, so that whoever looks
/// for them among the newest passes over everything.
async fn with_jobs() -> Database {
    let database = Database::new().await;
    let jobs: u64 = option_env("TEST_JOBS").map_or(36_000, |jobs| jobs.parse().unwrap());
    let rows = format!(
        "select consumer, dataset, n, type, status, at from generate_series(1, {jobs}) n,
         lateral (
           select timestamptz '2026-01-01 00:00:00+00' + n * interval '1 second' as at,
             case when n <= {jobs} / 3 then 'early' when n % 20 = 19 then null else 'c' || n % 150 end as consumer,
             case when n % 10 = 4 and n > {jobs} / 3 then 'orders' else 'users' end as dataset,
             case when n % 50 = 0 then 'full' when n % 7 = 0 then 'incremental' else 'delta' end as type,
             case when n <= {jobs} / 3 then 'completed' when n % 60 = 4 then 'failed' when n % 100 = 5 then 'cancelled' else 'completed' end
               as status) x
         union all
         select consumer, dataset, n, type, status, '2025-12-01'
         from (values (-1, 'c1', 'rare', 'full', 'failed'), (-2, 'c2', 'users', 'incremental', 'pending'), (-3, 'early', 'users', 'full', 'pending'),
           (-4, 'c4', 'users', 'delta', 'processing'), (-5, 'c5', 'users', 'delta', 'committed')) rare (n, consumer, dataset, type, status)"
    );
    let rest = format!(
        "update cdc_export.jobs set run_at = now() + interval '1 day' where status = 'pending';
         insert into cdc_export.files (job, dataset, part, staged_name, place, bytes, rows, sha256)
         select job, dataset, 1, 'staged', '{{\"folder\": {{\"inode\": \"1\", \"modifiedNs\": \"1\"}}}}', 0, 0, sha256
         from cdc_export.exports where status = 'completed';
         insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number)
         select distinct coalesce(consumer_id, ''), dataset, {jobs}, {jobs} from exports"
    );
    for table in ["jobs", "exports"] {
        database.run(&format!("alter table cdc_export.{table} set (autovacuum_enabled = false)")).await;
    }
    database.run(&(planted(&rows) + &rest)).await;
    database.run("vacuum analyze cdc_export.jobs, cdc_export.exports").await;
    database
}

/// Returns the number of entries that each plan of a statement read from jobs and exports, and the number of those that
/// a filter threw away. No plan scans a table.
fn read(database: &Database, statement: &str) -> Vec<(u64, u64)> {
    plans(database, statement).iter().map(|plan| cost(plan)).collect()
}

fn cost(plan: &str) -> (u64, u64) {
    let [jobs, exports] = ["jobs", "exports"].map(|table| {
        assert!(!plan.contains(&format!("Seq Scan on {table}")), "{plan}");
        cost_of(plan, table)
    });
    (jobs.0 + exports.0, jobs.1 + exports.1)
}

/// A list's ids, and how long it took.
async fn listed(service: &Service, query: &str, key: &str) -> (Vec<String>, Duration) {
    let begun = Instant::now();
    let answer = service.call("GET", &format!("/exports?{query}"), &[("Authorization", key)]).await;
    let status = answer.status();
    let page: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{query}: {page}");
    let items = page["items"].as_array().unwrap();
    (items.iter().map(|job| job["jobId"].as_str().unwrap().to_owned()).collect(), begun.elapsed())
}

/// A new key of these consumers, as a header's value.
async fn key(database: &Database, name: &str, consumers: &[String]) -> String {
    let mut arguments = vec!["keys", "create", "--json", "--name", name];
    consumers.iter().for_each(|consumer| arguments.extend(["--consumer", consumer]));
    arguments.extend((!consumers.is_empty()).then_some("--all-datasets"));
    let (printed, _) = ends(Start::on(database).arguments(&arguments).output().await, 0, "");
    format!("Bearer {}", serde_json::from_str::<Value>(&printed).unwrap()["key"].as_str().unwrap())
}

/// Returns an id below those of all jobs of this time or later.
fn first_id(time: &str) -> String {
    let millis = chrono::DateTime::parse_from_rfc3339(time).unwrap().timestamp_millis();
    uuid::Uuid::from_u128(u128::from(millis.unsigned_abs()) << 80).to_string()
}

/// Returns the ids that a list should have, by the plainest possible statement.
async fn expected(database: &Database, filter: &BTreeMap<&str, &str>, among: &str, limit: u32) -> Vec<String> {
    let condition = |column: &str, name: &str| {
        filter.get(name).map(|value| format!(" and {column} = '{value}'")).unwrap_or_default()
    };
    let before = filter.get("before").map(|id| format!(" and job < '{id}'")).unwrap_or_default();
    let conditions = [
        condition("consumer_id", "consumer"),
        condition("dataset", "dataset"),
        condition("export_type", "exportType"),
        condition("status", "status"),
    ];
    let conditions = conditions.concat();
    let list =
        format!("select job::text from exports where {among}{conditions}{before} order by job desc limit {limit}");
    database.all(&list).await
}

#[tokio::test]
async fn every_filter_of_the_list_is_served_by_an_index() {
    let database = with_jobs().await;
    let some: Vec<String> =
        (0..40).map(|n| format!("c{}", n * 3)).chain(["early".to_owned(), "nobody".to_owned()]).collect();
    let lone = ["nobody".to_owned()];
    let keys = [
        ("true".to_owned(), key(&database, "all", &[]).await),
        (format!("consumer_id = any ('{{{}}}')", some.join(",")), key(&database, "some", &some).await),
        ("consumer_id = 'nobody'".to_owned(), key(&database, "lone", &lone).await),
    ];
    log_plans(&database).await;

    let of = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"users\"\n");
    let catalog = Catalog::of(&["users", "rare", "nothing"].map(of).concat());
    let service = catalog
        .start(&database)
        .with("AUTH", "keys")
        .with("RATE_LIMIT", "1000000/s")
        .arguments(&["serve", "--no-workers"])
        .service()
        .await;
    let mut times = Vec::new();
    for consumer in [None, Some("early"), Some("c3"), Some("nobody")] {
        for dataset in [None, Some("users"), Some("rare"), Some("nothing")] {
            for export_type in [None, Some("full")] {
                for status in
                    [None, Some("pending"), Some("processing"), Some("completed"), Some("failed"), Some("cancelled")]
                {
                    let filter =
                        [("consumer", consumer), ("dataset", dataset), ("exportType", export_type), ("status", status)];
                    let filter: BTreeMap<_, _> =
                        filter.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
                    let query = filter.iter().map(|(name, value)| format!("{name}={value}&")).collect::<String>();
                    for (among, key) in &keys {
                        // Before the first job that isn't `early`'s, and before any.
                        for before in [None, Some("2026-01-01T00:00:10Z"), Some("2025-01-01T00:00:00Z")] {
                            let before = before.map(first_id);
                            let mut filter = filter.clone();
                            filter.extend(before.as_deref().map(|id| ("before", id)));
                            let cursor = before.as_ref().map(|id| format!("&cursor={id}")).unwrap_or_default();
                            let query = format!("{query}limit=30{cursor}");
                            let (ids, time) = listed(&service, &query, key).await;
                            assert_eq!(ids, expected(&database, &filter, among, 30).await, "{query} of {among}");
                            times.push((time, query));
                        }
                    }
                }
            }
        }
    }
    times.sort();
    println!("lists: median {:?}, slowest {:?}", times[times.len() / 2].0, &times[times.len() - 3..]);
    let costs = read(&database, "store.lists.jobs");
    assert!(costs.len() > 300, "{}", costs.len());
    // Some entries of each of the lists that it is merged of, at most 42 consumers' 15, and twice the page.
    let most = costs.iter().map(|(read, _)| *read).max().unwrap();
    assert!((60..6_000).contains(&most), "{most}");
    // The lists of exports have the open ones of all statuses: here the few rare ones.
    assert!(costs.iter().all(|(_, filtered)| *filtered < 10), "{costs:?}");
}

/// No statement that runs again and again, or at each request, reads the jobs that have ended.
#[tokio::test]
async fn nothing_reads_all_jobs_again_and_again() {
    let database = with_jobs().await;
    database.add_users(1, 5).await;
    // A lane's commit looks for its last completed job, which is behind all jobs that failed since.
    let rows =
        "select 'failing', 'users', n, 'delta', 'failed', timestamptz '2026-01-01' from generate_series(1, 20000) n";
    let lane = "insert into cdc_export.lanes (consumer_id, dataset, last_sequence) values ('failing', 'users', 20000)";
    database.run(&(planted(rows) + lane)).await;
    // These names continue after another name's whole stem.
    let now: String = database.one("select to_char(now() at time zone 'UTC', 'YYYYMMDD\"T\"HH24')").await;
    let statements = format!(
        "update cdc_export.exports set output_filename = 'full_failing_{now}' || output_filename where lane_sequence % 2 = 0 and consumer_id = 'early'"
    );
    database.run(&statements).await;
    // All lanes acknowledge: most are nearly as far as they can be, and one is as far behind.
    let statements = "update cdc_export.lanes set acknowledged = case consumer_id when 'early' then 1 else last_number - 1500 end where consumer_id <> ''";
    database.run(statements).await;
    database.run("vacuum analyze cdc_export.jobs, cdc_export.exports").await;
    log_plans(&database).await;
    let service = Start::on(&database).with("RETAIN_FILES", "9d,20").with("RETAIN_JOBS", "90000d,20").service().await;
    let (full, _) = service.export("full", "failing").await;
    let full = full["jobId"].as_str().unwrap();
    // Names are counted where one is taken already: by another export of the same second.
    eventually("two exports of one second", || async {
        for _ in 0..2 {
            service.call("POST", "/exports", &[]).await;
        }
        (!plans(&database, "files.names_taken").is_empty()).then_some(())
    })
    .await;
    // One caller says what it loaded last, and another one was away for long.
    let after = serde_json::json!({ "after": full });
    let delta = service
        .client
        .post(format!("{}/exports/delta", service.address))
        .header("X-Consumer-ID", "failing")
        .json(&after);
    assert_eq!(delta.send().await.unwrap().status(), 202);
    let oldest: String =
        database.one("select job::text from exports where consumer_id = 'early' order by number limit 1").await;
    let since = format!("/exports?consumer=early&dataset=users&after={oldest}");
    assert_eq!(service.call("GET", &since, &[]).await.status(), 200);
    for path in ["/metrics", "/consumers?limit=200", "/exports"] {
        assert_eq!(service.call("GET", path, &[]).await.status(), 200, "{path}");
    }
    let begun = Instant::now();
    let page: Value = service.call("GET", "/consumers?limit=200", &[]).await.json().await.unwrap();
    println!("consumers: {:?}", begun.elapsed());
    let told: Vec<_> = page["items"].as_array().unwrap().iter().map(|of| of["unacknowledged"].as_u64()).collect();
    assert!(told.len() > 150 && told.contains(&Some(1_000)), "{told:?}");
    assert_eq!(service.call("POST", &format!("/exports/{oldest}/ack"), &[]).await.status(), 200);
    let told = |statement: &str| !plans(&database, statement).is_empty();
    until("everything has its turn", async || {
        ["retention.files_past", "retention.forget_jobs_past"].iter().all(|name| told(name))
    })
    .await;
    for plan in plans(&database, "Query Text: -- s") {
        let (read, filtered) = cost(&plan);
        assert!(read + filtered < 10_000, "{read} {filtered}: {plan}");
    }
    for name in [
        "jobs.insert",
        "lanes.export_number",
        "lanes.published",
        "lanes.under_way",
        "acknowledgements.acknowledge",
        "acknowledgements.unacknowledged",
        "gauges.unacknowledged_ages",
        "files.published",
        "-- store.commit\n",
        "jobs.last",
        "jobs.lane_state",
        "queue.claim",
        "queue.reap",
        "gauges.backlog",
        "files.names_taken",
        "files.unpublished",
        "purge.purge",
    ] {
        assert!(told(name), "{name}: {}", service.log());
    }
}

/// The name of a receiver may be mistyped, or new: its page reads no delivery of the others.
#[tokio::test]
async fn a_page_of_deliveries_reads_no_others() {
    let database = with_jobs().await;
    let changes = "
        insert into cdc_export.deliveries (id, job, endpoint, event, delivered_at)
        select gen_random_uuid(), id, 'hook', 'completed', case when random() < 0.9 then now() end from cdc_export.jobs
        where status = 'completed'";
    database.run(changes).await;
    database.run("vacuum analyze cdc_export.deliveries").await;
    log_plans(&database).await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    for status in ["", "&status=pending", "&status=delivered", "&status=dead"] {
        // Often enough that Postgres could take one plan for all receivers.
        for _ in 0..8 {
            let path = format!("/deliveries?endpoint=nobody{status}");
            assert_eq!(service.get(&path).await["items"], serde_json::json!([]));
        }
    }
    let plans = plans(&database, "store.deliveries.list");
    assert_eq!(plans.len(), 32);
    for plan in plans {
        let (read, filtered) = cost_of(&plan, "deliveries");
        assert_eq!((read, filtered), (0, 0), "{plan}");
    }
}
