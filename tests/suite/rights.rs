//! What the database role may not read is told before an export fails for it.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export};
use crate::harness::Database;

#[tokio::test]
async fn a_table_that_may_not_be_read_is_told_with_the_grant() {
    let database = Database::empty().await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    let name = database.options.get_database().unwrap().to_owned();
    database
        .run(&format!(
            "create table open (id int primary key, x text); insert into open values (1);
             create table \"Shut\" (id int primary key, x text, secret text, at timestamptz not null default now());
             insert into \"Shut\" values (1);
             create role {role} login password 'pass'; grant create on database {name} to {role};
             grant create on schema public to {role}; grant select on open to {role}"
        ))
        .await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"open\"\ntable = \"open\"\n
         [[dataset]]\nname = \"shut\"\ntable = \"Shut\"\ncolumns = [\"id\", \"x\"]\nupdated_at = \"at\"\ncapture = \"timestamp\"\n
         filter = \"secret is null\"\n",
    );
    // The tables' owner captures them.
    catalog.track(&database, "open").await;
    database
        .run(&format!(
            "grant usage on schema cdc_export to {role}; grant all on all tables in schema public, cdc_export to {role};
             revoke all on \"Shut\" from {role}; grant all on all sequences in schema public, cdc_export to {role}"
        ))
        .await;
    let url = database.url_as(&role, "pass");
    let problems = async |grants: &str| {
        database.run(grants).await;
        let (code, _, said) =
            catalog.start(&database).with("DATABASE_URL", &url).arguments(&["datasets", "check"]).output().await;
        let service = catalog.start(&database).with("DATABASE_URL", &url).service().await;
        let warned: Vec<Value> = service.events("not_readable").iter().map(|it| it["dataset"].clone()).collect();
        let ready: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        let ready = ready["checks"]["datasets"].as_str().unwrap().to_owned();
        let shown: Value = service.call("GET", "/datasets/shut", &[]).await.json().await.unwrap();
        export(&service, "full", "open", "c").await;
        let fails =
            ended(&service, "/exports/full", Some("c"), json!({ "dataset": "shut" })).await["error"]["code"].clone();
        service.stop().await;
        let problem = shown["problems"][0].as_str().unwrap_or_default();
        let is_silent = code == 0 && warned.is_empty() && ready == "ok" && problem.is_empty() && fails.is_null();
        let is_told = code == 2 && warned == ["shut"] && said.contains(problem) && ready.contains("shut: ");
        assert!(
            is_silent || is_told && fails == "permission_denied",
            "{code} {said} {warned:?} {ready} {shown} {fails}"
        );
        // Whoever asks for health needs no key.
        assert!(!ready.contains(&role) && !ready.contains("Shut"), "{ready}");
        is_told.then(|| problem.to_owned())
    };
    let select = format!("runs `grant select on \"public\".\"Shut\" to {role}`");
    let told = problems("select").await.unwrap();
    assert!(told.ends_with(&select), "{told}");
    // An export locks the table, for which rights to its columns are not enough.
    let told = problems(&format!("grant select (id, x, at, secret) on \"Shut\" to {role}")).await.unwrap();
    assert!(told.ends_with(&select), "{told}");
    assert_eq!(problems(&format!("grant select on \"Shut\" to {role}")).await, None);
    let told = problems("alter table \"Shut\" enable row level security").await.unwrap();
    assert!(told.contains(&format!("`alter role {role} bypassrls`")), "{told}");
    assert_eq!(problems(&format!("alter role {role} bypassrls")).await, None);
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn a_right_of_the_service_that_is_missing_is_named() {
    let database = Database::empty().await;
    let role = format!("reader_{}", uuid::Uuid::new_v4().simple());
    database.run("create table t (id int primary key); insert into t values (1)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    catalog.track(&database, "t").await;
    database
        .run(&format!(
            "create role {role} login password 'pass'; grant usage on schema cdc_export, public to {role};
             grant all on all tables in schema public, cdc_export to {role}"
        ))
        .await;
    let service = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    let job = ended(&service, "/exports/delta", Some("c"), json!({ "dataset": "t" })).await;
    assert_eq!(job["error"]["code"], "permission_denied", "{job}");
    assert!(job["error"]["detail"].as_str().unwrap().contains("permission denied for sequence"), "{job}");
    database.run(&format!("grant usage on all sequences in schema cdc_export to {role}")).await;
    export(&service, "delta", "t", "c").await;
    service.stop().await;
    database.run(&format!("drop owned by {role}; drop role {role}")).await;
}
