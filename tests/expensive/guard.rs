//! The guard of continuity: every reason for a full export, a dump in another cluster, and few changes of many rows.

use crate::continuity::{exported, full_heals, log_becomes, logged, passes, refused, track};
use crate::harness::{Database, Start, server_lacks};
use crate::plans::{log_plans, plans};
use crate::programs::{connection, output, program};
use crate::restores::cluster::Cluster;

#[tokio::test]
async fn a_position_that_the_log_does_not_reach_back_to_needs_a_full_export() {
    let (database, service) = exported(19, &["a"]).await;
    let change =
        "update users set name = name || '!' where id = 1; delete from users where id in (select max(id) from users)";
    for (cause, word) in [
        (
            "alter table users disable trigger cdc_export_u; update users set name = 'unseen' where id = 2;
             alter table users enable trigger cdc_export_u",
            "trigger_changed",
        ),
        // A trigger that doesn't fire for everybody isn't there.
        ("alter table users disable trigger cdc_export_d", "trigger_missing"),
        ("alter table users enable replica trigger cdc_export_d", "trigger_missing"),
        ("alter table users enable trigger cdc_export_d", "trigger_changed"),
        ("alter table users disable trigger cdc_export_s", "trigger_missing"),
        ("alter table users enable replica trigger cdc_export_s", "trigger_changed"),
        ("update watermarks set cluster_id = cluster_id + 1", "other_cluster"),
        ("update watermarks set cluster_id = null", "other_cluster"),
        (
            "update watermarks set live_snapshot = '9000000000:9000000000:', deletions_snapshot = '9000000000:9000000000:'",
            "xid_went_back",
        ),
        // Somebody's partitions.
        (
            "update watermarks set guard_state = jsonb_set(guard_state, '{relations,1}', '[null, null, \"1\"]')",
            "partitions_changed",
        ),
        ("update watermarks set log_lost = 'all', live_snapshot = null, deletions_snapshot = null", "log_expired"),
        // The first of several is named.
        (
            "update watermarks set table_oid = 1, cluster_id = 1, log_lost = 'deletions', deletions_snapshot = null",
            "table_recreated",
        ),
    ] {
        database.run(&format!("{change}; {cause}; {change}")).await;
        refused(&database, &service, "incremental", "a", word).await;
        refused(&database, &service, "delta", "a", word).await;
        if word == "trigger_missing" {
            passes(&service, "full", "a", Some(word)).await;
            refused(&database, &service, "incremental", "a", word).await;
        } else {
            full_heals(&database, &service, "a", word).await;
        }
    }

    // Another table under the name, without triggers at first.
    let changes = "
        alter sequence users_id_seq owned by none; alter table users rename to gone;
        create table users (like gone including all); insert into users select * from gone where id < 5; drop table gone";
    database.run(changes).await;
    refused(&database, &service, "incremental", "a", "table_recreated").await;
    passes(&service, "full", "a", Some("table_recreated")).await;
    refused(&database, &service, "incremental", "a", "trigger_missing").await;
    track(&database).await;
    refused(&database, &service, "delta", "a", "trigger_changed").await;
    full_heals(&database, &service, "a", "trigger_changed").await;
}

#[tokio::test]
async fn a_dump_restored_in_another_cluster_needs_a_full_export() {
    if server_lacks("pg_dump").await || server_lacks("psql").await {
        return;
    }
    let (database, service) = exported(19, &["a"]).await;
    // So that the other cluster's transactions are behind the log's, also after what a restore and a start take there.
    database.run("do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$").await;
    database.run("update users set name = 'x' where id = 1; truncate users").await;
    database.add_users(1, 9).await;
    service.stop().await;
    let mut cluster = Cluster::new().await;
    let (home, other_options) = (cluster.home.path(), cluster.database().options);

    let name = database.options.get_database().unwrap();
    let mut dump = program(&database.options, "pg_dump", home).await;
    let dump = output(dump.args(connection(&database.options)).args(["--no-owner", "--no-privileges", name])).await;
    let script = home.join("dump.sql");
    std::fs::write(&script, dump).unwrap();
    let mut restore = program(&other_options, "psql", home).await;
    output(
        restore
            .args(connection(&other_options))
            .args(["-qX", "-v", "ON_ERROR_STOP=1", "-f"])
            .arg(&script)
            .arg("cdc_export"),
    )
    .await;

    let database = Database::at(other_options);
    assert!(logged(&database).await > 0);
    // The guard compares the table's oid first, which is the same only by chance.
    let word = database.one::<bool>("select table_oid = 'users'::regclass from watermarks").await;
    let word = if word { "other_cluster" } else { "table_recreated" };
    let service = Start::on(&database).service().await;
    refused(&database, &service, "incremental", "a", word).await;
    refused(&database, &service, "delta", "a", word).await;
    // From here on, the oid is the same.
    database.run("update watermarks set table_oid = 'users'::regclass; update cdc_export.change_log set table_oid = 'users'::regclass").await;
    refused(&database, &service, "delta", "a", "other_cluster").await;
    // The log of the old cluster, whose transactions would come for a long time yet, is nobody's here.
    log_becomes(&database, 0).await;
    full_heals(&database, &service, "a", "other_cluster").await;
    database.run("update users set name = 'new' where id = 2").await;
    assert_eq!(passes(&service, "incremental", "a", None).await.1.ids(), [2]);
    service.stop().await;
    cluster.stop().await;
}

#[tokio::test]
async fn few_changes_of_many_rows_are_found_by_indexes() {
    let database = Database::with_users(200_000).await;
    // A third of a log as short as this one is read by a scan of it all, and rightly, once autovacuum has looked at it.
    database.run("alter table cdc_export.change_log set (autovacuum_enabled = false)").await;
    database.run("vacuum analyze users").await;
    let service = Start::on(&database).service().await;
    passes(&service, "full", "a", None).await;
    service.stop().await;
    database.run("update users set name = 'x', updated_at = '2026-07-01' where id % 20 = 1").await;
    log_plans(&database).await;
    let service = Start::on(&database).service().await;
    assert_eq!(passes(&service, "incremental", "a", None).await.1.rows.len(), 10_000);
    // After an incremental the deletions are behind: two statements. Then one.
    database.run("delete from users where id % 20 = 1").await;
    assert_eq!(passes(&service, "delta", "a", None).await.1.rows.len(), 10_000);
    database.run("update users set name = 'y', updated_at = '2026-07-02' where id % 20 = 2").await;
    assert_eq!(passes(&service, "delta", "a", None).await.1.rows.len(), 10_000);
    let plans = plans(&database, "-- source.copy.changes");
    assert_eq!(plans.len(), 4, "{}", service.log());
    for plan in plans {
        for index in ["change_log_changes", "users_pkey", "idx_users_updated_at"] {
            assert!(
                plan.contains(&format!("Index Scan using {index}")) || plan.contains(&format!("Index Scan on {index}")),
                "{plan}"
            );
        }
        assert!(!plan.contains("Seq Scan on users"), "{plan}");
    }
}
