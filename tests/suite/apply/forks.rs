//! `apply --from` a place that has exports of a source before and after its restore.

use std::path::Path;

use cdc_manifest::{Chained, Manifest, ManifestJob};
use tempfile::TempDir;

use crate::harness::{Database, ends, far, reachable_folder, silent};
use crate::verify::{Export, next};

/// An export of the rows 0 to `rows` after another one, requested at this millisecond.
fn export(before: Option<&Export>, kind: &str, rows: u64, requested: u16) -> Export {
    let Export { manifest, mut files } = next("a", before, true, &[rows], "");
    // Names don't depend on the number alone.
    files[0].0 = format!("{requested}_{}", files[0].0);
    let mut chained = manifest.export;
    chained.job = ManifestJob::One(format!("019a0000-{requested:04x}-7000-8000-000000000001"));
    chained.export_type = kind.to_owned();
    chained.files[0].path = Some(files[0].0.clone());
    let url = format!("file:///srv/{}", files[0].0);
    Export { manifest: Manifest::new(manifest.number, chained, vec![url]), files }
}

/// Returns the same export, as if from another database.
fn of_another_database(export: &Export) -> Export {
    let Export { manifest, files } = export.clone();
    let urls = manifest.entries.iter().map(|entry| entry.url.clone()).collect();
    let mut chained: Chained = manifest.export;
    chained.source.database = "16385".to_owned();
    Export { manifest: Manifest::new(manifest.number, chained, urls), files }
}

fn place(exports: &[&Export]) -> TempDir {
    let folder = reachable_folder();
    exports.iter().for_each(|export| export.write(folder.path()));
    folder
}

async fn apply(target: &Database, place: &Path) -> (i32, String, String) {
    let (to, place) = (target.url(), place.to_str().unwrap());
    far(&["apply", "--to", &to, "--consumer", "a", "--dataset", "orders", "--from", place]).output().await
}

/// Applies a place without a fault. Returns the lines that `apply` prints.
async fn applied(target: &Database, exports: &[&Export]) -> Vec<String> {
    let place = place(exports);
    let printed = silent(apply(target, place.path()).await);
    printed.lines().map(|line| line.strip_prefix("orders: ").expect(line).to_owned()).collect()
}

async fn count(target: &Database) -> i64 {
    target.one("select count(*) from sales.orders").await
}

#[tokio::test]
async fn a_table_goes_on_with_a_full_export_of_the_restored_source() {
    let first = export(None, "full", 10, 1);
    let second = export(Some(&first), "incremental", 12, 2);
    let third = export(Some(&second), "incremental", 14, 3);
    // A full export that the restored source has forgotten, with the largest number of all.
    let fourth = export(Some(&third), "full", 40, 4);
    let restored = export(Some(&second), "full", 20, 20);
    let after = export(Some(&restored), "incremental", 25, 21);
    let forgotten = [&first, &second, &third, &fourth];
    let all = [&forgotten[..], &[&restored, &after]].concat();
    let goes_on = |deleted: u64| {
        vec![
            format!("full 3  20 rows written, {deleted} deleted"),
            "incremental 4  25 rows written, 0 deleted".to_owned(),
        ]
    };

    // A table that had everything, one that stopped where the lane forks, and a new one.
    let target = Database::empty().await;
    assert_eq!(applied(&target, &forgotten).await, ["full 4  40 rows written, 0 deleted"]);
    assert_eq!(applied(&target, &all).await, goes_on(40));
    assert_eq!(count(&target).await, 25);
    let behind = Database::empty().await;
    applied(&behind, &forgotten[..2]).await;
    assert_eq!(applied(&behind, &all).await, goes_on(12));
    let new = Database::empty().await;
    assert_eq!(applied(&new, &all).await, goes_on(0));

    // The forgotten exports never come back, whatever is in the place.
    let fifth = export(Some(&fourth), "full", 50, 5);
    let all = [&all[..], &[&fifth]].concat();
    for exports in [&all[..], &forgotten, &[&third, &fourth, &fifth]] {
        assert_eq!(applied(&target, exports).await, Vec::<String>::new());
        assert_eq!(count(&target).await, 25);
    }
    // Nor if the exports before the fork were removed.
    assert_eq!(applied(&Database::empty().await, &[&fourth, &fifth, &restored, &after]).await, goes_on(0));
}

#[tokio::test]
async fn a_fork_without_a_newer_full_export_is_refused_with_both_names() {
    let first = export(None, "full", 10, 1);
    let second = export(Some(&first), "incremental", 12, 2);
    let third = export(Some(&second), "incremental", 14, 3);
    let restored = export(Some(&second), "incremental", 20, 20);
    let (both, target) = (place(&[&first, &second, &third, &restored]), Database::empty().await);
    let refused = async |target: &Database| {
        let (printed, said) = ends(apply(target, both.path()).await, 1, "orders: forked: ");
        assert!(printed.is_empty(), "{printed}");
        for export in [&third, &restored] {
            assert!(said.contains(&format!("{} (number 3)", export.name())), "{said}");
        }
    };
    refused(&target).await;
    applied(&target, &[&first, &second]).await;
    refused(&target).await;
    assert_eq!(count(&target).await, 12);
    // A full export mends it.
    export(Some(&restored), "full", 30, 21).write(both.path());
    assert_eq!(silent(apply(&target, both.path()).await), "orders: full 4  30 rows written, 12 deleted\n");

    // The place has only what came after the restore, and no full export of that.
    let (ahead, after) = (Database::empty().await, export(Some(&restored), "incremental", 22, 22));
    applied(&ahead, &[&first, &second, &third]).await;
    let newer = place(&[&restored, &after]);
    let (_, said) = ends(apply(&ahead, newer.path()).await, 1, "orders: full_export_needed: ");
    assert!(said.contains("exports up to number 4"), "{said}");
    let newer = place(&[&restored]);
    let (_, said) = ends(apply(&ahead, newer.path()).await, 1, "orders: forked: ");
    assert!(said.contains(&restored.name()), "{said}");
}

/// A full export of another database has a larger number and is newer, and is refused as without a fork.
#[tokio::test]
async fn a_fork_brings_no_rows_of_another_database() {
    let first = export(None, "full", 10, 1);
    let second = export(Some(&first), "incremental", 12, 2);
    let copied = of_another_database(&export(Some(&first), "full", 20, 20));
    let (place, target) = (place(&[&first, &second, &copied]), Database::empty().await);
    ends(apply(&target, place.path()).await, 1, "orders: forked: ");
    applied(&target, &[&first, &second]).await;
    ends(apply(&target, place.path()).await, 1, "another_source: ");
    assert_eq!(count(&target).await, 12);
}
