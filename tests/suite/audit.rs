//! The audit log: a row for each change, each download and each refusal of a valid key.

use serde_json::{Value, json};
use sqlx::Executor;

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, Service, Start, client_builder, eventually, refusal};
use crate::keys::{bearer, call_as};

/// A service that wants keys, with the key `admin` in its client. The dataset of its table is `users`.
async fn service(database: &Database) -> Service {
    started(Start::on(database), database).await
}

async fn started(start: Start, database: &Database) -> Service {
    let admin = bearer(database, "admin", &["admin"], &[]).await;
    let mut service = start.with("AUTH", "keys").service().await;
    let headers = [(reqwest::header::AUTHORIZATION, admin.parse().unwrap())].into_iter().collect();
    service.client = client_builder().default_headers(headers).build().unwrap();
    service
}

/// The prefix of the key in a header.
fn prefix(bearer: &str) -> String {
    bearer.split('_').nth(1).unwrap().to_owned()
}

/// The rows of the log with this key, oldest first: action, consumer, dataset, job, outcome and count.
async fn rows(service: &Service, key: &str) -> Vec<Value> {
    let answer = service.call("GET", &format!("/audit?limit=200&key={key}"), &[]).await;
    assert_eq!(answer.status(), 200);
    let page: Value = answer.json().await.unwrap();
    let mut rows: Vec<_> = page["items"].as_array().unwrap().clone();
    rows.reverse();
    let fields = ["action", "consumerId", "dataset", "jobId", "outcome", "count"];
    rows.iter().map(|row| fields.iter().map(|field| row[field].clone()).collect()).collect()
}

#[tokio::test]
async fn each_change_and_each_download_has_a_row() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &["a"]).await;
    let call = async |method: &str, path: &str, more: &[(&str, &str)]| {
        let headers = [&[("Authorization", &*key), ("X-Consumer-ID", "a"), ("X-Request-Id", "r-7")], more].concat();
        service.call(method, path, &headers).await
    };
    let made: Value = call("POST", "/exports/full", &[]).await.json().await.unwrap();
    let id = made["jobId"].as_str().unwrap();
    let job = service.ended(id).await;
    let (file, etag) = (format!("/exports/{id}/download"), format!("\"{}\"", job["sha256"].as_str().unwrap()));
    for (method, more, status) in [
        ("GET", &[][..], 200),
        ("GET", &[("Range", "bytes=0-3")], 206),
        // These send no byte of the file.
        ("HEAD", &[], 200),
        ("GET", &[("If-None-Match", etag.as_str())], 304),
        ("GET", &[("Range", "bytes=99999-")], 416),
    ] {
        assert_eq!(call(method, &file, more).await.status(), status);
    }
    assert_eq!(call("GET", &format!("/exports/{id}/files/1/download"), &[]).await.status(), 200);
    assert_eq!(call("POST", &format!("/exports/{id}/ack"), &[]).await.status(), 200);
    // The second acknowledgement changes nothing.
    assert_eq!(call("POST", &format!("/exports/{id}/ack"), &[]).await.status(), 200);
    let held = database.hold_exports().await;
    let open: Value = call("POST", "/exports/delta", &[]).await.json().await.unwrap();
    let open = open["jobId"].as_str().unwrap();
    assert_eq!(call("POST", &format!("/exports/{open}/cancel"), &[]).await.status(), 202);
    held.rollback().await.unwrap();
    service.ended(open).await;
    let again: Value = call("POST", &format!("/exports/{open}/retry"), &[]).await.json().await.unwrap();
    service.ended(again["jobId"].as_str().unwrap()).await;
    assert_eq!(call("DELETE", "/exports/watermark", &[]).await.status(), 204);
    assert_eq!(call("DELETE", &format!("/exports/{id}"), &[]).await.status(), 204);
    let done = |action: &str, job: Value, count: u32| json!([action, "a", "users", job, "done", count]);
    assert_eq!(
        rows(&service, &prefix(&key)).await,
        [
            done("export", json!(id), 1),
            done("download", json!(id), 2),
            done("download", json!(id), 1),
            done("ack", json!(id), 1),
            done("export", json!(open), 1),
            done("cancel", json!(open), 1),
            done("retry", again["jobId"].clone(), 1),
            done("delete_watermark", Value::Null, 1),
            done("remove_file", json!(id), 1),
        ]
    );
    let page: Value = service.call("GET", "/audit?action=ack", &[]).await.json().await.unwrap();
    let [ack] = page["items"].as_array().unwrap().as_slice() else { panic!("{page}") };
    assert_eq!((&ack["requestId"], &ack["remote"]), (&json!("r-7"), &json!("127.0.0.1")));
    // A row is written by the transaction of its change.
    assert_eq!(call("POST", &format!("/exports/{}/ack", again["jobId"].as_str().unwrap()), &[]).await.status(), 200);
    let together = "select l.xmin = n.xmin from cdc_export.audit_log l join cdc_export.lanes n using (consumer_id) \
                    where l.action = 'ack' order by l.id desc limit 1";
    assert!(database.one::<bool>(together).await);
    service.stop().await;
}

#[tokio::test]
async fn each_refusal_of_a_valid_key_has_a_row() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &["a"]).await;
    let call = async |method: &str, path: &str, more: &[(&str, &str)]| {
        let answer = service.call(method, path, &[&[("Authorization", &*key)], more].concat()).await;
        refusal(answer).await
    };
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    for _ in 0..3 {
        let refused = call("POST", "/exports/full", &[("X-Consumer-ID", "b")]).await;
        assert_eq!(refused, (403, "consumer_not_allowed".to_owned()));
    }
    assert_eq!(call("DELETE", "/users/1", &[]).await, (403, "scope_missing".to_owned()));
    assert_eq!(call("POST", &format!("/exports/{id}/cancel"), &[]).await, (409, "already_ended".to_owned()));
    let named = [("X-Consumer-ID", "a"), ("Idempotency-Key", "k")];
    let first = [&[("Authorization", &*key)], &named[..]].concat();
    let first: Value = service.call("POST", "/exports/full", &first).await.json().await.unwrap();
    service.ended(first["jobId"].as_str().unwrap()).await;
    assert_eq!(call("POST", "/exports/delta", &named).await, (422, "idempotency_key_reused".to_owned()));
    // These are no refusals of a valid key.
    assert_eq!(call("GET", "/exports/00000000-0000-0000-0000-000000000000", &[]).await.0, 404);
    assert_eq!(service.call("GET", "/exports", &[("Authorization", "Bearer x")]).await.status(), 401);
    assert_eq!(
        rows(&service, &prefix(&key)).await,
        [
            json!(["export", "b", null, null, "consumer_not_allowed", 3]),
            json!(["delete_user", null, null, null, "scope_missing", 1]),
            json!(["cancel", "a", "users", id, "already_ended", 1]),
            json!(["export", "a", "users", first["jobId"], "done", 1]),
            json!(["export", "a", "users", null, "idempotency_key_reused", 1]),
        ]
    );
    service.stop().await;
}

#[tokio::test]
async fn one_key_adds_few_rows_by_refusals() {
    let database = Database::new().await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &["a"]).await;
    for n in 0..130 {
        let consumer = format!("c{n}");
        let headers = [("Authorization", &*key), ("X-Consumer-ID", &*consumer)];
        assert_eq!(service.call("POST", "/exports/full", &headers).await.status(), 403);
    }
    let rows = rows(&service, &prefix(&key)).await;
    assert_eq!(rows.len(), 101);
    assert_eq!(rows[99], json!(["export", "c99", null, null, "consumer_not_allowed", 1]));
    assert_eq!(rows[100], json!(["export", null, null, null, "consumer_not_allowed", 30]));
    // The key's changes are recorded with their names all the same.
    let headers = [("Authorization", &*key), ("X-Consumer-ID", "a")];
    assert_eq!(service.call("POST", "/exports/full", &headers).await.status(), 202);
    let of_a = "select count(*) from cdc_export.audit_log where action = 'export' and consumer_id = 'a'";
    assert_eq!(database.one::<i64>(of_a).await, 1);
    service.stop().await;
}

/// Whoever ends the connection early hides nothing, and leaves nothing half done.
#[tokio::test]
async fn a_change_whose_client_goes_away_is_done_and_has_its_row() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let service = service(&database).await;
    let (job, _) = service.export("full", "a").await;
    let id = job["jobId"].as_str().unwrap();
    let mut held = database.pool.begin().await.unwrap();
    held.execute(sqlx::AssertSqlSafe(format!("select from exports where id = '{id}' for update"))).await.unwrap();
    let path = format!("/exports/{id}");
    let removal = service.call("DELETE", &path, &[]);
    let is_removed = eventually("the file is removed", async || service.files().is_empty().then_some(()));
    tokio::select! {
        answer = removal => panic!("{answer:?}"),
        () = is_removed => {}
    }
    held.rollback().await.unwrap();
    let recorded = "select count(*) from cdc_export.audit_log where action = 'remove_file'";
    assert_eq!(database.one::<i64>(recorded).await, 1);
    let done = "select file_removed_at is not null from exports";
    eventually("the call is done", async || database.one::<bool>(done).await.then_some(())).await;
    service.stop().await;
}

/// A key that was stolen is used from elsewhere.
#[tokio::test]
async fn equal_downloads_from_two_addresses_are_two_rows() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let service = service(&database).await;
    let key = bearer(&database, "search", &[], &[]).await;
    let (job, _) = service.export("full", "a").await;
    let url = format!("{}/exports/{}/download", service.address, job["jobId"].as_str().unwrap());
    for address in [[127, 0, 0, 1], [127, 0, 0, 77], [127, 0, 0, 1]] {
        let client = client_builder().local_address(std::net::IpAddr::from(address)).build().unwrap();
        client.get(&url).header("Authorization", &key).send().await.unwrap().bytes().await.unwrap();
    }
    let counts: Vec<Value> = rows(&service, &prefix(&key)).await.iter().map(|row| row[5].clone()).collect();
    assert_eq!(counts, [json!(2), json!(1)]);
    service.stop().await;
}

#[tokio::test]
async fn a_download_that_cant_be_recorded_sends_no_byte() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let service = service(&database).await;
    let (job, _) = service.export("full", "a").await;
    let file = format!("/exports/{}/download", job["jobId"].as_str().unwrap());
    let mut held = database.pool.begin().await.unwrap();
    sqlx::query("lock table cdc_export.audit_log in access exclusive mode").execute(&mut *held).await.unwrap();
    let refused = service.call("GET", &file, &[]).await;
    assert_eq!(refusal(refused).await, (503, "database_unavailable".to_owned()));
    held.rollback().await.unwrap();
    assert_eq!(service.call("GET", &file, &[]).await.status(), 200);
    service.stop().await;
}

#[tokio::test]
async fn schedules_and_commands_have_names_instead_of_keys() {
    let database = Database::new().await;
    database.add_users(1, 3).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\n\
         [[schedule]]\nname = \"nightly\"\nconsumer = \"a\"\ndataset = \"users\"\ntype = \"full\"\nevery = \"1d\"\n",
    );
    let service = catalog.start(&database).service().await;
    let scheduled = async || {
        let count = "select count(*) from cdc_export.audit_log where key = 'schedule:nightly' and action = 'export'";
        (database.one::<i64>(count).await == 1).then_some(())
    };
    eventually("the schedule's export is in the log", scheduled).await;
    // A call that needs no key has the address of its sender.
    ended(&service, "/exports/full", Some("b"), json!({})).await;
    let command = ["export", "full", "--consumer", "c", "--dataset", "users"];
    let (code, _, said) = catalog.command(&database, &command).await;
    assert_eq!(code, 0, "{said}");
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    let rows: Vec<String> = database
        .one(
            "select array_agg(concat_ws(' ', coalesce(key, '-'), coalesce(remote, '-'), action) order by consumer_id) \
             from cdc_export.audit_log where action = 'export'",
        )
        .await;
    assert_eq!(rows, ["schedule:nightly - export", "- 127.0.0.1 export", &format!("cli:{user} - export")]);
    service.stop().await;
}

#[tokio::test]
async fn the_log_is_listed_in_pages_and_by_filters() {
    let database = Database::new().await;
    let service = started(Start::on(&database).with("RETAIN_AUDIT", "10000d"), &database).await;
    database
        .run(
            "insert into cdc_export.audit_log (at, key, action, consumer_id, dataset, outcome) \
             select '2026-01-01'::timestamptz + n * interval '1 hour', 'k' || n % 2, 'download', 'c' || n % 3, 'd' || n % 5, 'done' \
             from generate_series(0, 59) n",
        )
        .await;
    let list = async |query: &str| -> Value {
        let answer = service.call("GET", &format!("/audit?{query}"), &[]).await;
        assert_eq!(answer.status(), 200, "{query}");
        answer.json().await.unwrap()
    };
    let (mut times, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&format!("action=download&limit=7{cursor}")).await;
        times.extend(page["items"].as_array().unwrap().iter().map(|row| row["at"].as_str().unwrap().to_owned()));
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert!(times.len() == 60 && times.is_sorted_by(|a, b| a > b), "{times:?}");
    for (query, expected) in [
        ("key=k1", 30),
        ("consumer=c2", 20),
        ("dataset=d4", 12),
        ("from=2026-01-02T00:00:00Z&action=download", 36),
        ("to=2026-01-02T00:00:00Z", 24),
        ("key=k1&consumer=c1&dataset=d1", 2),
        ("key=nobody", 0),
    ] {
        assert_eq!(list(&format!("limit=200&{query}")).await["items"].as_array().unwrap().len(), expected, "{query}");
    }
    for bad in ["action=steal", "from=yesterday", "key=%00", "dataset=%00", "cursor=x", "consumer=%00"] {
        assert_eq!(service.call("GET", &format!("/audit?{bad}"), &[]).await.status(), 400, "{bad}");
    }
    let reader = bearer(&database, "reader", &[], &[]).await;
    assert_eq!(refusal(call_as(&service, &reader, "GET", "/audit").await).await, (403, "scope_missing".to_owned()));
    service.stop().await;
}

#[tokio::test]
async fn old_rows_are_removed() {
    let database = Database::new().await;
    database
        .run(
            "insert into cdc_export.audit_log (at, action, outcome) \
             select clock_timestamp() - n * interval '1 second', 'download', 'done' from generate_series(0, 25000) n",
        )
        .await;
    let service = Start::on(&database).with("RETAIN_AUDIT", "1h").service().await;
    eventually("the rows of the last hour are left", || async {
        let count: i64 = database.one("select count(*) from cdc_export.audit_log").await;
        assert!(count >= 3_500);
        (count <= 3_601).then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn a_role_that_may_use_the_tables_may_use_the_log() {
    let database = Database::new().await;
    let role = format!("auditor_{}", uuid::Uuid::new_v4().simple());
    database.run(&format!("create role {role}; grant select, insert on cdc_export.keys to {role}")).await;
    // The database as it was before the log.
    database
        .run(
            "drop function cdc_export.audit; drop table cdc_export.audit_log; \
             delete from cdc_export.migrations where version = 3",
        )
        .await;
    let (code, said) = Start::on(&database).arguments(&["migrate"]).until_it_ends().await;
    assert_eq!(code, 0, "{said}");
    let rights = ["SELECT", "INSERT", "UPDATE"]
        .map(|right| format!("has_table_privilege('{role}', 'cdc_export.audit_log', '{right}')"));
    let has: Vec<bool> = database.one(&format!("select array[{}]", rights.join(", "))).await;
    assert_eq!(has, [true, true, false]);
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}
