//! The pauses before an event is delivered: after a clock was set back, and beside other events that wait.

use super::{Answer, Operator, Receiver};
use crate::harness::{Database, eventually, until};

/// After the clock is set back, an event waits for the intended time, and not until the clock has caught up.
#[tokio::test]
async fn a_clock_set_back_delays_no_event() {
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    receiver.answers([Answer::Status(500)]);
    let operator = Operator::with(&[receiver.block("all", "")]);
    let service = operator.start(&database).service().await;
    service.export("full", "a").await;
    eventually("it failed once", async || service.deliveries("").await.pop().filter(|it| it["attempt"] == 1)).await;
    let api = operator.start(&database).sharing_output(&service).arguments(&["serve", "--no-workers"]);
    service.stop().await;
    let api = api.service().await;
    let fresh = api.submit("delta", "a").await;
    assert_eq!(api.call("POST", &format!("/exports/{fresh}/cancel"), &[]).await.status(), 202);
    assert_eq!(api.deliveries("?status=pending").await.len(), 2);
    // The clock's step is an hour of what is written, as it is seen from then on.
    let changes = "
        update cdc_export.deliveries set created_at = created_at + interval '1 hour', run_at = run_at + interval '1 hour',
        rescheduled_at = rescheduled_at + interval '1 hour'";
    database.run(changes).await;
    let service = operator.start(&database).sharing_output(&api).with("LEASE_SECONDS", 1).service().await;
    eventually("both are told", async || service.deliveries("?status=delivered").await.get(1).map(|_| ())).await;
    assert_eq!(receiver.heard().len(), 3);
}

/// Posts that hang have no threads of their own, which exports would wait for; and of a receiver that doesn't answer,
/// only one hangs.
#[tokio::test]
async fn hanging_receivers_use_no_connection_of_exports() {
    const RECEIVERS: usize = 20;
    let database = Database::with_users(5).await;
    let receiver = Receiver::start().await;
    let blocks: Vec<_> = (0..RECEIVERS).map(|n| receiver.block(&format!("r{n}"), "")).collect();
    let service = Operator::with(&blocks).start(&database).service().await;
    let threads = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("Threads:")).unwrap();
        line.trim().parse::<usize>().unwrap()
    };
    service.export("full", "a").await;
    receiver.hears(RECEIVERS).await;
    let told = format!("?status=delivered&limit={}", RECEIVERS + 1);
    until("all are told", async || service.deliveries(&told).await.len() == RECEIVERS).await;

    receiver.answers((0..100 * RECEIVERS).map(|_| Answer::After(600_000)));
    for _ in 0..8 {
        service.export("delta", "a").await;
    }
    receiver.hears(9 * RECEIVERS).await;
    assert!(threads() < 8 * RECEIVERS, "{}", threads());
    // Then one at a time, as long as it hangs.
    let late = "select count(*) from cdc_export.deliveries where last_error = 'no answer in time' and attempt > 0";
    until("they hang", async || database.one::<i64>(late).await as usize == 8 * RECEIVERS).await;
    receiver.hears(10 * RECEIVERS).await;
    let under_way = "select max(n) from (
           select count(*) as n from cdc_export.deliveries
           where delivered_at is null and run_at > clock_timestamp() + interval '40 s' group by endpoint) each";
    assert_eq!(database.one::<i64>(under_way).await, 1);
}
