//! Maintenance goes on, whatever one of its tasks meets.

use cdc_destination::HiddenFile;
use nix::sys::signal::Signal;
use serde_json::json;
use uuid::Uuid;

use crate::catalog::{Catalog, export};
use crate::harness::{Database, Start, eventually, serving_users, until};

#[tokio::test]
async fn a_folder_that_hangs_holds_up_neither_takeovers_nor_the_end() {
    let database = Database::with_users(5).await;
    let start = || Start::on(&database).with("LEASE_SECONDS", 3).with("WORKERS", 1);
    // As a read of a folder on a network that is gone: it never comes back.
    let heir = start().with("FAILPOINTS", "sink.sweep=hold").service().await;
    heir.reaches("sink.sweep").await;
    let doomed = start().sharing_output(&heir).with("FAILPOINTS", "worker.claimed=hold");
    let mut doomed = doomed.service().await;
    let held = database.hold_exports().await;
    // Each takes one, and waits.
    let jobs = [heir.submit("full", "a").await, heir.submit("full", "b").await];
    doomed.reaches("worker.claimed").await;
    doomed.signal(Signal::SIGKILL);
    doomed.dies().await;
    held.rollback().await.unwrap();
    for id in jobs {
        assert_eq!(heir.ended(&id).await["status"], "completed");
    }
    assert_eq!(heir.events("export_taken_over").len(), 1);
}

#[tokio::test]
async fn a_file_that_takes_long_to_publish_delays_its_lane_alone() {
    let database = Database::with_users(5).await;
    // Two exports are committed, and their process dies before it has recorded that they are published.
    let doomed = Start::on(&database).with("WORKERS", 2);
    let mut doomed = doomed.with("FAILPOINTS", "worker.committed=hold,publisher.named=kill").service().await;
    let mut jobs = vec![doomed.submit("full", "a").await];
    doomed.reaches("worker.committed").await;
    jobs.push(doomed.submit("full", "b").await);
    doomed.dies().await;
    let failpoints = "sink.publish=hold,publisher.named=error@2,maintenance.look=time:200";
    let heir = Start::on(&database).sharing_output(&doomed).with("FAILPOINTS", failpoints).service().await;
    heir.reaches("sink.publish").await;
    let others_are_published = async |number| {
        eventually("the others are published", async || {
            let published = "select count(*) from exports where published_at is not null";
            (database.one::<i64>(published).await == number).then_some(())
        })
        .await;
    };
    others_are_published(1).await;
    // Its worker leaves it to maintenance.
    jobs.push(heir.submit("full", "c").await);
    heir.reaches("publisher.named").await;
    others_are_published(2).await;
    heir.release("sink.publish").await;
    for id in jobs {
        assert_eq!(heir.ended(&id).await["status"], "completed");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_removed_keeps_no_other_one() {
    let (database, service) = serving_users(5).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(service.export("full", "a").await.0);
    }
    // It looks as the hidden file of an attempt that ended, and is a folder, which nobody removes as a file.
    let identity: String = database.one("select cdc_export.database_id()").await;
    let job: Uuid = jobs[0]["jobId"].as_str().unwrap().parse().unwrap();
    let stuck = HiddenFile::of_attempt(&identity.parse().unwrap(), job.into(), Uuid::new_v4(), 1).name;
    std::fs::create_dir(service.output().join(&stuck)).unwrap();
    let keeping = Start::on(&database).sharing_output(&service).with("RETAIN_FILES", 1).service().await;
    let kept = [stuck, jobs[2]["outputFilename"].as_str().unwrap().to_owned()];
    until("files go", async || keeping.files() == kept).await;
    let told =
        eventually("it is told", async || Some(keeping.events("maintenance_failed")).filter(|told| !told.is_empty()));
    assert_eq!(told.await[0]["task"], "sweep");
}

#[tokio::test]
async fn a_marker_in_the_making_is_nobodys_only_after_a_while() {
    let (database, service) = serving_users(5).await;
    let (job, _) = service.export("full", "a").await;
    let database_id = database.one::<String>("select cdc_export.database_id()").await.parse().unwrap();
    let written = |file: HiddenFile| {
        std::fs::write(service.output().join(&file.name), "{}").unwrap();
        file.name
    };
    let mark = |job: Uuid| written(HiddenFile::of_marker(&database_id, job.into()));
    let published: Uuid = job["jobId"].as_str().unwrap().parse().unwrap();
    let unknown = Uuid::new_v4();
    let (in_the_making, left) = (mark(unknown), mark(unknown));
    // The processes that wrote these have died, or others were first.
    let draft = written(HiddenFile::of_attempt(&database_id, published.into(), Uuid::new_v4(), 1));
    let marker = mark(published);
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(2 * 3600);
    std::fs::File::options().write(true).open(service.output().join(&left)).unwrap().set_modified(long_ago).unwrap();
    let output = Start::on(&database).sharing_output(&service);
    service.stop().await;
    // It sweeps as it starts.
    let service = output.service().await;
    let is_left = |name: &String| [&left, &draft, &marker].contains(&name);
    let is_swept = async || (!service.files().iter().any(is_left)).then_some(());
    eventually("the others go", is_swept).await;
    assert!(service.files().contains(&in_the_making), "somebody is about to give it its name");
}

#[tokio::test]
async fn the_owner_of_a_dropped_table_can_be_dropped() {
    let database = Database::empty().await;
    let owner = database.role().await;
    let statements = format!(
        "create table orders (id int primary key); alter table orders owner to {owner};
         create table kept (id int primary key)"
    );
    database.run(&statements).await;
    let catalog = Catalog::of_tables(&["orders", "kept"]);
    let _service = catalog.serving(&database, &["orders", "kept"]).await;
    // The service has looked at the functions once it gives this right back.
    database.run(&format!("revoke execute on all functions in schema cdc_export from {owner}")).await;
    let is_there =
        "select bool_or(has_function_privilege('OWNER', oid, 'execute')) from pg_proc where proname like 'capture\\_%'";
    until("the service has looked", async || database.one(&is_there.replace("OWNER", &owner)).await).await;
    // A dump that is being restored has functions before it has their triggers.
    database
        .run("create function cdc_export.capture_0b_d() returns trigger language plpgsql as 'begin return null; end'")
        .await;
    database.run("drop table orders").await;
    eventually("the role can be dropped", async || {
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop role {owner}"))).execute(&database.pool).await.ok()
    })
    .await;
    let functions =
        "select count(*) from pg_proc where pronamespace = 'cdc_export'::regnamespace and proname like 'capture\\_%'";
    assert_eq!(database.one::<i64>(functions).await, 6, "those of the table that is there, and that of the dump");
}

#[tokio::test]
async fn a_new_owner_of_a_partitioned_table_makes_partitions() {
    let database = Database::empty().await;
    let owner = database.role().await;
    database.run("create table orders (id int primary key) partition by range (id)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n");
    let service = catalog.serving(&database, &["orders"]).await;
    export(&service, "full", "orders", "a").await;
    database.run(&format!("alter table orders owner to {owner}; grant create on schema public to {owner}")).await;
    let create = format!("set local role {owner}; create table first partition of orders for values from (0) to (10)");
    eventually("the owner makes a partition", async || {
        sqlx::raw_sql(sqlx::AssertSqlSafe(create.clone())).execute(&database.pool).await.ok()
    })
    .await;
    database.run("insert into orders values (1)").await;
    let delta = export(&service, "delta", "orders", "a").await;
    assert_eq!((&delta["rowsExported"], &delta["continuity"]), (&json!(1), &json!(null)), "{delta}");
}
