//! Datasets that nobody has tracked: no call takes them for ready, and what to run is said at once.

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post, submit};
use crate::harness::{Database, Service, ends, needs_full, serving_users, silent, until};
use crate::rights::role_apart;
use cdc_capture::capture::Triggers;
use cdc_dataset::Dataset;

/// Two tables, of which one is tracked in no test of its own accord.
async fn tables() -> (Database, Catalog) {
    let database = Database::empty().await;
    for name in ["orders", "stock"] {
        let statements = format!(
            "create table {name} (id int primary key, code text not null unique, at timestamptz not null default '2026-01-01');
             create index on {name} (at);
             insert into {name} values (1, 'a'), (2, 'b')"
        );
        database.run(&statements).await;
    }
    let of = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"at\"\n");
    (database, Catalog::of(&(of("orders") + &of("stock"))))
}

async fn continuity(service: &Service) -> Vec<Value> {
    service.get("/consumers").await["items"].as_array().unwrap().iter().map(|item| item["continuity"].clone()).collect()
}

#[tokio::test]
async fn a_request_for_a_dataset_that_nobody_tracked_is_refused_with_the_command_to_run() {
    let (database, catalog) = tables().await;
    let service = catalog.serving(&database, &["stock"]).await;
    let of_orders = json!({ "dataset": "orders" });
    for path in ["/exports", "/exports/full", "/exports/incremental", "/exports/delta", "/export/c"] {
        let problem: Value = post(&service, path, Some("c"), &of_orders).await.json().await.unwrap();
        let found = (&problem["status"], &problem["code"], &problem["field"]);
        assert_eq!(found, (&json!(409), &json!("not_tracked"), &json!("dataset")), "{path}");
        assert!(problem["detail"].as_str().unwrap().contains("`cdc-export track orders`"), "{problem}");
    }
    assert_eq!(service.get("/exports").await["items"], json!([]), "no job was made");
    // Another dataset, and what has no position, needs nothing of it.
    export(&service, "full", "stock", "c").await;
    let ad_hoc = ended(&service, "/exports", None, json!({ "dataset": "orders", "columns": ["code"] })).await;
    assert_eq!((&ad_hoc["status"], &ad_hoc["rowsExported"]), (&json!("completed"), &json!(2)), "{ad_hoc}");

    catalog.track(&database, "orders").await;
    export(&service, "full", "orders", "c").await;
    export(&service, "delta", "orders", "c").await;
    // Triggers that are gone are the guard's to tell.
    database.run("drop trigger cdc_export_u on orders").await;
    needs_full(&ended(&service, "/exports/delta", Some("c"), of_orders.clone()).await, "trigger_missing");
}

#[tokio::test]
async fn a_request_for_a_dataset_whose_table_is_not_there_is_refused() {
    let (database, service) = serving_users(0).await;
    let held = database.hold_exports().await;
    let waiting = service.submit("full", "c").await;
    service.call("POST", &format!("/exports/{waiting}/cancel"), &[]).await;
    assert_eq!(service.ended(&waiting).await["status"], "cancelled");
    held.rollback().await.unwrap();
    database.run("alter table users rename to away").await;
    for (path, consumer) in [
        ("/exports".to_owned(), None),
        ("/exports".to_owned(), Some("c")),
        ("/exports/full".to_owned(), Some("c")),
        ("/exports/delta".to_owned(), Some("c")),
        ("/export/c".to_owned(), None),
        (format!("/exports/{waiting}/retry"), None),
    ] {
        let problem: Value = post(&service, &path, consumer, &json!({})).await.json().await.unwrap();
        let found = (&problem["status"], &problem["code"], &problem["field"]);
        assert_eq!(found, (&json!(409), &json!("table_missing"), &json!("dataset")), "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains("`users`"), "{problem}");
    }
    assert_eq!(service.get("/exports").await["items"].as_array().unwrap().len(), 1, "no job was made");
    database.run("alter table away rename to users").await;
    service.export("full", "c").await;
}

#[tokio::test]
async fn untrack_says_what_it_found() {
    let (database, catalog) = tables().await;
    catalog.track(&database, "stock").await;
    let (code, printed, said) = catalog.command(&database, &["untrack", "orders"]).await;
    assert_eq!((code, printed.as_str()), (0, "`orders` was not tracked: nothing has changed.\n"), "{said}");
    let (code, printed, said) = catalog.command(&database, &["untrack", "stock"]).await;
    assert!(code == 0 && printed.starts_with("The changes of stock are no longer captured: "), "{printed}{said}");
    let (_, printed, _) = catalog.command(&database, &["untrack", "stock"]).await;
    assert_eq!(printed, "`stock` was not tracked: nothing has changed.\n");
}

#[tokio::test]
async fn a_retry_of_an_export_whose_dataset_was_untracked_is_refused_and_a_repeated_request_is_not() {
    let (database, catalog) = tables().await;
    let service = catalog.serving(&database, &["orders"]).await;
    let send = async || {
        let headers = [("X-Consumer-ID", "c"), ("Idempotency-Key", "k")];
        service.post("/exports/full", &headers, &json!({ "dataset": "orders" })).await
    };
    let first: Value = send().await.json().await.unwrap();
    assert_eq!(service.ended(first["jobId"].as_str().unwrap()).await["status"], "completed");
    let held = database.open("lock table orders in access exclusive mode").await;
    let cancelled = &submit(&service, "/exports/full", Some("c"), json!({ "dataset": "orders" })).await;
    service.call("POST", &format!("/exports/{cancelled}/cancel"), &[]).await;
    assert_eq!(service.ended(cancelled).await["status"], "cancelled");
    held.rollback().await.unwrap();

    ends(catalog.command(&database, &["untrack", "orders"]).await, 0, "");
    service.refuses("POST", &format!("/exports/{cancelled}/retry"), &[], 409, "not_tracked").await;
    let again = send().await;
    assert_eq!(again.status(), 202);
    assert_eq!(again.json::<Value>().await.unwrap()["jobId"], first["jobId"]);
}

#[tokio::test]
async fn no_look_takes_an_untracked_dataset_for_exact_or_ready() {
    let (database, catalog) = tables().await;
    let service = catalog.start(&database).service().await;
    let warned: Vec<_> = service.events("not_captured").into_iter().map(|line| line["message"].to_string()).collect();
    assert!(warned.len() == 2 && warned[0].contains("`cdc-export track orders`"), "{warned:?}");
    let ready = service.call("GET", "/health/ready", &[]).await;
    assert_eq!(ready.status(), 200, "other datasets' exports start, and so does the service");
    let ready: Value = ready.json().await.unwrap();
    let said = ready["checks"]["datasets"].as_str().unwrap();
    assert!(said.contains("`cdc-export track orders`") && said.contains("`cdc-export track stock`"), "{ready}");
    for dataset in service.get("/datasets").await["items"].as_array().unwrap() {
        let name = dataset["name"].as_str().unwrap();
        assert_eq!(dataset["ready"], false);
        assert!(dataset["problems"][0].as_str().unwrap().contains(&format!("`cdc-export track {name}`")), "{dataset}");
    }
    // A consumer that has a watermark, made by hand, and one whose exports are of before `untrack`.
    let insert = "insert into watermarks (consumer_id, dataset, last_exported_at, updated_at)
                  values ('c', 'orders', '2026-01-01', now())";
    database.run(insert).await;
    assert_eq!(continuity(&service).await, ["trigger_missing"]);
    for arguments in [
        &["export", "delta", "--consumer", "c", "--dataset", "orders"][..],
        &["export", "full", "--consumer", "d", "--dataset", "orders"],
    ] {
        let with_server = [arguments, &["--server", &service.address]].concat();
        for arguments in [arguments, &with_server] {
            let (code, printed, said) = catalog.command(&database, arguments).await;
            assert!(code == 1 && printed.is_empty(), "{code} {printed} {said}");
            assert!(said.contains("`cdc-export track orders`"), "{code} {printed} {said}");
        }
    }
    let (code, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert_eq!((code, printed.as_str()), (0, ""));
    assert!(said.contains("orders, stock: the changes are not captured: `cdc-export track --all`"), "{said}");

    catalog.track(&database, "orders").await;
    let (_, printed, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(printed == "1 dataset fits its table: orders\n" && !said.contains("orders"), "{printed} {said}");
    assert_eq!(continuity(&service).await, ["no_snapshot"]);
    export(&service, "full", "orders", "c").await;
    assert_eq!(continuity(&service).await, [Value::Null]);
    ends(catalog.command(&database, &["untrack", "orders"]).await, 0, "");
    assert_eq!(continuity(&service).await, ["trigger_missing"]);
}

#[tokio::test]
async fn a_table_that_was_tracked_a_moment_ago_is_ready() {
    let (database, catalog) = tables().await;
    // No call waits for a look if there is an earlier one that it may use.
    let service = catalog.start(&database).with("FAILPOINTS", "service.patience=time:0").service().await;
    let ready = async || {
        service.get("/datasets").await["items"].as_array().unwrap().iter().filter(|it| it["ready"] == true).count()
    };
    assert_eq!(ready().await, 0);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    assert_eq!(ready().await, 2);
}

/// The owner's `migrate` would not help.
#[tokio::test]
async fn functions_of_before_a_restore_are_told_from_those_of_another_version() {
    let (database, catalog) = tables().await;
    catalog.track(&database, "orders").await;
    // As a dump restores them: they name the table of before.
    let restored = "
        alter table orders rename to was; create table orders (like was including all);
        do $$ begin
          execute (select format('create trigger restored after delete on orders execute function %s()', x.tgfoid::regproc)
            from pg_trigger x where x.tgrelid = 'was'::regclass and x.tgname = 'cdc_export_d');
        end $$;
        drop table was";
    database.run(restored).await;
    let role = role_apart(&database).await;
    let start = catalog.start(&database).with("DATABASE_URL", database.url_as(&role, "pass"));
    let service = start.arguments(&["serve", "--no-workers"]).service().await;
    let told = service.events("triggers_outdated");
    assert!(told.len() == 1 && told[0]["message"].as_str().unwrap().contains("`cdc-export track --all`"), "{told:?}");
}

/// `alter table … enable trigger all` after a `disable` leaves triggers that don't fire for everybody, and `track` was
/// run.
#[tokio::test]
async fn triggers_that_are_there_but_not_always_enabled_are_told_everywhere() {
    let (database, catalog) = tables().await;
    let service = catalog.serving(&database, &["orders", "stock"]).await;
    let ready = async || {
        let answer: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        answer["checks"]["datasets"].as_str().unwrap().to_owned()
    };
    assert_eq!(ready().await, "ok");
    export(&service, "full", "orders", "c").await;
    database.run("alter table orders disable trigger all; alter table orders enable trigger all").await;

    let dataset = service.get("/datasets/orders").await;
    let problem = dataset["problems"][0].as_str().unwrap().to_owned();
    assert_eq!(dataset["ready"], false);
    // Readiness goes by a look that is some seconds old.
    let told = format!("orders: {problem}");
    until("readiness says it", async || ready().await == told).await;
    let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 2 && said.contains("`cdc-export track orders`") && !said.contains("stock"), "{code} {said}");

    let run = async |export_type: &str, consumer: &str| {
        let arguments = ["export", export_type, "--consumer", consumer, "--dataset", "orders"];
        catalog.command(&database, &[&arguments[..], &["--server", &service.address]].concat()).await
    };
    let (_, said) = ends(run("delta", "c").await, 1, "(trigger_missing): `cdc-export track orders`");
    let needed = "then a full export is needed: `cdc-export export full --consumer c --dataset orders`";
    assert!(said.contains(needed) && !said.contains("heals"), "{said}");
    // A full export warns as well, even the first one of a consumer.
    for consumer in ["c", "new"] {
        ends(run("full", consumer).await, 0, "will fail until you run `cdc-export track orders`");
    }
    catalog.track(&database, "orders").await;
    until("readiness says it", async || ready().await == "ok").await;
    run("full", "new").await;
    for export_type in ["delta", "full"] {
        let (code, _, said) = run(export_type, "new").await;
        assert!(code == 0 && !said.contains("track"), "{export_type}: {said}");
    }
}

#[tokio::test]
async fn a_table_whose_dataset_left_the_file_is_named_until_it_is_untracked() {
    let (database, catalog) = tables().await;
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&text[..text.rfind("[[dataset]]").unwrap()]);
    let service = catalog.start(&database).service().await;
    let said: Vec<_> =
        service.events("captured_without_dataset").iter().map(|line| line["message"].to_string()).collect();
    assert!(said.len() == 1 && said[0].contains("`cdc-export untrack --table public.stock`"), "{said:?}");
    let named = async || service.get("/datasets").await["tablesWithoutDataset"].clone();
    assert_eq!(named().await, json!(["public.stock"]));
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "`cdc-export untrack --table public.stock`");

    ends(catalog.command(&database, &["untrack", "stock"]).await, 2, "no dataset");
    let (code, printed, said) = catalog.command(&database, &["untrack", "--table", "stock"]).await;
    assert_eq!((code, printed.as_str()), (0, "The changes of stock are no longer captured.\n"), "{said}");
    let (code, printed, said) = catalog.command(&database, &["untrack", "--table", "stock"]).await;
    assert_eq!((code, printed.as_str()), (0, "stock was not tracked: nothing has changed.\n"), "{said}");
    assert_eq!(database.one::<i64>("select count(*) from pg_trigger where tgrelid = 'stock'::regclass").await, 0);
    assert_eq!(named().await, json!([]));
    let (_, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert_eq!(said, "");
    ends(catalog.command(&database, &["untrack", "--table", "nothing"]).await, 1, "there is no table `nothing`");
    export(&service, "full", "orders", "c").await;
}

/// Its owner chooses the name, and a person may paste the command.
#[tokio::test]
async fn a_table_of_any_name_is_named_as_a_shell_reads_it() {
    let (database, catalog) = tables().await;
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    database.run("create table \"it's; $(touch x)\" (id int primary key)").await;
    catalog.write(&format!("{text}[[dataset]]\nname = \"odd\"\ntable = \"it's; $(touch x)\"\n"));
    catalog.track(&database, "odd").await;
    catalog.write(&text);
    let (_, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    let command = said.lines().find(|line| line.contains("no dataset needs them")).unwrap().split('`').nth(1).unwrap();
    let shell = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\n' {command}")]).output().unwrap();
    let words = String::from_utf8(shell.stdout).unwrap();
    assert_eq!(words, "cdc-export\nuntrack\n--table\npublic.it's; $(touch x)\n", "{said}");
    silent(catalog.command(&database, &words.lines().skip(1).collect::<Vec<_>>()).await);
}

#[tokio::test]
async fn untrack_all_names_a_table_that_it_can_not_lock_and_goes_on() {
    let (database, catalog) = tables().await;
    database.run("create table parts (id int primary key) partition by range (id); create table part partition of parts default").await;
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&(text + "[[dataset]]\nname = \"parts\"\ntable = \"parts\"\n"));
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    database.run("alter table stock rename to renamed; alter table parts detach partition part").await;
    let held = database.open("lock table orders").await;
    let untrack = catalog.start(&database).with("FAILPOINTS", "capture.wait=time:0").arguments(&["untrack", "--all"]);
    let (printed, _) = ends(untrack.output().await, 1, "public.orders: `public.orders` is too busy");
    let done: Vec<_> = printed.lines().map(|line| line.split(' ').nth(3).unwrap()).collect();
    assert_eq!(done, ["public.part", "public.parts", "public.renamed"]);
    held.rollback().await.unwrap();

    let (code, printed, said) = catalog.command(&database, &["untrack", "--all"]).await;
    assert_eq!((code, printed.as_str()), (0, "The changes of public.orders are no longer captured.\n"), "{said}");
    let left = "select (select count(*) from pg_trigger where tgname like 'cdc\\_export%') + (select count(*) from cdc_export.tracked)
      + (select count(*) from pg_proc where pronamespace = 'cdc_export'::regnamespace and proname like 'capture\\_%')";
    assert_eq!(database.one::<i64>(left).await, 0);
    let (_, printed, _) = catalog.command(&database, &["untrack", "--all"]).await;
    assert_eq!(printed, "No table has triggers of `cdc-export track`.\n");
}

/// A disk without a free block refuses each row that needs a new block in one of the service's tables.
const FULL_DISK: &str = "
  create function public.full_disk() returns trigger language plpgsql as
    $$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$;
  create trigger full_disk before insert or update or delete on cdc_export.tracked
    execute function public.full_disk();
  create trigger full_disk before insert on cdc_export.untracked execute function public.full_disk()";

#[tokio::test]
async fn untrack_takes_the_triggers_away_on_a_full_disk_and_says_what_it_could_not_note() {
    let (database, catalog) = tables().await;
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    database.run(FULL_DISK).await;
    let gone = "its triggers are gone, so writes need no room in the change log any more";
    let (_, said) = ends(catalog.command(&database, &["untrack", "orders"]).await, 1, gone);
    for part in ["`track = true`", "run this command again", "No space left on device"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    ends(catalog.command(&database, &["untrack", "--all"]).await, 1, gone);
    let triggers = "select count(*) from pg_trigger where tgname like 'cdc\\_export%'";
    assert_eq!(database.one::<i64>(triggers).await, 0);
    // No process puts the triggers back, also between the two transactions of the command.
    let datasets = ["orders", "stock"].map(|name| Dataset { table: name.parse().unwrap(), ..Dataset::users() });
    let trackable = async || Triggers(&database.pool).trackable(&datasets.each_ref()).await.unwrap().len();
    assert_eq!(trackable().await, 0);

    database.run("drop function public.full_disk cascade").await;
    ends(catalog.command(&database, &["untrack", "--all"]).await, 0, "");
    let noted = "select array_agg(table_name order by table_name) from cdc_export.untracked";
    assert_eq!(database.one::<Vec<String>>(noted).await, ["orders", "stock"]);
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.tracked").await, 0);
    assert_eq!(trackable().await, 0);
}

/// Every object of the database, and every right and role that the service may have made.
const CATALOG: &str = "
  select array_agg(what order by what collate \"C\") from (
    select format('%s %s.%s %s', c.oid, c.relnamespace::regnamespace, c.relname, c.relacl) from pg_class c
    where c.relnamespace <> 'pg_toast'::regnamespace
    union all select format('%s %s %s', p.oid, p.oid::regprocedure, p.proacl) from pg_proc p
    union all select format('%s %s', t.oid, t.oid::regtype) from pg_type t where t.typnamespace <> 'pg_toast'::regnamespace
    union all select format('%s %s on %s %s', x.oid, x.tgname, x.tgrelid::regclass, x.tgenabled) from pg_trigger x
    union all select format('%s %s', k.oid, k.conname) from pg_constraint k
    union all select format('%s %s %s', n.oid, n.nspname, n.nspacl) from pg_namespace n
    union all select format('%s.%s %s', a.attrelid::regclass, a.attname, a.attacl) from pg_attribute a
    where a.attrelid in (select oid from pg_class where relkind in ('r', 'p', 'v'))
    union all select format('%s %s', d.objoid::regclass, d.description) from pg_description d where d.classoid = 'pg_class'::regclass
    union all select format('%s', e.evtname) from pg_event_trigger e
    union all select format('%s', s.subname) from pg_subscription s where s.subdbid = (select oid from pg_database where datname = current_database())
    union all select format('%s %s', s.setrole, s.setconfig) from pg_db_role_setting s
    where s.setdatabase = (select oid from pg_database where datname = current_database())
    union all select format('%s %s %s', s.classid, s.objid, s.refobjid) from pg_shdepend s
    where s.dbid = (select oid from pg_database where datname = current_database())
    union all select format('%s', r.rolname) from pg_roles r
    where r.rolname like '%\\_' || (select oid from pg_database where datname = current_database())) catalog (what)";

#[tokio::test]
async fn the_guide_that_removes_the_service_leaves_nothing_behind() {
    let (database, catalog) = tables().await;
    let schema =
        "create table parts (id int primary key) partition by range (id); create table part partition of parts default;
             create table dropped (id int primary key)";
    database.run(schema).await;
    let block = |name: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n");
    let text = std::fs::read_to_string(catalog.path()).unwrap() + &block("parts");
    catalog.write(&format!("{text}{}", block("dropped")));
    let dropped = "drop table dropped";
    let before = {
        let mut tx = database.open(dropped).await;
        let before: Vec<String> = sqlx::query_scalar(CATALOG).fetch_one(&mut *tx).await.unwrap();
        tx.rollback().await.unwrap();
        before
    };
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    database.run(dropped).await;
    catalog.write(&text);
    let service = catalog.start(&database).service().await;
    export(&service, "full", "orders", "c").await;
    database.run("delete from orders where id = 1; insert into parts values (1)").await;
    export(&service, "delta", "orders", "c").await;
    service.stop().await;

    let guide = include_str!("../../docs/guides/remove.md");
    ends(catalog.command(&database, &["untrack", "--all"]).await, 0, "");
    assert!(guide.contains("cdc-export untrack --all"));
    let statements: Vec<_> = guide.split("```sql\n").skip(1).map(|block| block.split_once("```").unwrap().0).collect();
    assert!(!statements.is_empty());
    for statement in statements {
        database.run(statement).await;
    }
    let after: Vec<String> = database.one(CATALOG).await;
    let more: Vec<_> = after.iter().filter(|what| !before.contains(what)).collect();
    let less: Vec<_> = before.iter().filter(|what| !after.contains(what)).collect();
    assert!(more.is_empty() && less.is_empty(), "more: {more:?}, less: {less:?}");
}
