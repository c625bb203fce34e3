//! Many who wait for exports, by `events` or `?wait=`: what they cost, and what one of them leaves to others.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cdc_export::job::Status;
use cdc_export::store::Store;
use cdc_export::store::transitions::Ending;
use futures_util::FutureExt;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Database, Service, Start, eventually, refusal, until};
use crate::keys::{bearer, call_as};

/// The most followers of one key or address if there are no others: half as many as there are places left.
const MOST: usize = 166;

/// A connection on which a path was asked for.
async fn asking(service: &Service, path: &str, key: &str) -> TcpStream {
    let mut stream = TcpStream::connect(service.address.trim_start_matches("http://")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {key}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

/// A stream of events that has begun.
async fn following(service: &Service, id: &str, key: &str) -> TcpStream {
    let mut stream = asking(service, &format!("/exports/{id}/events"), key).await;
    let (mut text, mut bytes) = (String::new(), [0; 4096]);
    while !text.contains("event: job") {
        let read = stream.read(&mut bytes).await.unwrap();
        assert!(read > 0 && text.len() < 10_000, "{text}");
        text.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
    stream
}

#[tokio::test]
async fn one_key_or_address_leaves_followers_to_others() {
    let database = Database::new().await;
    let service = Start::on(&database).with("AUTH", "keys").arguments(&["serve", "--no-workers"]).service().await;
    let [one, other] = [bearer(&database, "one", &[], &[]).await, bearer(&database, "other", &[], &[]).await];
    let job = call_as(&service, &one, "POST", "/exports").await;
    let job: serde_json::Value = job.json().await.unwrap();
    let id = job["jobId"].as_str().unwrap();
    let streams = join_all((0..MOST / 2).map(|_| following(&service, id, &one))).await;
    let wait = format!("/exports/{id}?wait=60");
    let waits = Mutex::new(join_all((0..MOST / 2).map(|_| asking(&service, &wait, &one))).await);
    let events = format!("/exports/{id}/events");
    for path in [&*events, &format!("/exports/{id}?wait=1")] {
        let refused = eventually("the key's share is used up", async || {
            // In the place of one that a busy machine refused.
            let another = asking(&service, &wait, &one).await;
            waits.lock().unwrap().push(another);
            let answer = call_as(&service, &one, "GET", path).await;
            (answer.status() != 200).then_some(answer)
        })
        .await;
        assert!(refused.headers().contains_key("Retry-After"));
        assert_eq!(refusal(refused).await, (503, "too_many_followers".to_owned()), "{path}");
    }
    // A call that doesn't wait is answered.
    assert_eq!(call_as(&service, &one, "GET", &format!("/exports/{id}")).await.status(), 200);
    // The next key finds a place, however many keys somebody has.
    let mut others = Vec::new();
    for n in 0..3 {
        let key = bearer(&database, &format!("more {n}"), &[], &[]).await;
        others.extend(join_all((0..40).map(|_| following(&service, id, &key))).await);
    }
    let _other = following(&service, id, &other).await;
    drop((streams, waits, others));
    until("its share is free again", async || call_as(&service, &one, "GET", &events).await.status() == 200).await;
}

#[tokio::test]
async fn many_followers_cost_one_look_a_second_together() {
    let database = Database::new().await;
    // Nobody else has to do with its database.
    let service = Start::on(&database).arguments(&["serve", "--no-workers"]).service().await;
    let mut streams = Vec::new();
    for consumer in ["one", "two"] {
        let id = service.submit("full", consumer).await;
        streams.extend(join_all((0..80).map(|_| following(&service, &id, "none"))).await);
    }
    // Which statements begin within five seconds, or more on a busy machine, as its sessions tell when they are asked
    // often enough.
    let begun_in_a_while = async || {
        let sessions = "select coalesce(array_agg(pid || ' ' || query_start), '{}') from pg_stat_activity
                        where datname = current_database() and application_name like 'cdc-export%'";
        let sessions = async || BTreeSet::from_iter(database.one::<Vec<String>>(sessions).await);
        let (before, start, mut seen) = (sessions().await, Instant::now(), BTreeSet::new());
        while start.elapsed() < Duration::from_secs(5) {
            seen.append(&mut sessions().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (seen.difference(&before).count(), start.elapsed().as_secs_f64())
    };
    // Looks are more frequent while somebody has just come.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (statements, seconds) = begun_in_a_while().await;
    println!("{statements} statements for 160 followers in {seconds} seconds");
    // A session that looks for the first time begins two.
    assert!(statements >= 3 && statements as f64 <= 3.0 * seconds, "{statements} in {seconds} seconds");
    drop(streams);
    until("nobody follows", async || begun_in_a_while().await.0 == 0).await;
}

/// A client that follows a job in this process hears of its end at once, even if its worker has vanished.
#[tokio::test]
async fn the_end_of_a_job_whose_worker_vanished_is_told() {
    let changes = "
        with jobs as (
          insert into cdc_export.jobs (id, export_type, format, status, open_exports, attempt, max_attempts, turn,
            started_at, lease_token, lease_owner, lease_expires_at, cancel_requested_at)
          select gen_random_uuid(), 'full', 'csv', 'processing', 1, n, 2, now(), now(),
            gen_random_uuid(), 'o', now() - interval '1 second', case n when 3 then now() end
          from generate_series(1, 3) n
          returning id)
        insert into cdc_export.exports (job, dataset, export_type, output_filename)
        select id, 'users', 'full', 'f' || id from jobs";
    let database = Database::new_with(changes).await;
    let store = Store::new(database.pool.clone());
    let mut endings = store.endings();
    assert_eq!(store.reap().await.unwrap().len(), 3);
    let mut told = Vec::new();
    while let Some(Ending::Job(job)) = endings.next().now_or_never() {
        told.push(store.job(job).await.unwrap().unwrap().status());
    }
    told.sort_by_key(|status| status.as_str());
    assert_eq!(told, [Status::Cancelled, Status::Failed, Status::Pending]);
}
