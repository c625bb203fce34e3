//! Tables and columns that the database role may not read: the service refuses the request before an export fails.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post, submit};
use crate::harness::{Database, Service, Start, ends, eventually, serving_users, until};

#[tokio::test]
async fn a_table_that_may_not_be_read_is_told_with_the_grant() {
    let database = Database::empty().await;
    let role = database.role().await;
    let name = database.options.get_database().unwrap().to_owned();
    let statements = format!(
        "create table open (id int primary key, x text); insert into open values (1);
         create schema sales;
         create table sales.\"Shut\" (id int primary key, x text, secret text, at timestamptz not null default now());
         insert into sales.\"Shut\" values (1);
         grant create on database {name} to {role};
         grant create on schema public to {role}; grant select on open to {role}"
    );
    database.run(&statements).await;
    let catalog = Catalog::of(
        "[[dataset]]\nname = \"open\"\ntable = \"open\"\n
         [[dataset]]\nname = \"shut\"\ntable = \"sales.Shut\"\ncolumns = [\"id\", \"x\"]\nupdated_at = \"at\"\ncapture = \"timestamp\"\n
         filter = \"secret is null\"\n",
    );
    // The tables' owner captures them.
    catalog.track(&database, "open").await;
    let statements = format!(
        "grant usage on schema cdc_export to {role}; grant all on all tables in schema public, cdc_export to {role};
         grant all on all sequences in schema public, cdc_export to {role}"
    );
    database.run(&statements).await;
    let url = database.url_as(&role, "pass");
    let problems = async |grants: &str| {
        database.run(grants).await;
        let command = async |arguments: &[&str]| {
            catalog.start(&database).with("DATABASE_URL", &url).arguments(arguments).output().await
        };
        let (code, fitting, said) = command(&["datasets", "check"]).await;
        let (_, listed, _) = command(&["datasets", "list"]).await;
        let service = catalog.start(&database).with("DATABASE_URL", &url).service().await;
        let warned: Vec<Value> = service.events("not_readable").iter().map(|it| it["dataset"].clone()).collect();
        let ready: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        let ready = ready["checks"]["datasets"].as_str().unwrap().to_owned();
        let shown: Value = service.call("GET", "/datasets/shut", &[]).await.json().await.unwrap();
        export(&service, "full", "open", "c").await;
        let answer = post(&service, "/exports/full", Some("c"), &json!({ "dataset": "shut" })).await;
        let refused: Value = answer.json().await.unwrap();
        service.stop().await;
        let problem = shown["problems"][0].as_str().unwrap_or_default();
        let is_silent = code == 0 && warned.is_empty() && ready == "ok" && problem.is_empty();
        let is_told = code == 2 && warned == ["shut"] && said.contains(problem) && ready.contains("shut: ");
        let is_refused = refused["code"] == "permission_denied" && refused["status"] == 409;
        assert!(
            is_silent && refused["status"] == "started" || is_told && is_refused,
            "{code} {said} {warned:?} {ready} {shown} {refused}"
        );
        assert_eq!(is_refused, refused["detail"].as_str().is_some_and(|detail| detail.contains(problem)), "{refused}");
        assert!(fitting.contains("open") && listed.contains("open ") && listed.contains(problem), "{fitting} {listed}");
        // A caller of health needs no key.
        assert!(!ready.contains(&role) && !ready.contains("Shut"), "{ready}");
        is_told.then(|| problem.to_owned())
    };
    let select = format!("`grant select on \"sales\".\"Shut\" to {role}`");
    let told = problems("select").await.unwrap();
    assert!(told.contains(&format!("`grant usage on schema \"sales\" to {role}`")), "{told}");
    assert!(told.ends_with(&select), "{told}");
    let told = problems(&format!("grant usage on schema sales to {role}")).await.unwrap();
    assert!(!told.contains("usage") && told.ends_with(&select), "{told}");
    // An export locks the table, for which rights to its columns are not enough.
    let told = problems(&format!("grant select (id, x, at, secret) on sales.\"Shut\" to {role}")).await.unwrap();
    assert!(told.ends_with(&select), "{told}");
    assert_eq!(problems(&format!("grant select on sales.\"Shut\" to {role}")).await, None);
    let told = problems(&format!("revoke usage on schema sales from {role}")).await.unwrap();
    assert!(told.ends_with(&format!("`grant usage on schema \"sales\" to {role}`")), "{told}");
    let told = problems(&format!(
        "grant usage on schema sales to {role}; alter table sales.\"Shut\" enable row level security"
    ))
    .await
    .unwrap();
    assert!(told.contains(&format!("`alter role {role} bypassrls`")), "{told}");
    assert_eq!(problems(&format!("alter role {role} bypassrls")).await, None);
    // A draft needs no row of the table.
    let statements =
        format!("create table gone (id int primary key, deleted bool); grant references on gone to {role}");
    database.run(&statements).await;
    let add = catalog.start(&database).with("DATABASE_URL", &url).arguments(&["datasets", "add", "gone"]);
    let (code, draft, said) = add.output().await;
    assert!(code == 0 && draft.contains("# deleted = \"deleted\""), "{code} {draft} {said}");
}

#[tokio::test]
async fn a_right_of_the_service_that_is_missing_is_named() {
    let database = Database::empty().await;
    let role = database.role().await;
    database.run("create table t (id int primary key); insert into t values (1)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    catalog.track(&database, "t").await;
    let statements = format!(
        "grant usage on schema cdc_export, public to {role};
         grant all on all tables in schema public, cdc_export to {role}"
    );
    database.run(&statements).await;
    let service = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    let job = ended(&service, "/exports/delta", Some("c"), json!({ "dataset": "t" })).await;
    // Since Postgres 18 the last value of a sequence that the role may not read is null, and no error.
    if database.postgres_version().await < 18 {
        assert_eq!(job["error"]["code"], "permission_denied", "{job}");
        assert!(job["error"]["detail"].as_str().unwrap().contains("permission denied for sequence"), "{job}");
    } else {
        assert_eq!(job["status"], "completed", "{job}");
    }
    database.run(&format!("grant usage on all sequences in schema cdc_export to {role}")).await;
    export(&service, "delta", "t", "c").await;
}

#[tokio::test]
async fn a_job_whose_table_may_no_longer_be_read_names_the_grant() {
    let statements = "create schema sales; create table sales.t (id int primary key); insert into sales.t values (1)";
    let database = Database::empty_with(statements).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"sales.t\"\n");
    catalog.track(&database, "t").await;
    let role = role_apart(&database).await;
    database.run(&format!("grant usage on schema sales to {role}; grant select on sales.t to {role}")).await;
    let start = || catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start().arguments(&["serve", "--no-workers"]).service().await;
    for (revoke, grant) in [
        ("select on sales.t", "`grant select on \"sales\".\"t\" to"),
        ("usage on schema sales", "`grant usage on schema \"sales\" to"),
    ] {
        let id = submit(&service, "/exports/full", Some("c"), json!({})).await;
        database.run(&format!("revoke {revoke} from {role}")).await;
        let (mut worker, _folder) = start().sharing_output(&service).arguments(&["worker"]).spawn();
        let job = service.ended(&id).await;
        assert_eq!(job["error"]["code"], "permission_denied", "{job}");
        assert!(job["error"]["detail"].as_str().unwrap().contains(&format!("{grant} {role}`")), "{job}");
        worker.kill().await.unwrap();
        database.run(&format!("grant {revoke} to {role}")).await;
    }
    // The lag of such a table is unknown, and the table's own calls say why.
    database.run(&format!("revoke usage on schema sales from {role}")).await;
    assert_eq!(service.call("GET", "/consumers", &[]).await.status(), 200);
    assert_eq!(service.call("GET", "/datasets", &[]).await.status(), 200);
    // A right to the service's own tables belongs to no single dataset.
    let statements = format!("revoke select on cdc_export.tracked from {role}; grant usage on schema sales to {role}");
    database.run(&statements).await;
    let answer = post(&service, "/exports/full", Some("c"), &json!({})).await;
    let (status, refused): (_, Value) = (answer.status(), answer.json().await.unwrap());
    assert!(status == 503 && refused["detail"].as_str().unwrap().contains("for table tracked"), "{refused}");
}

/// Makes a role for the service beside the one that owns the tables and the one that writes.
pub(crate) async fn role_apart(database: &Database) -> String {
    let role = database.role().await;
    let statements = format!(
        "grant usage on schema cdc_export, public to {role};
         grant all on all tables in schema public, cdc_export to {role};
         grant all on all sequences in schema public, cdc_export to {role}"
    );
    database.run(&statements).await;
    role
}

/// The statements of an export of changes name the operators of the key's type.
#[tokio::test]
async fn a_schema_of_the_keys_type_that_the_role_may_not_use_is_found_by_the_check() {
    let tables = "create schema types; create domain types.code as text;
                  create table coded (id types.code primary key); insert into coded values ('a')";
    let database = Database::empty_with(tables).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"coded\"\ntable = \"coded\"\n");
    catalog.track(&database, "coded").await;
    let role = role_apart(&database).await;
    let url = database.url_as(&role, "pass");
    let check =
        async || catalog.start(&database).with("DATABASE_URL", &url).arguments(&["datasets", "check"]).output().await;
    ends(check().await, 2, "`grant usage on schema types`");
    database.run(&format!("grant usage on schema types to {role}")).await;
    ends(check().await, 0, "");
    let service = catalog.start(&database).with("DATABASE_URL", &url).service().await;
    export(&service, "full", "coded", "a").await;
    export(&service, "delta", "coded", "a").await;
}

#[tokio::test]
async fn open_transactions_of_other_roles_are_counted_and_their_age_needs_a_right() {
    let (database, service) = serving_users(1).await;
    let role = role_apart(&database).await;
    service.stop().await;
    let service = Start::on(&database).with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    let open = database.open("update users set name = 'y'").await;
    let (job, _) = service.export("full", "a").await;
    assert_eq!((&job["openTransactions"], &job["oldestTransactionSeconds"]), (&json!(1), &Value::Null));
    database.run(&format!("grant pg_read_all_stats to {role}")).await;
    let (job, _) = service.export("delta", "a").await;
    assert_eq!((&job["openTransactions"], job["oldestTransactionSeconds"].is_number()), (&json!(1), true));
    open.rollback().await.unwrap();
}

#[tokio::test]
async fn a_process_whose_claims_fail_is_not_ready_and_the_others_say_so() {
    let database = Database::new().await;
    let api = Start::on(&database).arguments(&["serve", "--no-workers"]);
    let api = api.with("FAILPOINTS", "store.claims_fail=time:1000").service().await;
    let role = role_apart(&database).await;
    let times = "store.claims_fail=time:1000,store.listening=time:300";
    let start = Start::on(&database).sharing_output(&api).with("FAILPOINTS", times);
    let worker = start.with("DATABASE_URL", database.url_as(&role, "pass")).service().await;
    let ready = async |service: &Service| {
        let answer = service.call("GET", "/health/ready", &[]).await;
        let (status, body): (_, Value) = (answer.status().as_u16(), answer.json().await.unwrap());
        (status, body["checks"]["workers"].as_str().map(str::to_owned))
    };
    database.run(&format!("revoke update on cdc_export.jobs from {role}")).await;
    let id = api.submit("full", "a").await;
    let (_, why) = eventually("the process is not ready", async || {
        let (status, why) = ready(&worker).await;
        // At first it only lacks the right.
        (status == 503 && why.is_some()).then_some((status, why))
    })
    .await;
    assert!(why.as_ref().is_some_and(|why| why.contains("`claim_failed`")), "{why:?}");
    let others = eventually("the other one says so", async || {
        let (status, others) = ready(&api).await;
        assert_eq!(status, 200);
        others
    })
    .await;
    assert!(others.starts_with("another process"), "{others}");
    let metrics = worker.call("GET", "/metrics", &[]).await.text().await.unwrap();
    assert!(metrics.contains("\ncdc_export_workers_ready 0\n"), "{metrics}");

    database.run(&format!("grant update on cdc_export.jobs to {role}")).await;
    api.completes(&id).await;
    for service in [&worker, &api] {
        until("all is well", async || ready(service).await == (200, None)).await;
    }
    worker.stop().await;
    let (_, nobody) =
        eventually("nobody works", async || Some(ready(&api).await).filter(|(_, why)| why.is_some())).await;
    assert_eq!(nobody.as_deref(), Some("no process looks for jobs: none runs, or each hangs"));
}

#[tokio::test]
async fn a_view_that_cannot_be_read_names_the_relation_beneath_it() {
    let database = Database::new().await;
    let (role, owner) = (role_apart(&database).await, database.role().await);
    let has_invokers = database.postgres_version().await >= 15;
    let invoker = if has_invokers { "with (security_invoker)" } else { "" };
    let statements = format!(
        "create schema a authorization {owner};
         set role {owner};
         create table a.t (id int primary key, x int, y int); insert into a.t values (1, 1, 1), (2, 2, 2);
         create table a.r (id int primary key); alter table a.r enable row level security;
         alter table a.r force row level security;
         create view a.plain as select * from a.t;
         create view a.some {invoker} as select id from a.t where x > 0;
         create view a.nested as select * from a.some;
         create view a.counts {invoker} as select count(*) from a.t;
         create view a.names as select 'a.t'::regclass::text as name;
         create view a.hidden as select * from a.r;
         create materialized view a.empty as select * from a.t with no data;
         create view a.over_empty as select * from a.empty;
         create materialized view a.filled as select * from a.t;
         grant usage on schema a to {role};
         grant select on a.plain, a.some, a.nested, a.counts, a.names, a.hidden, a.empty, a.over_empty, a.filled to {role};
         reset role"
    );
    database.run(&statements).await;
    let names = ["counts", "empty", "filled", "hidden", "names", "nested", "over_empty", "plain", "some"];
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"a.{name}\"\ncapture = \"none\"\n");
    let catalog = Catalog::of(&names.map(block).concat());
    let start = || catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start().with("MAX_ATTEMPTS", "1").service().await;
    let denied = |beneath: &str, grant: &str| ("permission_denied", beneath.to_owned(), format!("`{grant}`"));
    let unfilled =
        || ("dataset_mismatch", "\"a\".\"empty\"".to_owned(), "`refresh materialized view \"a\".\"empty\"`".to_owned());
    let select = format!("grant select on \"a\".\"t\" to {role}");
    let mut expected = vec![("empty", unfilled()), ("over_empty", unfilled())];
    expected.push(("hidden", denied("\"a\".\"r\"", &format!("alter role {owner} bypassrls"))));
    if has_invokers {
        expected.extend(["nested", "some"].map(|name| (name, denied("\"a\".\"t\"", &select))));
    }
    let (_, said) = ends(start().arguments(&["datasets", "check"]).output().await, 2, "");
    for name in names {
        let shown: Value = service.call("GET", &format!("/datasets/{name}"), &[]).await.json().await.unwrap();
        let job = post(&service, "/exports/full", Some("c"), &json!({ "dataset": name })).await;
        let is_accepted = job.status() == 202;
        let job: Value = job.json().await.unwrap();
        match expected.iter().find(|(expected, _)| *expected == name) {
            Some((_, (reason, beneath, remedy))) => {
                assert_eq!(shown["reason"], *reason, "{shown}");
                let problem = shown["problems"][0].as_str().unwrap();
                assert!(problem.contains(beneath) && problem.ends_with(remedy), "{problem}");
                assert!(said.contains(problem), "{said}");
                let failure = if is_accepted {
                    ended(&service, "/exports/full", Some("c"), json!({ "dataset": name })).await["error"].clone()
                } else {
                    job
                };
                assert_eq!(failure["code"], *reason, "{failure}");
                assert!(failure["detail"].as_str().unwrap().ends_with(remedy), "{failure}");
            }
            // It names no column of the table, so only Postgres knows.
            None if name == "counts" && has_invokers => {
                assert_eq!(shown["ready"], true, "{shown}");
                let job = ended(&service, "/exports/full", Some("c"), json!({ "dataset": name })).await;
                assert_eq!(job["error"]["code"], "permission_denied", "{job}");
                assert!(job["error"]["detail"].as_str().unwrap().ends_with("permission denied for table t"), "{job}");
            }
            None => {
                assert_eq!(shown["ready"], true, "{shown}");
                export(&service, "full", name, "d").await;
            }
        }
    }
    let all: Value =
        post(&service, "/exports/full", Some("e"), &json!({ "datasets": "*" })).await.json().await.unwrap();
    assert_eq!(all["leftOut"].as_array().unwrap().len(), expected.len(), "{all}");

    // An export locks the relations beneath, for which rights to their columns are not enough.
    if has_invokers {
        database.run(&format!("grant select (id, x) on a.t to {role}")).await;
        let shown: Value = service.call("GET", "/datasets/some", &[]).await.json().await.unwrap();
        assert_eq!(shown["reason"], "permission_denied", "{shown}");
    }
    let statements =
        format!("grant select on a.t to {role}; alter role {owner} bypassrls; refresh materialized view a.empty");
    database.run(&statements).await;
    ends(start().arguments(&["datasets", "check"]).output().await, 0, "");
    for name in names {
        export(&service, "full", name, "f").await;
    }
}

/// An event trigger of the database's owner may do so with every table.
#[tokio::test]
async fn what_somebody_puts_on_the_log_is_told_before_a_write_fails() {
    let database = Database::empty_with("create table orders (id int primary key)").await;
    let catalog = Catalog::of("[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n");
    ends(catalog.command(&database, &["migrate"]).await, 0, "");
    let log = "cdc_export.change_log";
    let lose = "create function lose() returns trigger language plpgsql as 'begin return null; end'";
    for (put, remove) in [
        (
            format!("alter table {log} enable row level security"),
            format!("alter table {log} disable row level security"),
        ),
        (
            format!("{lose}; create trigger lose before insert on {log} for each row execute function lose()"),
            "drop function lose cascade".to_owned(),
        ),
    ] {
        database.run(&put).await;
        let words = "a trigger or a constraint on cdc_export.change_log";
        ends(catalog.command(&database, &["track", "orders"]).await, 1, words);
        database.run("insert into orders values (1); delete from orders").await;
        database.run(&remove).await;
        let service = catalog.serving(&database, &["orders"]).await;
        export(&service, "full", "orders", "a").await;
        database.run(&put).await;
        ends(catalog.command(&database, &["track", "orders"]).await, 1, words);
        ends(catalog.command(&database, &["datasets", "check"]).await, 2, "on cdc_export.change_log");
        let job = ended(&service, "/exports/delta", Some("a"), json!({"dataset": "orders"})).await;
        assert_eq!(job["continuity"], "trigger_missing", "{job}");
        until("it isn't ready", async || {
            let ready = service.get("/health/ready").await;
            ready["checks"]["datasets"].as_str().unwrap().contains("orders: writes to its table fail")
        })
        .await;
        service.stop().await;
        database.run(&remove).await;
        ends(catalog.command(&database, &["untrack", "orders"]).await, 0, "");
    }
}

#[tokio::test]
async fn rights_to_some_columns_lead_to_a_view_that_is_exported() {
    let statements = "create table t (id int primary key, a int, secret text); insert into t values (1, 2, 'x')";
    let database = Database::empty_with(statements).await;
    let on = |table: &str, more: &str| format!("[[dataset]]\nname = \"t\"\ntable = \"{table}\"\n{more}");
    let catalog = Catalog::of(&on("t", "columns = [\"id\", \"a\"]"));
    catalog.track(&database, "t").await;
    let role = database.role().await;
    database
        .run(&format!(
            "grant usage on schema cdc_export, public to {role}; grant all on watermarks, exports to {role};
             grant all on all tables in schema cdc_export to {role};
             grant all on all sequences in schema cdc_export to {role}; grant select (id, a) on t to {role}"
        ))
        .await;
    let start = || catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let said = "A view of the columns that the role may read can be exported with capture = \"none\"";
    ends(start().arguments(&["datasets", "check"]).output().await, 2, said);
    database.run(&format!("create view seen as select id, a from t; grant select on seen to {role}")).await;
    catalog.write(&on("seen", "capture = \"none\""));
    ends(start().arguments(&["datasets", "check"]).output().await, 0, "");
    let service = start().service().await;
    assert_eq!(export(&service, "full", "t", "c").await["rowsExported"], 1);
}
