//! A mirror of many tables in one process: its memory, and that Postgres's default settings are enough for it.

use crate::catalog::Catalog;
use crate::harness::{Database, ends, eventually, far, stop};
use crate::memory::in_status;

/// Mirrors so many tables with two rounds of changes. Returns the peak of the process's memory in MiB.
async fn mirrored(tables: usize) -> u64 {
    let (source, target) = (Database::empty().await, Database::empty().await);
    let for_each = async |database: &Database, statement: &str| {
        let statements =
            format!("do $$ begin for n in 1..{tables} loop execute format('{statement}', n); end loop; end $$");
        database.run(&statements).await;
    };
    for_each(&source, "create table t%1$s (id int primary key, name text)").await;
    for_each(&source, "insert into t%1$s select g, repeat(md5(g::text), 8) from generate_series(1, 1000) g").await;
    let blocks: String = (1..=tables).map(|n| format!("[[dataset]]\nname = \"t{n}\"\ntable = \"t{n}\"\n")).collect();
    let catalog = Catalog::of(&blocks);
    ends(catalog.command(&source, &["track", "--all"]).await, 0, "");
    let service = catalog.start(&source).service().await;
    let to = target.url();
    let apply = ["apply", "--to", &to, "--consumer", "a", "--server", &service.address, "--all-datasets"];
    let (mut child, _work) = far(&[&apply[..], &["--every", "1s"]].concat()).spawn();
    let arrive = async |number: i64| {
        let applied = format!("select count(*) from cdc_apply.positions where number = {number}");
        for tenth in 1..=10 {
            eventually("a tenth more is applied", async || {
                let begun: bool = target.one("select to_regclass('cdc_apply.positions') is not null").await;
                (begun && target.one::<i64>(&applied).await as usize * 10 >= tables * tenth).then_some(())
            })
            .await;
        }
    };
    arrive(1).await;
    for_each(&source, "update t%1$s set name = ''changed'' where id %% 2 = 0").await;
    arrive(2).await;
    let peak = in_status(child.id().unwrap(), "VmHWM:") / 1024;
    stop(&mut child).await;
    for_each(&target, "insert into t%1$s select -count(*) from t%1$s where name = ''changed''").await;
    assert_eq!(target.one::<i64>(&format!("select count(*) from t{tables} where id = -500")).await, 1);
    service.stop().await;
    println!("{tables} tables: the peak was {peak} MiB");
    peak
}

#[tokio::test]
async fn a_mirror_of_100_tables_stays_below_60_mib() {
    let peak = mirrored(100).await;
    assert!(peak < 60, "{peak} MiB");
}

#[tokio::test]
async fn a_mirror_of_1000_tables_needs_no_more_than_the_default_settings() {
    let peak = mirrored(1000).await;
    assert!(peak < 80, "{peak} MiB");
}
