//! Deletions that their transaction keeps quiet about, among random other changes: no delta tells of them, and each
//! consumer's next export counts them once.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database, Service};

/// A consumer's copy, and the copy that it must have after the changes of the table.
#[derive(Default)]
struct Consumer {
    copy: BTreeMap<i64, i64>,
    wanted: BTreeMap<i64, i64>,
    /// Keys that were deleted without `cdc_export.quiet` since the last delta or full export.
    told: BTreeSet<i64>,
    quiet: u64,
}

impl Consumer {
    /// Exports and loads, and compares copy and count with what was done.
    async fn exports(
        &mut self,
        service: &Service,
        export_type: &str,
        table: &str,
        name: &str,
        live: &BTreeMap<i64, i64>,
    ) {
        let job = export(service, export_type, table, name).await;
        if export_type == "full" {
            self.copy.clear();
            self.wanted.clear();
        }
        if export_type != "incremental" {
            self.wanted.retain(|key, _| live.contains_key(key) || !self.told.contains(key));
            self.told.clear();
        }
        self.wanted.extend(live);
        let is_delta = export_type == "delta";
        for row in &Csv::read(&service.path(&job)).rows {
            let (operation, row) = if is_delta { (&*row[0], &row[1..]) } else { ("UPDATE", &row[..]) };
            let key = row[0].parse().unwrap();
            match operation {
                "DELETE" => drop(self.copy.remove(&key)),
                _ => drop(self.copy.insert(key, row[1].parse().unwrap())),
            }
        }
        assert_eq!(self.copy, self.wanted, "{job}");
        assert_eq!(job["quietDeletes"], json!(self.quiet), "{job}");
        self.quiet = 0;
    }
}

/// Numbers that look random, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

async fn quiet_deletions_are_counted_and_not_told(create: &str, seed: u64) {
    let database = Database::new_with(create).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    let mut numbers = Numbers(seed);
    let (mut live, mut consumers) = (BTreeMap::new(), [Consumer::default(), Consumer::default()]);
    for (consumer, name) in consumers.iter_mut().zip(["a", "b"]) {
        database.run("insert into t values (100, 1) on conflict do nothing").await;
        live.insert(100, 1);
        consumer.exports(&service, "full", "t", name, &live).await;
    }
    for n in 2..60 {
        let is_quiet = numbers.below(2) == 0;
        let mut statements = vec!["begin".to_owned()];
        statements.extend(is_quiet.then(|| "set local cdc_export.quiet = 'delete'".to_owned()));
        for _ in 0..=numbers.below(3) {
            let key = numbers.below(6) as i64;
            if numbers.below(2) == 0 {
                statements.push(format!("insert into t values ({key}, {n}) on conflict (k) do update set n = {n}"));
                live.insert(key, n);
                continue;
            }
            // Deletes two keys, none, one or both of which exist.
            statements.push(format!("delete from t where k in ({key}, {})", key + 1));
            for key in [key, key + 1] {
                let was_there = live.remove(&key).is_some();
                for consumer in consumers.iter_mut().filter(|_| was_there) {
                    if is_quiet {
                        consumer.quiet += 1;
                    } else {
                        consumer.told.insert(key);
                    }
                }
            }
        }
        statements.push("commit".to_owned());
        database.run(&statements.join("; ")).await;
        for (consumer, name) in consumers.iter_mut().zip(["a", "b"]) {
            match numbers.below(8) {
                0..4 => {}
                4 => consumer.exports(&service, "incremental", "t", name, &live).await,
                5 => consumer.exports(&service, "full", "t", name, &live).await,
                _ => consumer.exports(&service, "delta", "t", name, &live).await,
            }
        }
    }
}

#[tokio::test]
async fn quiet_deletions_of_a_plain_table_are_counted_and_not_told() {
    quiet_deletions_are_counted_and_not_told("create table t (k bigint primary key, n bigint)", 7).await;
}

#[tokio::test]
async fn quiet_deletions_of_a_partitioned_table_are_counted_and_not_told() {
    let create = "create table t (k bigint primary key, n bigint) partition by range (k);
      create table t1 partition of t for values from (0) to (3); create table t2 partition of t for values from (3) to (1000)";
    quiet_deletions_are_counted_and_not_told(create, 8).await;
}
