//! Memory, files, threads and connections of a process after many jobs and after much data, as Linux counts them.

use serde_json::{Value, json};

use crate::catalog::ended;
use crate::harness::{Database, Service, Start, eventually, serving_users};

/// The resources that a process might forget to give back.
#[derive(Debug)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    threads: usize,
    connections: i64,
}

impl Held {
    async fn by(service: &Service, database: &Database) -> Held {
        let entries = |folder: &str| std::fs::read_dir(format!("/proc/{}/{folder}", service.pid())).unwrap().count();
        let connections = "select count(*) from pg_stat_activity where datname = current_database()";
        Held {
            resident_kib: in_status(service.pid(), "VmRSS:"),
            descriptors: entries("fd"),
            threads: entries("task"),
            connections: database.one(connections).await,
        }
    }
}

/// A line of what the kernel says of a process, in KiB.
pub(crate) fn in_status(pid: impl std::fmt::Display, line: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|found| found.starts_with(line)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_thousand_jobs_leave_nothing_behind() {
    let (database, service) = serving_users(5).await;
    // Ten consumers, each with a client that waits for its export before it asks for the next.
    let rounds = async |number: usize| {
        let clients = (0..10).map(async |consumer| {
            for _ in 0..number {
                let id = service.submit("delta", &format!("c{consumer}")).await;
                let answer = service.call("GET", &format!("/exports/{id}?wait=60"), &[]).await;
                assert_eq!(answer.json::<Value>().await.unwrap()["status"], "completed");
            }
        });
        futures_util::future::join_all(clients).await;
    };
    rounds(10).await;
    let before = Held::by(&service, &database).await;
    rounds(100).await;
    let after = eventually("connections are given back", async || {
        let held = Held::by(&service, &database).await;
        (held.descriptors <= before.descriptors + 2 && held.connections <= before.connections).then_some(held)
    })
    .await;
    println!("before {before:?}, after {after:?}");
    assert!(after.resident_kib < before.resident_kib + 8 * 1024, "before {before:?}, after {after:?}");
    assert!(after.threads <= before.threads + 10, "before {before:?}, after {after:?}");
}

#[tokio::test]
async fn memory_does_not_grow_with_the_table() {
    let peak = |service: &Service| in_status(service.pid(), "VmHWM:") / 1024;
    let database = Database::new_with("alter table users disable trigger user").await;
    let wide = |from, to| {
        format!(
            "insert into users (name, email, created_at, updated_at)
             select repeat('x', 255), repeat('y', 200) || n, now(), now() from generate_series({from}, {to}) n"
        )
    };
    database.run(&wide(1, 100)).await;
    let service = Start::on(&database).service().await;
    service.export("full", "small").await;
    let idle = peak(&service);
    database.run(&wide(101, 120_000)).await;
    for export_type in ["full", "delta"] {
        let job = service.ended(&service.submit(export_type, export_type).await).await;
        assert!(job["bytesWritten"].as_u64() > Some(60 << 20), "much more than it may use: {job}");
    }
    let grown = peak(&service) - idle;
    assert!(grown < 24, "{grown} MiB above {idle} MiB");
    // Freed memory goes back to the system, however large it was. A row group is large.
    #[cfg(all(feature = "parquet", target_env = "gnu"))]
    {
        let own = |service: &Service| in_status(service.pid(), "RssAnon:") / 1024;
        let before = own(&service);
        for consumer in ["first", "second", "third", "fourth"] {
            let job = ended(&service, "/exports/full", Some(consumer), json!({ "format": "parquet" })).await;
            assert_eq!(job["status"], "completed", "{job}");
        }
        let grown = own(&service).saturating_sub(before);
        assert!(grown < 20, "{grown} MiB above {before} MiB");
    }
}
