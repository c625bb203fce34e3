//! Exports in several files, of each format and compression.

#[path = "../suite/parts/files.rs"]
mod files;

use std::io::Read;

use ring::digest;
use serde_json::{Value, json};

use crate::harness::{Database, Start};
use crate::parts::files::{MOST, VALUE, files, ids, names, paths, submit};

/// So many users of a MiB each.
async fn with_users(users: i64) -> Database {
    let database = Database::new_with("alter table users alter column name type text").await;
    database.add_users(1, users).await;
    let statements = format!(
        "update users set is_deleted = false, name = (select string_agg(md5(g::text || users.id), '') from generate_series(1, {}) g)",
        VALUE / 32
    );
    database.run(&statements).await;
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_of_more_is_several_whole_files() {
    let database = with_users(40).await;
    let service = Start::on(&database).service().await;
    for (format, compression, ending) in [
        ("csv", "none", ".csv"),
        ("ndjson", "gzip", ".ndjson.gz"),
        ("csv", "zstd", ".csv.zst"),
        #[cfg(feature = "parquet")]
        ("parquet", "zstd", ".parquet"),
    ] {
        let options = json!({ "format": format, "compression": compression, "maxFileBytes": MOST });
        let job = service.completes(&submit(&service, "full", options).await).await;
        let stem = job["outputFilename"].as_str().unwrap().strip_suffix(ending).unwrap();
        let parts = files(&job).len();
        assert!(parts > 1, "{format} {compression}: {job}");
        let expected: Vec<_> = (1..=parts).map(|part| format!("{stem}.part-{part:05}{ending}")).collect();
        assert_eq!(names(&job), expected);
        assert_eq!((&job["sha256"], &job["location"]), (&Value::Null, &Value::Null));
        assert_eq!(job["maxFileBytes"], MOST);
        let sum = |member: &str| files(&job).iter().map(|file| file[member].as_u64().unwrap()).sum::<u64>();
        assert_eq!((sum("bytes"), sum("rows")), (job["bytesWritten"].as_u64().unwrap(), 40));
        for (number, (file, path)) in (1..).zip(files(&job).iter().zip(paths(&service, &job))) {
            let content = std::fs::read(&path).unwrap();
            let sha256 = hex::encode(digest::digest(&digest::SHA256, &content));
            assert_eq!((&file["part"], &file["sha256"]), (&json!(number), &json!(sha256)));
            assert_eq!(file["location"], format!("file://{}", path.display()));
            assert_eq!(file["bytes"], content.len());
            // A piece more at most, and a value is larger than a piece.
            assert!(number == parts || (MOST..MOST + 3 * VALUE as u64).contains(&(content.len() as u64)), "{file}");
            let mut text = String::new();
            match ending {
                ".ndjson.gz" => drop(flate2::read::MultiGzDecoder::new(&*content).read_to_string(&mut text).unwrap()),
                ".csv.zst" => text = String::from_utf8(zstd::decode_all(&*content).unwrap()).unwrap(),
                ".csv" => text = String::from_utf8(content.clone()).unwrap(),
                _ => assert!(content.starts_with(b"PAR1") && content.ends_with(b"PAR1")),
            }
            if !text.is_empty() {
                assert_eq!(text.lines().count() as u64 - u64::from(format == "csv"), file["rows"].as_u64().unwrap());
                assert_eq!(text.starts_with("id,name"), format == "csv");
            }
            let downloaded = service
                .call("GET", &format!("/exports/{}/files/{number}/download", job["jobId"].as_str().unwrap()), &[])
                .await;
            assert_eq!(downloaded.headers()["etag"], format!("\"{sha256}\""));
            assert!(downloaded.headers()["content-disposition"].to_str().unwrap().contains(&expected[number - 1]));
            assert!(downloaded.bytes().await.unwrap() == content);
        }
        if ending == ".csv" {
            assert_eq!(ids(&service, &job), (1..=40).collect::<Vec<_>>());
        }
        let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
        for (of, status, code) in [
            ("/download", 409, "several_files"),
            ("/url", 409, "several_files"),
            ("/files/0/download", 404, "no_part"),
            ("/files/99/download", 404, "no_part"),
            ("/files/x/download", 404, "no_part"),
            ("/files/01/download", 404, "no_part"),
        ] {
            service.refuses("GET", &format!("{path}{of}"), &[], status, code).await;
        }
        assert_eq!(service.call("DELETE", &path, &[]).await.status(), 204);
        assert_eq!(service.files(), Vec::<String>::new());
        service.refuses("GET", &format!("{path}/files/1/download"), &[], 410, "file_gone").await;
    }
}
