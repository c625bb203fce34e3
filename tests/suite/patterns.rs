//! Patterns of tables, and the reload of the datasets file.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post, submit};
use crate::harness::{Database, Service, Start, ends, eventually, refusal, until};

/// The file is read, and tables are looked for, many times a second.
pub(crate) const QUICK: &str = "reload.file=time:20,reload.quiet=time:20,reload.tables=time:50";

const SHOP: &str = "create schema shop;
    create table shop.orders (id int primary key, total int, changed timestamptz not null default now());
    create index on shop.orders (changed);
    create table shop.lines (id int primary key, note text);
    insert into shop.orders select n, n * 10 from generate_series(1, 5) n;
    insert into shop.lines select n from generate_series(1, 7) n";

const PATTERN: &str = "[[tables]]\nmatch = [\"shop.*\"]\nupdated_at = \"changed\"\n";

fn quick(catalog: &Catalog, database: &Database) -> Start {
    catalog.start(database).with("FAILPOINTS", QUICK)
}

async fn items(service: &Service) -> Vec<Value> {
    service.get("/datasets").await["items"].as_array().unwrap().clone()
}

/// Returns for each item of `GET /datasets` its name, its table, and why it isn't ready.
async fn listed(service: &Service) -> Vec<String> {
    let line = |item: &Value| {
        let text = |member: &str| item[member].as_str().unwrap_or("ready").to_owned();
        assert_eq!(item["ready"], json!(item["reason"].is_null()), "{item}");
        format!("{} {} {}", text("name"), text("table"), text("reason"))
    };
    items(service).await.iter().map(line).collect()
}

async fn becomes(service: &Service, expected: &[&str]) {
    eventually(&format!("{expected:?}"), async || (listed(service).await == expected).then_some(())).await;
}

#[tokio::test]
async fn a_block_that_takes_a_table_from_a_pattern_is_named_where_positions_are_left() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(PATTERN);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let service = quick(&catalog, &database).service().await;
    export(&service, "full", "orders", "a").await;
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    catalog.write(&format!("{PATTERN}[[dataset]]\nname = \"sales\"\ntable = \"shop.orders\"\n"));
    let gone = eventually("the log says so", async || service.events("datasets_gone").pop()).await;
    let why = "no [[dataset]] has its name, and `sales` has its table";
    assert_eq!(gone["datasets"], "orders", "{gone}");
    assert!(gone.to_string().contains(why), "{gone}");
    let consumers: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["state"], "gone", "{consumers}");
    let (_, said) = ends(catalog.command(&database, &["datasets", "check"]).await, 2, "orders: positions: ");
    assert!(said.contains(why), "{said}");
    let forgotten = service.call("DELETE", "/exports/watermark?dataset=orders", &[("X-Consumer-ID", "a")]).await;
    assert_eq!(forgotten.status(), 204);
    ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
}

/// A partition may be locked for hours. A start that locked the others meanwhile would stop their writers, too.
#[tokio::test]
async fn a_start_waits_for_no_locked_partition() {
    let schema = "create schema shop;
                  create table shop.parts (id int primary key) partition by range (id);
                  create table shop.parts_1 partition of shop.parts for values from (0) to (9);
                  create table shop.slow (id int primary key, updated_at timestamptz not null);
                  create table shop.some (id int primary key)";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of(
        "[[tables]]\nmatch = [\"shop.*\"]\nupdated_at = \"updated_at\"\n\n\
         [[dataset]]\nname = \"some\"\ntable = \"shop.some\"\nfilter = \"id > 1\"\n",
    );
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let tx = database.open("lock table shop.parts_1, shop.some").await;
    ends(
        catalog.command(&database, &["datasets", "check"]).await,
        0,
        "some: its filter was not tried, because the table is locked",
    );
    let service = catalog.start(&database).service().await;
    let datasets = ["some shop.some ready", "parts shop.parts ready", "slow shop.slow ready"];
    assert_eq!(listed(&service).await, [&datasets[..], &["parts_1 shop.parts_1 partition"]].concat());
    assert!(service.events("tables_not_ready").is_empty(), "a partition is no table that waits for somebody");
    tx.rollback().await.unwrap();
    export(&service, "full", "parts", "a").await;
}

/// A dump restores the functions of the triggers before the triggers.
#[tokio::test]
async fn a_service_tracks_new_tables_itself_and_leaves_those_alone_that_somebody_untracked() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(&format!("{PATTERN}track = true\n"));
    let service = quick(&catalog, &database).service().await;
    becomes(&service, &["lines shop.lines ready", "orders shop.orders ready"]).await;
    ends(catalog.command(&database, &["untrack", "lines"]).await, 0, "");
    let function =
        "create function cdc_export.capture_0_i() returns trigger language plpgsql as 'begin return null; end'";
    database.run(function).await;
    database.run("create table shop.later (id int primary key)").await;
    let expected = ["later shop.later not_tracked", "lines shop.lines not_tracked", "orders shop.orders ready"];
    becomes(&service, &expected).await;
    // Some looks later.
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(listed(&service).await, expected);
    let writer = database.open("insert into shop.later values (1)").await;
    database.run("drop function cdc_export.capture_0_i()").await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(listed(&service).await, expected, "a session writes to it");
    writer.rollback().await.unwrap();
    becomes(&service, &["later shop.later ready", expected[1], expected[2]]).await;
    export(&service, "full", "later", "a").await;
    // A restored database has the jobs of another one. The third table is listed after two looks at the first one.
    database.run("update cdc_export.jobs set database_id = 'x'").await;
    let is = async |name: &str, state: &str| listed(&service).await.contains(&format!("{name} shop.{name} {state}"));
    for name in ["a", "b", "c"] {
        database.run(&format!("create table shop.{name} (id int primary key)")).await;
        until(name, async || is(name, "not_tracked").await).await;
    }
    assert!(is("a", "not_tracked").await);
    database.run("update cdc_export.jobs set database_id = default").await;
    until("it is tracked", async || is("a", "ready").await).await;
    service.stop().await;
}

#[tokio::test]
async fn a_service_that_may_not_track_a_table_says_why() {
    let database = Database::empty_with(SHOP).await;
    let owner = database.role().await;
    database.run(&format!("alter table shop.lines owner to {owner}")).await;
    let service_role = database.role().await;
    let grants =
        format!("grant all on schema public, shop to {service_role}; grant select on shop.lines to {service_role}");
    database.run(&grants).await;
    let database_name = database.options.get_database().unwrap();
    database.run(&format!("grant create on database \"{database_name}\" to {service_role}")).await;
    let pattern = format!("[[tables]]\nmatch = [\"shop.lines\"]\nowners = [\"{owner}\"]\ntrack = true\n");
    let url = database.url_as(&service_role, "pass");
    let service = quick(&Catalog::of(&pattern), &database).with("DATABASE_URL", url).service().await;
    eventually("the reason", async || {
        let problem = items(&service).await[0]["problems"][0].as_str().unwrap_or_default().to_owned();
        (problem.contains("can't be tracked") && problem.contains(&service_role) && problem.contains(&owner))
            .then_some(())
    })
    .await;
    service.stop().await;
}

#[tokio::test]
async fn deleted_of_a_pattern_leaves_marked_rows_out_of_full_exports() {
    let schema = "create schema shop;
        create table shop.orders (id int primary key, gone boolean not null default false);
        create table shop.\"заказы\" (id int primary key);
        create table shop.wrong (id int primary key, gone int);
        insert into shop.orders select n, n = 2 from generate_series(1, 3) n;
        insert into shop.\"заказы\" values (1), (2)";
    let database = Database::empty_with(schema).await;
    let catalog = Catalog::of("[[tables]]\nmatch = [\"shop.*\"]\nexclude = [\"shop.wrong\"]\ndeleted = \"gone\"\n");
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    for (dataset, rows) in [("orders", 2), ("zakazy", 2)] {
        assert_eq!(export(&service, "full", dataset, "a").await["rowsExported"], rows, "{dataset}");
    }
    service.stop().await;
    // A column of another type is a mistake, and no reason to export marked rows as live ones.
    catalog.write("[[tables]]\nmatch = [\"shop.wrong\"]\ndeleted = \"gone\"\n");
    ends(catalog.command(&database, &["datasets", "check"]).await, 2, "`gone` is integer");
}

#[tokio::test]
async fn each_table_of_a_schema_is_exported_or_said_why_not() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(PATTERN);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let schema = "create table shop.bare (n int);
                  create unlogged table shop.cache (id int primary key);
                  create view shop.seen as select 1 as id;
                  create table shop.\"1st\" (id int primary key);
                  create table shop.parts (id int primary key) partition by range (id);
                  create table shop.parts_1 partition of shop.parts for values from (0) to (9)";
    database.run(schema).await;
    let service = quick(&catalog, &database).service().await;
    let expected = [
        "1st shop.1st name_invalid",
        "bare shop.bare no_key",
        "cache shop.cache unlogged",
        "parts_1 shop.parts_1 partition",
        "seen shop.seen needs_block",
    ];
    let datasets = ["lines shop.lines ready", "orders shop.orders ready", "parts shop.parts not_tracked"];
    let mut found = listed(&service).await;
    let left_out = found.split_off(3);
    assert_eq!(found, datasets);
    assert_eq!(left_out.len(), expected.len());
    assert!(expected.iter().all(|line| left_out.iter().any(|other| other == line)), "{left_out:?}");
    let updated_at: Vec<_> = items(&service).await.into_iter().take(2).map(|item| item["updatedAt"].clone()).collect();
    assert_eq!(updated_at, [Value::Null, json!("changed")], "of the table that has it, with an index");
    assert_eq!(export(&service, "full", "orders", "a").await["rowsExported"], 5);
    database.run("update shop.lines set note = 'x' where id < 3; update shop.orders set total = 1 where id = 2").await;
    export(&service, "full", "lines", "a").await;
    database.run("delete from shop.lines where id = 1").await;
    assert_eq!(export(&service, "delta", "lines", "a").await["rowsExported"], 1);
    assert_eq!(export(&service, "delta", "orders", "a").await["rowsExported"], 1);
    assert_eq!(refusal(post(&service, "/exports/full", Some("a"), &json!({ "dataset": "bare" })).await).await.0, 400);
    assert_eq!(service.events("tables_not_ready").len(), 1);
}

#[tokio::test]
async fn a_new_table_is_a_dataset_without_a_restart() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(&format!(
        "{PATTERN}[[schedule]]\nname = \"s\"\nconsumer = \"a\"\ndataset = \"new\"\ntype = \"full\"\nevery = \"1s\"\n"
    ));
    let service = quick(&catalog, &database).service().await;
    let both = ["lines shop.lines not_tracked", "orders shop.orders not_tracked"];
    becomes(&service, &both).await;
    let refused = async || (service.get("/schedules").await["items"][0]["refused"] == "no_dataset").then_some(());
    eventually("the schedule waits for its dataset", refused).await;
    database.run("create table shop.new (id int primary key); insert into shop.new values (1)").await;
    becomes(&service, &[both[0], "new shop.new not_tracked", both[1]]).await;
    ends(catalog.command(&database, &["track", "new"]).await, 0, "");
    eventually("the schedule exports it", async || {
        (service.get("/exports?dataset=new").await["items"][0]["rowsExported"] == 1).then_some(())
    })
    .await;
    database.run("drop table shop.lines").await;
    becomes(&service, &["new shop.new ready", both[1]]).await;
    assert_eq!(refusal(post(&service, "/exports/full", Some("a"), &json!({ "dataset": "lines" })).await).await.0, 400);
}

#[tokio::test]
async fn a_name_with_exports_never_passes_to_another_table() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of("[[tables]]\nmatch = [\"*.orders\"]\n");
    let service = quick(&catalog, &database).service().await;
    becomes(&service, &["orders shop.orders not_tracked"]).await;
    database.run("create schema other; create table other.orders (id int primary key)").await;
    let clash = ["orders other.orders name_clash", "orders shop.orders name_clash"];
    becomes(&service, &clash).await;
    database.run("drop table other.orders").await;
    becomes(&service, &["orders shop.orders not_tracked"]).await;
    ends(catalog.command(&database, &["track", "orders"]).await, 0, "");
    export(&service, "full", "orders", "a").await;
    database.run("create table other.orders (id int primary key)").await;
    becomes(&service, &["orders shop.orders ready", "orders other.orders name_taken"]).await;
    database.run("drop table shop.orders").await;
    becomes(&service, &["orders other.orders name_taken"]).await;
    service.stop().await;
    // A block says which table is meant.
    catalog.write("[[dataset]]\nname = \"orders\"\ntable = \"other.orders\"\n");
    let service = quick(&catalog, &database).service().await;
    assert_eq!(listed(&service).await, ["orders other.orders not_tracked"]);
    catalog.write("[[tables]]\nmatch = [\"*.orders\"]\n");
    until("the file is read", async || !service.events("datasets_reloaded").is_empty()).await;
    assert_eq!(listed(&service).await, ["orders other.orders not_tracked"]);
}

#[tokio::test]
async fn a_table_of_another_owner_is_left_out() {
    let database = Database::empty().await;
    let role = database.role().await;
    database.run(SHOP).await;
    let statements = format!(
        "alter table shop.lines owner to {role};
         create table shop.parts (id int primary key) partition by range (id);
         create table shop.parts_1 partition of shop.parts for values from (0) to (9);
         alter table shop.parts_1 owner to {role}"
    );
    database.run(&statements).await;
    let catalog = Catalog::of(PATTERN);
    let service = quick(&catalog, &database).service().await;
    let (lines, orders) = ("lines shop.lines not_tracked", "orders shop.orders not_tracked");
    let (others_parts, partition) = ("parts shop.parts another_owner", "parts_1 shop.parts_1 partition");
    becomes(&service, &[orders, "lines shop.lines another_owner", others_parts, partition]).await;
    catalog.write(&format!("{PATTERN}owners = [\"{role}\"]\n"));
    becomes(&service, &[lines, "orders shop.orders another_owner", others_parts, partition]).await;
    catalog.write(PATTERN);
    database.run(&format!("alter schema shop owner to {role}")).await;
    becomes(&service, &[lines, orders, "parts shop.parts not_tracked", partition]).await;

    // Both datasets are gone for the same reason, and consumers have positions: one fault names both.
    database.run(&format!("alter table shop.orders owner to {role}")).await;
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    for dataset in ["lines", "orders"] {
        export(&service, "full", dataset, "a").await;
    }
    database.run("alter schema shop owner to current_user; drop table shop.parts").await;
    let (_, said) = ends(catalog.command(&database, &["datasets", "check"]).await, 2, "");
    assert!(said.contains("lines, orders: positions: "), "{said}");
    assert_eq!(said.matches("it belongs to").count(), 1, "{said}");
}

/// The service looks at the tables once a minute: it finds out when it reads one.
#[tokio::test]
async fn a_table_that_another_role_put_in_the_place_of_one_is_not_read() {
    let database = Database::empty().await;
    let role = database.role().await;
    database.run(SHOP).await;
    let catalog = Catalog::of(PATTERN);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let service = catalog.start(&database).service().await;
    export(&service, "full", "lines", "a").await;
    let statements = format!(
        "drop table shop.lines; create table shop.lines (id int primary key, note text);
         insert into shop.lines values (666);
         create table shop.proof (n int);
         create function shop.writes() returns bool language plpgsql as
           $$ begin insert into shop.proof values (1); return true; end $$;
         create function shop.runs(int) returns bool language plpgsql immutable as
           $$ begin perform shop.writes(); return true; end $$;
         create index on shop.lines (note) where shop.runs(7);
         alter table shop.lines owner to {role};
         truncate shop.proof"
    );
    database.run(&statements).await;
    let body = json!({ "dataset": "lines" });
    for (path, consumer) in [("/exports/full", Some("a")), ("/exports/delta", Some("a")), ("/exports", None)] {
        let job = ended(&service, path, consumer, body.clone()).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("table_missing")), "{job}");
    }
    let consumers: Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    assert_eq!(consumers["items"][0]["state"], "failing", "{consumers}");
    assert_eq!(listed(&service).await[0], "lines shop.lines dataset_mismatch");
    let filtered = json!({ "dataset": "lines", "filter": [{ "column": "id", "op": "gt", "value": 1 }] });
    assert_eq!(refusal(post(&service, "/exports", None, &filtered).await).await.1, "dataset_mismatch");
    catalog.command(&database, &["datasets", "check"]).await;
    assert_eq!(database.one::<i64>("select count(*) from shop.proof").await, 0, "code of the other role ran");
}

#[tokio::test]
async fn a_file_stays_stale_until_it_is_in_force() {
    let database = Database::empty_with(SHOP).await;
    let catalog = Catalog::of(PATTERN);
    let service = quick(&catalog, &database).service().await;
    let stale = async || {
        let answer: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        answer["checks"]["catalog"].as_str().map(str::to_owned)
    };
    let becomes_stale = async |why: &str| {
        eventually(why, async || stale().await.is_some_and(|stale| stale.contains(why)).then_some(())).await;
    };
    catalog.write("oops = [");
    becomes_stale("line 1: ").await;
    let tables = ["extra shop.extra not_tracked", "lines shop.lines not_tracked", "orders shop.orders not_tracked"];
    database.run("create table shop.extra (id int primary key)").await;
    becomes(&service, &tables).await;
    assert!(stale().await.is_some(), "a new table mends no file");
    assert_eq!(service.events("datasets_reload_failed").len(), 1);
    // A pipe that nobody writes to.
    std::fs::remove_file(catalog.path()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(catalog.path()).status().unwrap().success());
    becomes_stale("the log says why").await;
    std::fs::remove_file(catalog.path()).unwrap();
    catalog.write(&format!("{PATTERN}exclude = [\"*.extra\"]\n"));
    becomes(&service, &tables[1..]).await;
    until("the file is in force", async || stale().await.is_none()).await;
    assert_eq!(service.events("datasets_gone").len(), 1);
}

#[tokio::test]
async fn a_changed_file_is_read_and_a_wrong_one_leaves_the_old_one_in_force() {
    let database = Database::empty_with(SHOP).await;
    let block = |name: &str, rest: &str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"shop.{name}\"\n{rest}");
    let catalog = Catalog::of(&block("orders", ""));
    catalog.track(&database, "orders").await;
    let service = quick(&catalog, &database).service().await;
    let checks = async || {
        let answer: Value = service.call("GET", "/health/ready", &[]).await.json().await.unwrap();
        assert_eq!(answer["status"], "ok", "{answer}");
        answer["checks"]["catalog"].clone()
    };
    assert_eq!(checks().await, Value::Null);
    for (wrong, line) in [
        ("colour = \"red\"\n", "line 4: unknown field `colour`"),
        ("updated_at = \"total\"\n", "line 4: orders: updated_at: "),
    ] {
        catalog.write(&block("orders", wrong));
        until("the wrong file is told of", async || {
            checks().await.as_str().is_some_and(|stale| stale.starts_with("stale: ") && stale.contains(line))
        })
        .await;
        assert_eq!(listed(&service).await, ["orders shop.orders ready"]);
        assert_eq!(export(&service, "full", "orders", "a").await["rowsExported"], 5);
    }
    assert_eq!(service.events("datasets_reload_failed").len(), 2, "once for each text");
    catalog.write(&[block("orders", ""), block("lines", "")].concat());
    becomes(&service, &["orders shop.orders ready", "lines shop.lines not_tracked"]).await;
    assert_eq!(checks().await, Value::Null);
    catalog.write(&block("lines", ""));
    becomes(&service, &["lines shop.lines not_tracked"]).await;
}

#[tokio::test]
async fn a_signal_reloads_at_once_and_a_running_export_ends_by_the_old_file() {
    let database = Database::empty_with(SHOP).await;
    let block = "[[dataset]]\nname = \"orders\"\ntable = \"shop.orders\"\n";
    let catalog = Catalog::of(block);
    catalog.track(&database, "orders").await;
    let start = catalog.start(&database).with("WORKERS", 1).with("FAILPOINTS", "worker.claimed=hold");
    let hold = start.hold("worker.claimed");
    let service = start.service().await;
    let id = submit(&service, "/exports/full", Some("a"), json!({ "dataset": "orders" })).await;
    hold.reached().await;
    catalog.write("[[dataset]]\nname = \"lines\"\ntable = \"shop.lines\"\n[[webhook]]\nname = \"w\"\nurl = \"https://example.com\"\nsecret_env = \"W_SECRET\"\n");
    service.signal(Signal::SIGHUP);
    becomes(&service, &["lines shop.lines not_tracked"]).await;
    assert_eq!(service.events("receivers_changed").len(), 1, "they need a restart");
    hold.release().await;
    let ended = service.ended(&id).await;
    assert_eq!((&ended["status"], &ended["rowsExported"]), (&json!("completed"), &json!(5)));
}

#[tokio::test]
async fn a_file_without_datasets_has_the_demos() {
    let database = Database::new().await;
    let catalog = Catalog::of(
        "[[schedule]]\nname = \"s\"\nconsumer = \"a\"\ndataset = \"users\"\ntype = \"full\"\nevery = \"1s\"\n",
    );
    let service = catalog.start(&database).service().await;
    let exported = async || (service.get("/exports").await["items"][0]["status"] == "completed").then_some(());
    eventually("the schedule exports the users", exported).await;
}

#[tokio::test]
async fn commands_add_tables_and_list_them() {
    let database = Database::empty_with(SHOP).await;
    let changes = "
        create table shop.bare (n int); create view shop.\"big orders\" as select * from shop.orders;
        create view shop.sums as select sum(id) from shop.orders; create table shop.whole (id int primary key)
          partition by range (id); create table shop.part partition of shop.whole for values from (1) to (9)";
    database.run(changes).await;
    let catalog = Catalog::of("# Mine.\n");
    let add = async |arguments: &[&str]| catalog.command(&database, &[&["datasets", "add"], arguments].concat()).await;
    ends(add(&["shop.orders", "shop.lines", "--name", "both"]).await, 2, "--name: it names one dataset");
    ends(add(&["--name", "sales"]).await, 2, "<TABLE>...");
    ends(add(&["--name", "sales", "shop.orders"]).await, 0, "cdc-export track sales");
    database.run("create schema \"w*d\"; create table \"w*d\".t (id int primary key)").await;
    for (schema, why) in
        [("nosuch", "no table in a schema"), ("w*d", "can't name just the schema"), ("SHOP", "no table in")]
    {
        ends(add(&["--schema", schema]).await, 1, why);
    }
    let (printed, said) = ends(add(&["--schema", "shop"]).await, 0, "cdc-export track --all");
    assert!(printed.starts_with("[[tables]]\nmatch = [\"shop.*\"]\n"), "{printed}");
    let hint = "`cdc-export datasets add shop.bare 'shop.big orders' shop.sums` adds these, with `capture = \"none\"`";
    assert!(said.contains(hint), "{said}");
    // Tables that the pattern leaves out get their own blocks if they are named.
    let empty = Catalog::of("# Mine.\n");
    let both = ["datasets", "add", "--schema", "shop", "shop.sums", "shop.bare"];
    let (code, printed, said) = empty.command(&database, &both).await;
    assert!(code == 0 && said.contains("`cdc-export datasets add 'shop.big orders'` adds these"), "{said}");
    let has = |text: &str| printed.matches(text).count();
    assert_eq!((has("[[dataset]]"), has("\ncapture = \"none\"\n"), has("[[tables]]")), (2, 2, 1), "{printed}");
    ends(empty.command(&database, &both).await, 1, "has this pattern already");
    let all = [&both[..], &["shop.\"big orders\""]].concat();
    assert!(!ends(Catalog::of("# Mine.\n").command(&database, &all).await, 0, "").1.contains("leaves out"));
    ends(add(&["shop.lines", "shop.orders"]).await, 0, "cdc-export track lines orders");
    let (listed, _) = ends(catalog.command(&database, &["datasets", "list", "--json"]).await, 0, "");
    let names: Vec<Value> =
        listed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["name"].clone()).collect();
    assert_eq!(names, ["sales", "lines", "orders", "whole", "bare", "big_orders", "part", "sums"]);
    database.run("create table shop.\"esc\u{1b}[31m\" (id int primary key)").await;
    let text = std::fs::read_to_string(catalog.path()).unwrap();
    catalog.write(&format!("{text}[[tables]]\nmatch = [\"shops.*\"]\n"));
    let (code, _, said) = catalog.command(&database, &["datasets", "check"]).await;
    assert!(code == 0 && said.contains("no table matches the pattern shops.*"), "{said}");
    assert!(said.contains("shop.bare: no dataset: it has no primary key"), "{said}");
    for command in [&["datasets", "list"][..], &["datasets", "check"], &["track", "--all"]] {
        let (_, printed, said) = catalog.command(&database, command).await;
        assert!(!printed.contains('\u{1b}') && !said.contains('\u{1b}'), "{command:?} writes to the terminal");
    }
    let (code, listed, said) = catalog.command(&database, &["datasets", "list"]).await;
    assert!(code == 0 && listed.contains("it has no primary key"), "{listed}{said}");
    // Each schema has a pattern of its own, and one line says what many tables lack.
    let made = "do $$ begin for n in 1..7 loop execute format('create table side.t%s (id int primary key)', n); end loop; end $$";
    database.run(&format!("create schema side; {made}")).await;
    catalog.write("");
    let (printed, _) = ends(add(&["--schema", "shop", "--schema", "side"]).await, 0, "cdc-export track --all");
    assert_eq!(printed.matches("[[tables]]").count(), 2, "{printed}");
    catalog.write("[[tables]]\nmatch = [\"side.*\"]\n");
    let (_, said) = ends(catalog.command(&database, &["datasets", "check"]).await, 0, "");
    assert!(said.contains(" and 2 more: the changes are not captured: `cdc-export track --all`"), "{said}");
}
