//! Manifests in a bucket, each under the number of its export, and exports in several objects.

use serde_json::{Value, json};

use super::{Bucket, buckets, export};
use crate::harness::{Database, Service, until};
use crate::parts::files;

impl Bucket {
    /// The manifests, by their keys below the prefix.
    async fn manifests(&self) -> Vec<(String, Value)> {
        let mut found = Vec::new();
        for key in self.all_keys().await.into_iter().filter(|key| key.contains("/_manifests/")) {
            let text = self.call("GET", &key, "").await.text().await.unwrap();
            found.push((key.strip_prefix("exports/").unwrap().to_owned(), serde_json::from_str(&text).unwrap()));
        }
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }
}

fn key(consumer: &str, number: u64) -> String {
    format!("users/{consumer}/_manifests/{number:020}.json")
}

async fn told(service: &Service, job: &Value) -> Value {
    let path = format!("/exports/{}/manifest", job["jobId"].as_str().unwrap());
    service.call("GET", &path, &[]).await.json().await.unwrap()
}

#[tokio::test]
async fn a_lanes_manifests_have_its_numbers_for_keys() {
    for bucket in buckets().await {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).service().await;
        let mut expected = Vec::new();
        let mut before = Value::Null;
        for (number, export_type) in (1..).zip(["full", "delta", "delta"]) {
            database.add_users(number as i64 * 10, number as i64 * 10 + 2).await;
            let job = export(&service, export_type, "a:b").await;
            let manifest = told(&service, &job).await;
            assert_eq!((&manifest["number"], &manifest["export"]["previous"]), (&json!(number), &before));
            assert_eq!(manifest["entries"][0]["url"], job["location"]);
            let file = job["location"].as_str().unwrap().rsplit('/').next().unwrap();
            assert_eq!(manifest["export"]["files"][0]["path"], format!("../{file}"));
            before = job["digest"].clone();
            expected.push((key("a:b", number), manifest));
        }
        assert_eq!(bucket.manifests().await, expected, "{:?}", bucket.cloud);
        service.stop().await;
        let off = bucket.start(&database).with("MANIFESTS", "off").service().await;
        export(&off, "delta", "a:b").await;
        assert_eq!(bucket.manifests().await.len(), 3);
    }
}

/// A manifest that somebody may have read stays, and the database goes on after it.
#[tokio::test]
async fn after_a_restore_the_manifests_of_what_was_forgotten_stay() {
    for bucket in buckets().await {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).service().await;
        let first = export(&service, "full", "a").await;
        for _ in 0..2 {
            export(&service, "delta", "a").await;
        }
        let handed_out = bucket.manifests().await;
        // The database is as if it was put back to the moment after the first export.
        database
            .run("delete from cdc_export.exports where number > 1; update cdc_export.lanes set last_number = 1")
            .await;
        let full = export(&service, "full", "a").await;
        assert_eq!(full["number"], 4, "{full}");
        assert_eq!(service.events("manifest_taken").len(), 1);
        let now = bucket.manifests().await;
        assert_eq!(now[..3], handed_out);
        assert_eq!(now[3], (key("a", 4), told(&service, &full).await));
        assert_eq!(now[3].1["export"]["previous"], first["digest"], "a fork, which verify tells");
        let next = export(&service, "delta", "a").await;
        assert_eq!((&next["number"], &told(&service, &next).await["export"]["previous"]), (&json!(5), &full["digest"]));
    }
}

/// The worker's publisher is held up before it writes the manifest, and maintenance's behind that: each finds the
/// number taken, and the worker's finds the manifest that the other one has written under the number behind.
#[tokio::test]
async fn of_two_publishers_that_find_a_number_taken_one_goes_on_behind() {
    for bucket in buckets().await {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).service().await;
        for export_type in ["full", "delta", "delta"] {
            export(&service, export_type, "a").await;
        }
        service.stop().await;
        database
            .run("delete from cdc_export.exports where number > 1; update cdc_export.lanes set last_number = 1")
            .await;
        let held_up = "publisher.named=sleep:5000,sink.manifest.renamed=sleep:5000@2";
        let service = bucket.start(&database).with("FAILPOINTS", held_up).service().await;
        let full = export(&service, "full", "a").await;
        assert_eq!(service.events("failpoint").len(), 2, "{}", service.log());
        assert_eq!(service.events("manifest_taken").len(), 1, "{}", service.log());
        let manifests = bucket.manifests().await;
        assert_eq!(manifests.len(), 4, "{manifests:?}");
        assert_eq!((&full["number"], &manifests[3]), (&json!(4), &(key("a", 4), told(&service, &full).await)));
    }
}

/// A copy that is kept by what is in the bucket alone, and one by what `pull` fetches from a service whose files are
/// there.
#[tokio::test]
async fn a_bucket_is_applied_and_pulled_from() {
    for bucket in buckets().await {
        let (database, target) = (Database::new().await, Database::empty().await);
        database.add_users(1, 20).await;
        let service = bucket.start(&database).service().await;
        export(&service, "full", "a").await;
        database.run("update users set name = 'x' where id = 3; delete from users where id = 4").await;
        export(&service, "delta", "a").await;
        let folder = crate::harness::reachable_folder();
        let into = folder.path().to_str().unwrap();
        let pull = ["pull", "--consumer", "a", "--server", &service.address, "--into", into];
        let (code, printed, said) = crate::harness::far(&pull).output().await;
        assert_eq!((code, printed.lines().count()), (0, 2), "{said}");
        let variables = bucket.variables();
        let place = variables.iter().find(|(name, _)| *name == "OUTPUT_URL").unwrap().1.clone();
        let live = "select string_agg(concat_ws(',', id, name, email, created_at, updated_at), '|' order by id) from users where not is_deleted";
        for from in [place.as_str(), into] {
            let to = target.url();
            let apply = ["apply", "--to", &to, "--consumer", "a", "--dataset", "users", "--from", from];
            let start = variables.iter().filter(|(name, _)| *name != "OUTPUT_URL");
            let start = start.fold(crate::harness::far(&apply), |start, (name, value)| start.with(name, value));
            let (code, printed, said) = start.output().await;
            assert_eq!((code, printed.lines().count()), (0, 2), "{from} {said}");
            assert_eq!(target.one::<String>(live).await, database.one::<String>(live).await, "{from}");
            target.run("drop table users; drop schema cdc_apply cascade").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_more_is_several_objects() {
    for bucket in buckets().await {
        let database = Database::new().await;
        super::add_wide_users(&database, 90_000).await;
        let service = bucket.start(&database).service().await;
        let id = files::submit(&service, "full", json!({ "maxFileBytes": 16 << 20 })).await;
        let job = service.completes(&id).await;
        let files = job["files"].as_array().unwrap();
        assert_eq!(files.len(), 2);
        let first = files[0]["location"].as_str().unwrap().strip_suffix(".csv").unwrap();
        assert_eq!(files[1]["location"], format!("{first}.part-00002.csv"));
        let mut lines = 0;
        for file in files {
            let path = format!("/exports/{id}/files/{}/download", file["part"]);
            let text = service.call("GET", &path, &[]).await.text().await.unwrap();
            assert!(text.starts_with("id,name,") && text.len() == file["bytes"].as_u64().unwrap() as usize);
            lines += text.lines().count() - 1;
        }
        assert_eq!(lines, 90_000);
        assert_eq!(bucket.keys().await.len(), 2);
        assert_eq!(service.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
        assert_eq!((bucket.keys().await, bucket.uploads().await), (Vec::new(), Vec::new()));
        service.refuses("GET", &format!("/exports/{id}/files/2/download"), &[], 410, "file_gone").await;
        assert_eq!(bucket.manifests().await.len(), 1, "it says for ever what there was");
    }
}

/// If nothing is left of an attempt, nothing is left of any of its parts either.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_among_the_parts_leaves_all_or_nothing() {
    for (fault, attempt) in [("bucket.created=kill@2", 2), ("worker.staged=kill", 2), ("bucket.completed=kill@2", 1)] {
        for bucket in buckets().await {
            let database = Database::new().await;
            super::add_wide_users(&database, 90_000).await;
            let mut dead = bucket.start(&database).with("FAILPOINTS", fault).with("LEASE_SECONDS", 5).service().await;
            dead.dies_of("full", "a", &json!({ "maxFileBytes": 16 << 20 })).await;
            let id: String = database.one("select job::text from exports").await;
            let heir = bucket.start(&database).service().await;
            let job = heir.ended(&id).await;
            assert_eq!(job["status"], "completed", "{fault}: {job}");
            assert_eq!(job["files"].as_array().unwrap().len(), 2, "{fault}: {job}");
            // On a busy machine a lease of a second runs out once more.
            assert!((job["attempt"] == 1) == (attempt == 1), "{fault}: {job}");
            until("nothing else is left", async || {
                bucket.keys().await.len() == 2 && bucket.uploads().await.len() <= usize::from(attempt == 2)
            })
            .await;
            assert_eq!(job["rowsExported"], 90_000);
        }
    }
}
