//! Beside many jobs that have ended, every question costs what its answer has. `TEST_JOBS=1000000` has as many of them
//! as that, and tells how long each list took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, ends, eventually, option_env, until};
use crate::plans::{cost_of, log_plans, plans};

/// So many, and some that are rare. Those of the consumer `early` are all older than the others, so that whoever looks
/// for them among the newest passes over everything.
async fn with_jobs() -> Database {
    let database = Database::new().await;
    let jobs: u64 = option_env("TEST_JOBS").map_or(36_000, |jobs| jobs.parse().unwrap());
    let statements = format!(
        "alter table exports set (autovacuum_enabled = false);
         insert into exports (id, consumer_id, dataset, lane_sequence, export_type, format, status, max_attempts, output_filename, created_at,
           run_at, started_at, finished_at, error_code, destination_id, staged_name, sha256, published_at, number)
         select gen_random_uuid(), consumer, dataset, case when consumer is not null then n end, type, 'csv', status, 5, 'f' || n, t, t, t,
           t + interval '1 second', case status when 'failed' then 'internal' end,
           case status when 'completed' then uuid '11111111-1111-1111-1111-111111111111' end, case status when 'completed' then 'staged' end,
           case status when 'completed' then repeat('a', 64) end, case status when 'completed' then t end,
           case when status = 'completed' and consumer is not null then n end
         from generate_series(1, {jobs}) n,
         lateral (
           select timestamptz '2026-01-01 00:00:00+00' + n * interval '1 second' as t,
             case when n <= {jobs} / 3 then 'early' when n % 20 = 19 then null else 'c' || n % 150 end as consumer,
             case when n % 10 = 4 and n > {jobs} / 3 then 'orders' else 'users' end as dataset,
             case when n % 50 = 0 then 'full' when n % 7 = 0 then 'incremental' else 'delta' end as type,
             case when n <= {jobs} / 3 then 'completed' when n % 60 = 4 then 'failed' when n % 100 = 5 then 'cancelled' else 'completed' end
               as status) x;
         insert into exports (id, consumer_id, dataset, lane_sequence, export_type, format, status, max_attempts, output_filename, created_at, run_at,
           finished_at, error_code, lease_token, lease_owner, lease_expires_at, destination_id, staged_name, sha256)
         select gen_random_uuid(), consumer, dataset, n, type, 'csv', status, 5, 'rare' || n, '2025-12-01', now() + interval '1 day',
           case when status in ('failed', 'completed') then now() end, case status when 'failed' then 'internal' end,
           case status when 'processing' then gen_random_uuid() end, case status when 'processing' then 'somebody' end,
           case status when 'processing' then now() + interval '1 day' end,
           case status when 'completed' then uuid '11111111-1111-1111-1111-111111111111' end, case status when 'completed' then 'staged' end,
           case status when 'completed' then repeat('a', 64) end
         from (values (-1, 'c1', 'rare', 'full', 'failed'), (-2, 'c2', 'users', 'incremental', 'pending'), (-3, 'early', 'users', 'full', 'pending'),
           (-4, 'c4', 'users', 'delta', 'processing'), (-5, 'c5', 'users', 'delta', 'completed')) rare (n, consumer, dataset, type, status);
         insert into cdc_export.files (job, part, staged_name, place, bytes, rows, sha256)
         select id, 1, 'staged', '{{\"folder\": {{\"inode\": \"1\", \"modifiedNs\": \"1\"}}}}', 0, 0, sha256 from exports
         where status = 'completed';
         insert into cdc_export.lanes (consumer_id, dataset, last_sequence, last_number)
         select distinct coalesce(consumer_id, ''), dataset, {jobs}, {jobs} from exports"
    );
    database.run(&statements).await;
    database.run("vacuum analyze exports").await;
    database
}

/// What the plans of a statement read of `exports`: entries, and those that a filter threw away. None is a scan of the
/// table.
fn read(service: &Service, statement: &str) -> Vec<(u64, u64)> {
    plans(service, statement).iter().map(|plan| cost(plan)).collect()
}

fn cost(plan: &str) -> (u64, u64) {
    assert!(!plan.contains("Seq Scan on exports"), "{plan}");
    cost_of(plan, "exports")
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

/// What a list should have, told by the plainest statement there is.
async fn expected(database: &Database, filter: &BTreeMap<&str, &str>, among: &str, limit: u32) -> Vec<String> {
    let condition = |column: &str, name: &str| {
        filter.get(name).map(|value| format!(" and {column} = '{value}'")).unwrap_or_default()
    };
    let status = "case when status = 'completed' and published_at is null then 'processing' else status end";
    let before = filter.get("before").map(|time| format!(" and created_at < '{time}'")).unwrap_or_default();
    let conditions =
        [condition("consumer_id", "consumer"), condition("dataset", "dataset"), condition("export_type", "exportType")];
    database
        .one::<Vec<String>>(&format!(
            "select coalesce(array_agg(id::text order by created_at desc, id desc), '{{}}') from (
               select id, created_at from exports where {among}{}{}{before} order by created_at desc, id desc limit {limit}) page",
            conditions.concat(),
            condition(status, "status"),
        ))
        .await
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
                        for before in [None, Some("2026-01-01 00:00:10+00"), Some("2025-01-01 00:00:00+00")] {
                            let mut filter = filter.clone();
                            filter.extend(before.map(|before| ("before", before)));
                            let cursor = match before {
                                Some(time) => {
                                    let micros =
                                        format!("select (extract(epoch from timestamptz '{time}') * 1000000)::bigint");
                                    format!(
                                        "&cursor={}_00000000-0000-0000-0000-000000000000",
                                        database.one::<i64>(&micros).await
                                    )
                                }
                                None => String::new(),
                            };
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
    let costs = read(&service, "order by e.created_at desc, e.id desc");
    assert!(costs.len() > 300, "{}", costs.len());
    // Some entries of each of the lists that it is merged of, at most 42 consumers' 15, and twice the page.
    let most = costs.iter().map(|(read, _)| *read).max().unwrap();
    assert!((60..6_000).contains(&most), "{most}");
    assert!(costs.iter().all(|(_, filtered)| *filtered == 0), "{costs:?}");
}

/// What runs again and again, or at each request: none of it reads the jobs that have ended.
#[tokio::test]
async fn nothing_reads_all_jobs_again_and_again() {
    let database = with_jobs().await;
    database.add_users(1, 5).await;
    // What a lane's commit looks for is its last completed job, behind all that failed since.
    let changes = "
        insert into exports (id, consumer_id, dataset, lane_sequence, export_type, format, status, max_attempts, output_filename, created_at,
          finished_at, error_code)
        select gen_random_uuid(), 'failing', 'users', n, 'delta', 'csv', 'failed', 5, 'failing' || n, '2026-01-01', now(), 'internal'
        from generate_series(1, 20000) n;
        insert into cdc_export.lanes (consumer_id, dataset, last_sequence) values ('failing', 'users', 20000)";
    database.run(changes).await;
    // Names that go on after another's whole stem.
    let now: String = database.one("select to_char(now() at time zone 'UTC', 'YYYYMMDD\"T\"HH24')").await;
    let statements = format!(
        "update exports set output_filename = 'full_failing_{now}' || output_filename where lane_sequence % 2 = 0 and consumer_id = 'early'"
    );
    database.run(&statements).await;
    // All lanes acknowledge: most are nearly as far as they can be, and one is as far behind.
    let statements = "update cdc_export.lanes set acknowledged = case consumer_id when 'early' then 1 else last_number - 1500 end where consumer_id <> ''";
    database.run(statements).await;
    database.run("vacuum analyze exports").await;
    log_plans(&database).await;
    let service = Start::on(&database).with("RETAIN_FILES", "9d,20").with("RETAIN_JOBS", "90000d,20").service().await;
    let (full, _) = service.export("full", "failing").await;
    let full = full["jobId"].as_str().unwrap();
    // Names are counted where one is taken already: by another export of the same second.
    eventually("two exports of one second", || async {
        for _ in 0..2 {
            service.call("POST", "/exports", &[]).await;
        }
        (!plans(&service, "files.names_taken").is_empty()).then_some(())
    })
    .await;
    // A caller that says what it loaded last, and one that was away for long.
    let after = serde_json::json!({ "after": full });
    let delta = service
        .client
        .post(format!("{}/exports/delta", service.address))
        .header("X-Consumer-ID", "failing")
        .json(&after);
    assert_eq!(delta.send().await.unwrap().status(), 202);
    let oldest: String =
        database.one("select id::text from exports where consumer_id = 'early' order by number limit 1").await;
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
    let told = |statement: &str| !plans(&service, statement).is_empty();
    until("everything has its turn", async || {
        ["retention.files_past", "retention.forget_jobs_past"].iter().all(|name| told(name))
    })
    .await;
    for plan in plans(&service, "Query Text: -- s") {
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
        "commit.complete",
        "jobs.last",
        "jobs.lane_state",
        "open_jobs.count",
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
        select gen_random_uuid(), id, 'hook', 'completed', case when random() < 0.9 then now() end from exports
        where status = 'completed'";
    database.run(changes).await;
    database.run("vacuum analyze cdc_export.deliveries").await;
    log_plans(&database).await;
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    for status in ["", "&status=pending", "&status=delivered", "&status=dead"] {
        // Often enough that Postgres could take one plan for all receivers.
        for _ in 0..8 {
            let path = format!("/deliveries?endpoint=nobody{status}");
            let page: Value = service.call("GET", &path, &[]).await.json().await.unwrap();
            assert_eq!(page["items"], serde_json::json!([]));
        }
    }
    let plans = plans(&service, "store.deliveries.list");
    assert_eq!(plans.len(), 32);
    for plan in plans {
        let (read, filtered) = cost_of(&plan, "deliveries");
        assert_eq!((read, filtered), (0, 0), "{plan}");
    }
}
