//! Files in buckets, on emulators that get real requests. `tests/buckets.sh` starts them; without them each test says
//! so and passes.

mod between;
mod hostile_stores;
mod manifests;
mod outages;

use cdc_destination::{BucketAddress, BucketSettings, Settings};
use nix::sys::signal::Signal;
use ring::{digest, hmac};
use serde_json::{Value, json};

use crate::crashes::killed_by_an_export;
use crate::destinations::keeps_its_contract;
use crate::harness::{
    Csv, Database, Service, Start, client_builder, ends, eventually, far, option_env, reachable_folder, serving, until,
};

/// Shared access signature for the emulator of Azure, whose key is public. It is valid until the year 2099.
const AZURITE: &str = "se=2099-01-01T00%3A00%3A00Z&sp=rwdlac&sv=2026-10-06&ss=b&srt=sco&sig=5x/ZkIOORRabQ%2BcTQiijQru%2BqlZISjMz8nC58gJezkk%3D";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cloud {
    S3,
    Gcs,
    Azure,
}

struct Bucket {
    cloud: Cloud,
    endpoint: String,
    name: String,
    client: reqwest::Client,
}

/// A bucket of each emulator that runs.
async fn buckets() -> Vec<Bucket> {
    let mut found = Vec::new();
    let emulators = [
        (Cloud::S3, "BUCKETS_S3"),
        (Cloud::S3, "BUCKETS_S3S"),
        (Cloud::Gcs, "BUCKETS_GCS"),
        (Cloud::Azure, "BUCKETS_AZURE"),
    ];
    for (cloud, variable) in emulators {
        match option_env(variable) {
            Some(emulator) if cloud == Cloud::Gcs => found.push(Bucket::new(cloud, like_gcs(emulator).await).await),
            Some(endpoint) => found.push(Bucket::new(cloud, endpoint).await),
            // A further opinion, for those who ask for it.
            None if variable == "BUCKETS_S3S" => {}
            None => eprintln!("passed over: {variable} is not set; tests/buckets.sh sets it"),
        }
    }
    found
}

#[tokio::test]
async fn a_bucket_keeps_the_contract_of_a_destination() {
    for bucket in buckets().await {
        let variables = bucket.variables();
        let variables = || variables.iter().map(|(name, value)| (*name, value.as_str()));
        let (_, url) = variables().find(|(name, _)| *name == "OUTPUT_URL").unwrap();
        let address = BucketAddress::read(url, variables()).unwrap();
        let settings = Settings::Bucket(BucketSettings { address, part_bytes: 5 << 20 });
        keeps_its_contract(|| settings.destination().unwrap()).await;
    }
}

/// Makes a client that uses a connection once. A store closes one that is idle for some seconds, perhaps just when the
/// next call is sent.
fn client_of_stores() -> reqwest::Client {
    client_builder().pool_max_idle_per_host(0).build().unwrap()
}

impl Bucket {
    async fn new(cloud: Cloud, endpoint: String) -> Bucket {
        let name = format!("b{}", uuid::Uuid::new_v4().simple());
        let bucket = Bucket { cloud, endpoint, name, client: client_of_stores() };
        let made = bucket.call("PUT", "", "restype=container").await;
        assert!(made.status().is_success(), "{}", made.text().await.unwrap());
        bucket
    }

    /// Returns true if the bucket is at s3s-fs. That has all of S3 that an export needs. Beyond that, it lists no
    /// uploads, and makes a bucket that doesn't exist.
    fn is_at_s3s(&self) -> bool {
        option_env("BUCKETS_S3S").as_ref() == Some(&self.endpoint)
    }

    /// Returns the same bucket at another endpoint.
    fn at(&self, endpoint: &str) -> Bucket {
        let Bucket { cloud, name, client, .. } = self;
        Bucket { cloud: *cloud, endpoint: endpoint.to_owned(), name: name.clone(), client: client.clone() }
    }

    async fn call(&self, method: &str, key: &str, query: &str) -> reqwest::Response {
        let Bucket { cloud, endpoint, name, client } = self;
        let slash = if key.is_empty() { "" } else { "/" };
        let url = match cloud {
            Cloud::S3 if query == "restype=container" => signed(method, endpoint, &format!("/{name}"), ""),
            Cloud::S3 => signed(method, endpoint, &format!("/{name}{slash}{key}"), query),
            Cloud::Gcs if query == "restype=container" => format!("{endpoint}/{name}"),
            Cloud::Gcs => format!("{endpoint}/{name}{slash}{key}?{query}"),
            Cloud::Azure => format!("{endpoint}/devstoreaccount1/{name}{slash}{key}?{query}&{AZURITE}"),
        };
        client.request(method.parse().unwrap(), url).send().await.unwrap()
    }

    fn start(&self, database: &Database) -> Start {
        let start = Start::on(database).with("OUTPUT_DIR", "").with("OUTPUT_PART_SIZE", "5MiB");
        self.variables().into_iter().fold(start, |start, (name, value)| start.with(name, value))
    }

    /// Returns the variables that name the bucket and give access to it.
    fn variables(&self) -> Vec<(&'static str, String)> {
        let Bucket { cloud, endpoint, name, .. } = self;
        let (endpoint, yes) = (endpoint.clone(), || "true".to_owned());
        match cloud {
            Cloud::S3 => vec![
                ("OUTPUT_URL", format!("s3://{name}/exports")),
                ("AWS_ENDPOINT_URL", endpoint),
                ("AWS_ALLOW_HTTP", yes()),
                ("AWS_ACCESS_KEY_ID", "test".to_owned()),
                ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ],
            Cloud::Gcs => vec![
                ("OUTPUT_URL", format!("gs://{name}/exports")),
                ("GOOGLE_SERVICE_ACCOUNT_KEY", service_account(&endpoint).to_string()),
                ("GOOGLE_SKIP_SIGNATURE", yes()),
                ("GOOGLE_ALLOW_HTTP", yes()),
            ],
            Cloud::Azure => vec![
                ("OUTPUT_URL", format!("az://{name}/exports")),
                ("AZURE_STORAGE_USE_EMULATOR", yes()),
                ("AZURITE_BLOB_STORAGE_URL", endpoint),
            ],
        }
    }

    async fn put(&self, key: &str, content: impl Into<reqwest::Body>) {
        let Bucket { cloud, endpoint, name, client } = self;
        let url = match cloud {
            Cloud::S3 | Cloud::Gcs => format!("{endpoint}/{name}/{key}"),
            Cloud::Azure => format!("{endpoint}/devstoreaccount1/{name}/{key}?{AZURITE}"),
        };
        let put = client.put(url).header("x-ms-blob-type", "BlockBlob").body(content).send().await.unwrap();
        assert!(put.status().is_success(), "{}", put.text().await.unwrap());
    }

    /// The keys below the prefix, without the bucket's mark, the markers of lanes, and manifests.
    async fn keys(&self) -> Vec<String> {
        let mut keys = self.all_keys().await;
        let is_kept = |key: &str| key.starts_with("exports/.lane-") || key == "exports/.cdc-export-store";
        keys.retain(|key| !is_kept(key) && !key.contains("/_manifests/"));
        keys
    }

    async fn all_keys(&self) -> Vec<String> {
        let (query, tag) = match self.cloud {
            Cloud::S3 | Cloud::Gcs => ("list-type=2&prefix=exports/", "Key"),
            Cloud::Azure => ("restype=container&comp=list&prefix=exports/", "Name"),
        };
        let listed = self.call("GET", "", query).await.text().await.unwrap();
        texts(&listed, tag)
    }

    /// The keys of uploads that are not completed.
    async fn uploads(&self) -> Vec<String> {
        match self.cloud {
            Cloud::S3 | Cloud::Gcs => texts(&self.call("GET", "", "uploads").await.text().await.unwrap(), "Key"),
            // Nobody can take back what was sent there; Azure drops it after a week.
            Cloud::Azure => Vec::new(),
        }
    }

    /// Waits until the bucket has this job's file and nothing else.
    async fn holds_only(&self, service: &Service, job: &Value) {
        eventually("the job's file alone is left", async || {
            let keys = self.keys().await;
            (keys.len() == 1 && is_key_of(&keys[0], job) && self.uploads().await.is_empty()).then_some(())
        })
        .await;
        assert_eq!(downloaded(service, job).await.rows.len() as u64, job["rowsExported"].as_u64().unwrap());
    }
}

/// The emulator of S3 in the dress of GCS, whose XML calls have other names for metadata and for the version that a PUT
/// replaces. The version is the ETag here, and `0` stands for no object.
async fn like_gcs(emulator: String) -> String {
    let client = client_of_stores();
    let translate = async move |request: axum::extract::Request| {
        let (head, body) = request.into_parts();
        let mut call = client.request(head.method.clone(), format!("{emulator}{}", head.uri));
        for (name, value) in &head.headers {
            match name.as_str() {
                "x-goog-if-generation-match" if value == "0" => call = call.header("if-none-match", "*"),
                "x-goog-if-generation-match" => call = call.header("if-match", value),
                "host" => {}
                name => call = call.header(name.replace("x-goog-meta-", "x-amz-meta-"), value),
            }
        }
        let answer = call.body(axum::body::to_bytes(body, usize::MAX).await.unwrap()).send().await.unwrap();
        let mut response = axum::http::Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            response = response.header(name.as_str().replace("x-amz-meta-", "x-goog-meta-"), value);
        }
        if let Some(etag) = answer.headers().get("etag") {
            response = response.header("x-goog-generation", etag);
        }
        let is_head = head.method == axum::http::Method::HEAD;
        let body = if is_head { bytes::Bytes::new() } else { answer.bytes().await.unwrap() };
        response.body(axum::body::Body::from(body)).unwrap()
    };
    serving(axum::Router::new().fallback(translate)).await
}

/// A key of nobody's, with which the client asks no one for a token.
fn service_account(endpoint: &str) -> Value {
    json!({
        "private_key": "none",
        "private_key_id": "none",
        "client_email": "nobody@example.com",
        "disable_oauth": true,
        "gcs_base_url": endpoint,
    })
}

/// The address of a request to S3 with its signature (AWS's documentation, "Authenticating Requests: Using Query
/// Parameters").
fn signed(method: &str, endpoint: &str, path: &str, query: &str) -> String {
    let encoded = |text: &str, kept: &str| {
        let is_kept =
            |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte) || kept.as_bytes().contains(byte);
        let code = |byte: u8| if is_kept(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        text.bytes().map(code).collect::<String>()
    };
    let sign = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
    let (path, time) = (encoded(path, "/"), chrono::Utc::now().format("%Y%m%dT%H%M%SZ").to_string());
    let scope = format!("{}/us-east-1/s3/aws4_request", &time[..8]);
    let mut pairs: Vec<String> = [
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", &format!("test/{scope}")),
        ("X-Amz-Date", &time),
        ("X-Amz-Expires", "60"),
        ("X-Amz-SignedHeaders", "host"),
    ]
    .into_iter()
    .chain(query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, ""))))
    .map(|(name, value)| format!("{name}={}", encoded(value, "")))
    .collect();
    pairs.sort();
    let (query, host) = (pairs.join("&"), endpoint.trim_start_matches("http://"));
    let request = format!("{method}\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD");
    let digest = hex::encode(digest::digest(&digest::SHA256, request.as_bytes()));
    let mut key = sign(b"AWS4test", &time[..8]);
    for step in ["us-east-1", "s3", "aws4_request"] {
        key = sign(key.as_ref(), step);
    }
    let signature = sign(key.as_ref(), &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}"));
    format!("{endpoint}{path}?{query}&X-Amz-Signature={}", hex::encode(signature))
}

fn texts(xml: &str, tag: &str) -> Vec<String> {
    let begin = format!("<{tag}>");
    xml.split(&begin).skip(1).map(|rest| rest.split_once("</").unwrap().0.to_owned()).collect()
}

/// Returns true if a key is `{prefix}/{dataset}/{consumer}/{stem}_{token8}{ext}`.
fn is_key_of(key: &str, job: &Value) -> bool {
    let name = job["outputFilename"].as_str().unwrap();
    let (stem, extension) = name.split_once('.').unwrap();
    let begin = format!("exports/users/{}/{stem}_", job["consumerId"].as_str().unwrap_or("_ad_hoc"));
    let token = key.strip_prefix(&begin).and_then(|rest| rest.strip_suffix(&format!(".{extension}")));
    token.is_some_and(|token| token.len() == 8 && token.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A job's file, as the service hands it out; its checksum is the job's.
async fn downloaded(service: &Service, job: &Value) -> Csv {
    let answer = service.call("GET", &format!("/exports/{}/download", job["jobId"].as_str().unwrap()), &[]).await;
    assert_eq!(answer.status(), 200);
    let bytes = answer.bytes().await.unwrap();
    let sha256 = hex::encode(digest::digest(&digest::SHA256, &bytes));
    assert_eq!(Some(sha256.as_str()), job["sha256"].as_str());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &bytes).unwrap();
    Csv::read(file.path())
}

/// Runs an export to its end. No attempt stops by itself, because such a one is not counted, and would be repeated.
async fn export(service: &Service, export_type: &str, consumer: &str) -> Value {
    let id = service.submit(export_type, consumer).await;
    let job = service.completes(&id).await;
    assert_eq!(service.events("export_released"), Vec::<Value>::new());
    job
}

/// Users of 300 bytes each: 40,000 make three parts.
async fn add_wide_users(database: &Database, users: i64) {
    database.add_users(1, users).await;
    database.run("update users set name = repeat('x', 250), is_deleted = false").await;
}

#[tokio::test]
async fn an_export_is_one_object() {
    for bucket in buckets().await {
        let database = Database::new().await;
        add_wide_users(&database, 40_000).await;
        let service = bucket.start(&database).service().await;
        let job = export(&service, "full", "a:b@c").await;
        bucket.holds_only(&service, &job).await;
        let scheme = match bucket.cloud {
            Cloud::S3 => "s3",
            Cloud::Gcs => "gs",
            Cloud::Azure => "az",
        };
        let key = bucket.keys().await.remove(0);
        assert_eq!(job["location"], format!("{scheme}://{}/{key}", bucket.name));
        let path = format!("/exports/{}/download", job["jobId"].as_str().unwrap());
        let part = service.call("GET", &path, &[("Range", "bytes=6000000-6000009")]).await;
        assert_eq!((part.status().as_u16(), part.bytes().await.unwrap().len()), (206, 10));
        let head = service.call("HEAD", &path, &[]).await;
        assert_eq!(head.headers()["content-length"].to_str().unwrap(), job["bytesWritten"].to_string());

        database.run("update users set name = 'new', updated_at = now() where id = 7").await;
        let changed = export(&service, "incremental", "a:b@c").await;
        assert_eq!(downloaded(&service, &changed).await.ids(), [7]);
        // An export without rows has a file, too.
        let none = export(&service, "delta", "a:b@c").await;
        assert_eq!(downloaded(&service, &none).await.rows.len(), 0);

        let key = bucket.keys().await.into_iter().find(|key| is_key_of(key, &changed)).unwrap();
        assert!(bucket.call("DELETE", &key, "").await.status().is_success());
        let path = format!("/exports/{}/download", changed["jobId"].as_str().unwrap());
        service.refuses("GET", &path, &[], 410, "file_gone").await;
        for job in [&job, &changed, &none] {
            let id = job["jobId"].as_str().unwrap();
            let before = service.job(id).await;
            assert_eq!(service.call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
            assert_eq!(service.job(id).await, before, "an ended job doesn't change");
        }
        assert_eq!(bucket.keys().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn nobody_sees_a_file_before_its_commit() {
    for bucket in buckets().await {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).with("FAILPOINTS", "worker.staged=hold").service().await;
        let id = service.submit("full", "a").await;
        service.reaches("worker.staged").await;
        let keys = bucket.keys().await;
        assert!(keys.iter().all(|key| key.starts_with("exports/.uploads/")), "{keys:?}");
        service.release("worker.staged").await;
        let job = service.ended(&id).await;
        bucket.holds_only(&service, &job).await;
    }
}

#[tokio::test]
async fn a_crash_at_any_step_leaves_all_or_nothing() {
    for bucket in buckets().await {
        for place in ["bucket.part@2", "worker.staged", "worker.commit", "worker.committed", "bucket.completed"] {
            let database = Database::new().await;
            add_wide_users(&database, 40_000).await;
            let bucket = Bucket::new(bucket.cloud, bucket.endpoint.clone()).await;
            let (name, at) = place.split_once('@').unwrap_or((place, "1"));
            let start = || bucket.start(&database).with("LEASE_SECONDS", "4");
            let mut dead = start().with("FAILPOINTS", format!("{name}=kill@{at}")).service().await;
            let id = killed_by_an_export(&database, &mut dead).await;
            let heir = start().service().await;
            let job = heir.completes(&id).await;
            bucket.holds_only(&heir, &job).await;
            assert_eq!(heir.watermark("a").await.as_deref(), job["watermarkTo"].as_str(), "{place}");
        }
    }
}

#[tokio::test]
async fn a_part_that_fails_and_an_answer_that_is_lost_are_made_good() {
    for bucket in buckets().await {
        for (place, attempts) in
            [("bucket.part=error", 2), ("bucket.completed=error", 1), ("bucket.forgotten=error", 1)]
        {
            let database = Database::with_users(5).await;
            let bucket = Bucket::new(bucket.cloud, bucket.endpoint.clone()).await;
            let service = bucket.start(&database).with("FAILPOINTS", place).service().await;
            let job = export(&service, "full", "a").await;
            assert_eq!(job["attempt"], attempts, "{place}");
            bucket.holds_only(&service, &job).await;
        }
    }
}

#[tokio::test]
async fn two_services_without_a_common_folder_serve_each_others_jobs() {
    for bucket in buckets().await {
        let database = Database::with_users(5).await;
        let services = [bucket.start(&database).service().await, bucket.start(&database).service().await];
        for consumer in ["a", "b", "c", "d"] {
            let job = export(&services[0], "full", consumer).await;
            for service in &services {
                assert_eq!(downloaded(service, &job).await.rows.len(), 5);
            }
        }
    }
}

#[tokio::test]
async fn a_committed_upload_that_somebody_aborted_is_told_and_not_passed_over() {
    for bucket in buckets().await.into_iter().filter(|bucket| bucket.cloud != Cloud::Azure && !bucket.is_at_s3s()) {
        let database = Database::with_users(5).await;
        let start = || bucket.start(&database).with("LEASE_SECONDS", "4");
        let mut dead = start().with("FAILPOINTS", "worker.committed=kill").service().await;
        let id = killed_by_an_export(&database, &mut dead).await;
        let listed = bucket.call("GET", "", "uploads").await.text().await.unwrap();
        let [key, upload] = ["Key", "UploadId"].map(|tag| texts(&listed, tag).remove(0));
        assert!(bucket.call("DELETE", &key, &format!("uploadId={upload}")).await.status().is_success());

        let heir = start().service().await;
        let job = heir.ended(&id).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("file_lost")), "{job}");
        assert_eq!(heir.ended(&heir.submit("incremental", "a").await).await["error"]["code"], "full_export_needed");
        let job = export(&heir, "full", "a").await;
        // The note of the lost upload is left to the sweep.
        assert!(bucket.keys().await.iter().any(|key| is_key_of(key, &job)));
        assert_eq!(downloaded(&heir, &job).await.rows.len(), 5);
    }
}

#[tokio::test]
async fn a_worker_that_was_stopped_touches_nothing_when_it_wakes() {
    for bucket in buckets().await {
        let database = Database::new().await;
        add_wide_users(&database, 40_000).await;
        let start = || bucket.start(&database).with("LEASE_SECONDS", "5");
        let sleeper = start().with("FAILPOINTS", "bucket.part=hold@2").service().await;
        let id = sleeper.submit("full", "a").await;
        sleeper.reaches("bucket.part").await;
        sleeper.signal(Signal::SIGSTOP);
        let heir = start().service().await;
        let job = heir.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
        sleeper.signal(Signal::SIGCONT);
        sleeper.release("bucket.part").await;
        sleeper.says("lease_lost", &id).await;
        bucket.holds_only(&heir, &job).await;
    }
}

#[tokio::test]
async fn a_bucket_that_cannot_be_used_stops_the_start_with_one_line() {
    for bucket in buckets().await {
        let database = Database::new().await;
        let (other, variable) = match bucket.cloud {
            Cloud::S3 => ("s3://no-such-bucket/exports", "AWS_ALLOW_HTTP"),
            Cloud::Gcs => ("gs://no-such-bucket/exports", "GOOGLE_ALLOW_HTTP"),
            Cloud::Azure => ("az://no-such-container/exports", "AZURE_SKIP_SIGNATURE"),
        };
        let starts = [
            (2, other, bucket.start(&database).with("OUTPUT_URL", other)),
            // A later start may find it.
            (1, "refused", bucket.at("http://127.0.0.1:1").start(&database)),
            (2, "OUTPUT_DIR", bucket.start(&database).with("OUTPUT_DIR", "/tmp/exports")),
            (2, variable, bucket.start(&database).with(variable, "yesplease")),
        ];
        for (expected, named, start) in starts.into_iter().skip(usize::from(bucket.is_at_s3s())) {
            let (code, errors) = start.until_it_ends().await;
            let line = errors.lines().last().unwrap();
            assert!(code == expected && line.starts_with("cdc-export: OUTPUT_URL: "), "{code} {errors}");
            assert!(line.contains(named), "{line}");
            assert_eq!(errors.lines().filter(|line| line.starts_with("cdc-export: ")).count(), 1, "{errors}");
        }
    }
}

#[tokio::test]
async fn a_start_that_dies_leaves_nothing_for_good() {
    for bucket in buckets().await {
        let database = Database::new().await;
        let (mut dead, _work) = bucket.start(&database).with("FAILPOINTS", "start.probed=kill").spawn();
        dead.wait().await.unwrap();
        assert_eq!(bucket.keys().await, ["exports/.cdc-export-store.probe"]);
        let _service = bucket.start(&database).service().await;
        assert_eq!(bucket.keys().await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn an_abandoned_upload_is_swept() {
    for bucket in buckets().await {
        let database = Database::new().await;
        add_wide_users(&database, 40_000).await;
        let service = bucket.start(&database).with("MAX_ATTEMPTS", "1").with("FAILPOINTS", "bucket.part=hold@2");
        let service = service.service().await;
        let id = service.submit("full", "a").await;
        service.reaches("bucket.part").await;
        assert_eq!(service.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status(), 202);
        service.release("bucket.part").await;
        assert_eq!(service.ended(&id).await["status"], "cancelled");
        until("nothing is left", async || bucket.keys().await.is_empty() && bucket.uploads().await.is_empty()).await;
    }
}

/// The next sweep finds it by its note, within a minute.
#[tokio::test]
async fn an_upload_that_begins_while_its_export_is_cancelled_is_swept() {
    for bucket in buckets().await.into_iter().take(1) {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).with("FAILPOINTS", "bucket.created=hold").service().await;
        let id = service.submit("full", "a").await;
        service.reaches("bucket.created").await;
        assert_eq!(bucket.uploads().await.len(), 1);
        assert_eq!(service.call("POST", &format!("/exports/{id}/cancel"), &[]).await.status(), 202);
        assert_eq!(service.ended(&id).await["status"], "cancelled");
        service.release("bucket.created").await;
        until("nothing is left", async || bucket.keys().await.is_empty() && bucket.uploads().await.is_empty()).await;
    }
}

#[tokio::test]
async fn the_mark_is_the_id_of_the_bucket() {
    for bucket in buckets().await {
        let database = Database::new().await;
        let service = bucket.start(&database).service().await;
        let answer: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        assert_eq!(answer["checks"]["output"], "ok");
        assert!(bucket.call("DELETE", "exports/.cdc-export-store", "").await.status().is_success());
        assert_eq!(service.call("GET", "/health/ready", &[]).await.status(), 503);
    }
}

#[tokio::test]
async fn a_client_is_sent_to_the_bucket_with_an_address_that_expires() {
    // The client for GCS signs with a key that has to be a real one.
    for bucket in buckets().await.into_iter().filter(|bucket| bucket.cloud != Cloud::Gcs) {
        let database = Database::with_users(5).await;
        let service = bucket.start(&database).with("DOWNLOADS", "redirect").with("FAILPOINTS", "service.url=time:4000");
        let service = service.service().await;
        let job = export(&service, "full", "a").await;
        // The test's client follows it.
        assert_eq!(downloaded(&service, &job).await.rows.len(), 5);
        let id = job["jobId"].as_str().unwrap();
        let client = client_builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let answer = client.get(format!("{}/exports/{id}/download", service.address)).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["cache-control"].as_bytes()), (307, &b"no-store"[..]));

        // The commands follow it, too. One on the service's own machine reads the bucket itself.
        let folder = reachable_folder();
        for (name, start) in [
            ("far.csv", far(&["download", id, "--server", &service.address])),
            ("near.csv", bucket.start(&database).with("DOWNLOADS", "redirect").arguments(&["download", id])),
        ] {
            let path = folder.path().join(name);
            // On the same machine the command writes the audit line itself.
            ends(start.and(&["--output", path.to_str().unwrap()]).output().await, 0, "");
            assert_eq!(std::fs::metadata(&path).unwrap().len(), job["bytesWritten"]);
        }

        let asked = service.call("GET", &format!("/exports/{id}/url"), &[]).await;
        assert_eq!((asked.status().as_u16(), asked.headers()["cache-control"].as_bytes()), (200, &b"no-store"[..]));
        let body: Value = asked.json().await.unwrap();
        let url = body["url"].as_str().unwrap();
        assert_eq!(client.get(url).send().await.unwrap().bytes().await.unwrap().len() as u64, job["bytesWritten"]);
        let other = url.replace("/users/a/", "/users/b/");
        assert_ne!(client.get(other).send().await.unwrap().status(), 200, "signed for one object");
        until("the address expires", async || client.get(url).send().await.unwrap().status() == 403).await;
        let expires_at: chrono::DateTime<chrono::Utc> = body["expiresAt"].as_str().unwrap().parse().unwrap();
        assert!(expires_at <= chrono::Utc::now());
    }
}

#[tokio::test]
async fn a_file_in_a_folder_has_no_address() {
    let database = Database::new().await;
    let service = Start::on(&database).with("DOWNLOADS", "redirect").service().await;
    database.add_users(1, 5).await;
    let (job, _) = service.export("full", "a").await;
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    assert_eq!(service.call("GET", &format!("{path}/download"), &[]).await.status(), 200);
    service.refuses("GET", &format!("{path}/url"), &[], 409, "no_url").await;
}

#[tokio::test]
async fn manifests_and_their_files_are_verified_where_they_are() {
    for bucket in buckets().await {
        let lane = crate::verify::lane("a:b", &[(true, vec![4]), (true, vec![5, 6]), (false, vec![7])], "../");
        let variables = bucket.variables();
        let settings: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let url = settings[0].1;
        let lane: Vec<_> = lane.into_iter().map(|export| export.at_url(url)).collect();
        let folder = "exports/orders/a:b";
        for export in &lane {
            bucket.put(&format!("exports/{}", export.key()), export.manifest.text()).await;
            for (name, content) in &export.files {
                bucket.put(&format!("{folder}/{name}"), content.clone()).await;
            }
        }
        let verify =
            async |options: &[&str]| crate::command::run(&[&["verify", url], options].concat(), &settings).await;
        let (code, said, error) = verify(&[]).await;
        assert!(code == 0 && said.starts_with("whole: 1 lane, 3 exports, 4 files, "), "{said}{error}");

        bucket.call("DELETE", &format!("{folder}/{}", lane[0].files[0].0), "").await;
        bucket.call("DELETE", &format!("{folder}/{}", lane[1].files[1].0), "").await;
        bucket.put(&format!("exports/{}", lane[2].key()), lane[1].manifest.text()).await;
        let (code, said, _) = verify(&[]).await;
        let mut lines: Vec<&str> = said.lines().collect();
        assert!(lines.pop().unwrap().ends_with("; 1 older file gone") && code == 1, "{said}");
        assert!(lines.contains(&&*format!("orders/a:b 2 orders/a:b/{}: missing", lane[1].files[1].0)), "{said}");
        let misplaced = format!("orders/a:b 2 {}: changed (it is the manifest of another name)", lane[2].key());
        assert!(lines.contains(&&*misplaced), "{said}");

        let (code, _, error) = crate::command::run(&["verify", &format!("{url}-none")], &settings).await;
        assert_eq!((code, error.as_str()), (1, ""));
        let other = url.replace(&bucket.name, "none-such");
        let (code, _, error) = crate::command::run(&["verify", &other], &settings).await;
        assert!(code == 2 && error.starts_with(&format!("cdc-export: {other}: ")), "{code} {error}");
    }
}
