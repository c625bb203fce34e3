//! Masked columns: no unmasked value leaves the service, and equal values stay equal.

use std::path::Path;

use serde_json::{Value, json};

use crate::catalog::{Catalog, ended, export, post, submit};
use crate::harness::{Csv, Database, Service, Start, ends, eventually, needs_full, refusal, until};
use crate::mirrors::Mirror;
use crate::patterns::QUICK;

const SECRET: &str = "a secret of the tests that stays";

/// A text that is in each masked column, and must be nowhere else.
const PLANTED: &str = "plänted";

const PEOPLE: &str = "
    create table people (id int primary key, email text, phone text, name text, note text, born date, ref uuid, free text);
    insert into people select n, 'plänted' || n % 3 || '@example.com', '0171' || n || 'plänted', 'plänted', 'plänted',
      date '1970-05-06' + 400 * n, ('00000000-0000-0000-0000-00000000000' || n % 9)::uuid, 'free ' || n from generate_series(1, 20) n;
    insert into people (id) values (99);
    create table visits (email text primary key, n int);
    insert into visits select distinct email, 1 from people where email is not null;";

const FILE: &str = "
[[dataset]]
name = \"people\"
table = \"people\"
mask = { email = \"hmac\", phone = \"last 4\", name = \"null\", note = \"fixed ***\", born = \"year\", ref = \"hmac\" }

[[dataset]]
name = \"visits\"
table = \"visits\"
mask = { email = \"hmac\" }
";

/// The token of a text, by another way than the service's.
fn token(text: &str) -> String {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, SECRET.as_bytes());
    hex::encode(ring::hmac::sign(&key, text.as_bytes()))
}

fn start(catalog: &Catalog, database: &Database) -> Start {
    catalog.start(database).with("MASK_SECRET", SECRET).with("MANIFESTS", "on").with("LOG_LEVEL", "trace")
}

async fn command(catalog: &Catalog, database: &Database, arguments: &[&str]) -> (i32, String, String) {
    start(catalog, database).arguments(arguments).output().await
}

async fn people(file: &str) -> (Database, Catalog, Service) {
    people_with(file, "").await
}

async fn people_with(file: &str, statements: &str) -> (Database, Catalog, Service) {
    let database = Database::empty_with(&format!("{PEOPLE} {statements}")).await;
    let catalog = Catalog::of(file);
    ends(command(&catalog, &database, &["track", "--all"]).await, 0, "");
    let service = start(&catalog, &database).service().await;
    (database, catalog, service)
}

/// Asserts that a text is in no file of a folder, whatever its name.
fn require_nowhere(folder: &Path, text: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            require_nowhere(&path, text);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let is_in = bytes.windows(text.len()).any(|window| window == text.as_bytes());
            assert!(!is_in, "{} has {text}", path.display());
        }
    }
}

#[tokio::test]
async fn each_value_is_masked_and_equal_values_have_one_token() {
    let (database, _catalog, service) = people(FILE).await;
    let csv = Csv::read(&service.path(&export(&service, "full", "people", "a").await));
    let row = |id: &str| csv.rows.iter().find(|row| row[0] == id).unwrap().clone();
    let expected = [
        "4",
        &token("plänted1@example.com"),
        "****nted",
        "",
        "***",
        "1974",
        &token("00000000-0000-0000-0000-000000000004"),
        "free 4",
    ];
    assert_eq!(row("4"), expected);
    assert_eq!(row("99")[1..], [""; 7], "NULL stays NULL");
    assert_eq!(row("1")[1], row("4")[1]);

    // A mask makes no value where there is none.
    database.run("delete from people where id = 4").await;
    let rows = Csv::read(&service.path(&export(&service, "delta", "people", "a").await)).rows;
    assert_eq!(rows[0][..2], ["DELETE", "4"]);
    assert_eq!(rows[0][2..], [""; 7]);
}

#[tokio::test]
async fn no_unmasked_value_is_in_any_file_answer_or_log() {
    // Functions of a filter that quote a value: in the name of the service, as if a right lacked, and in a warning.
    let speaking = ["imposing", "denying", "warning"].map(|name| {
        format!(
            "[[dataset]]\nname = \"{name}\"\ntable = \"people\"\nfilter = \"public.{name}(name)\"\nmask = {{ name = \"null\",\n\
             email = \"null\", phone = \"null\", note = \"null\" }}\n"
        )
    });
    let with_failing = FILE.to_owned()
        + &speaking.concat()
        + "[[dataset]]\nname = \"failing\"\ntable = \"people\"\nfilter = \"name::int > 0\"\nmask = { name = \"null\", email = \"null\",\n\
           phone = \"null\", note = \"null\" }\n";
    let functions = "
        create function imposing(v text) returns boolean immutable language plpgsql as
          'begin if v is null then return true; end if; raise exception ''%'', v using errcode = ''CE001''; end';
        create function denying(v text) returns boolean immutable language plpgsql as
          'begin if v is null then return true; end if; raise exception ''%'', v using errcode = ''42501''; end';
        create function warning(v text) returns boolean immutable language plpgsql as
          'begin raise warning ''%'', v; return true; end';";
    let (database, _, service) = people_with(&with_failing, functions).await;
    let mut answers = String::new();
    for format in ["csv", "ndjson", "parquet"] {
        if format == "parquet" && !cfg!(feature = "parquet") {
            continue;
        }
        for export_type in ["full", "incremental", "delta"] {
            let statements =
                "update people set free = free || 'x'; delete from people where id = (select max(id) from people)";
            database.run(statements).await;
            for dataset in ["people", "visits"] {
                let body = json!({ "dataset": dataset, "format": format });
                let job = ended(&service, &format!("/exports/{export_type}"), Some(format), body).await;
                assert_eq!(job["status"], "completed", "{job}");
                answers += &job.to_string();
            }
        }
        let body = json!({ "dataset": "people", "format": format, "columns": ["email", "phone"], "limit": 3 });
        assert_eq!(ended(&service, "/exports", None, body).await["status"], "completed");
    }
    // Postgres's message quotes the value that is no number.
    for (export_type, code) in [("full", "dataset_mismatch"), ("delta", "dataset_mismatch")] {
        let job = ended(&service, &format!("/exports/{export_type}"), Some("f"), json!({ "dataset": "failing" })).await;
        assert_eq!(job["error"]["code"], code, "{job}");
        answers += &job.to_string();
    }
    for (dataset, status) in [("imposing", "failed"), ("denying", "failed"), ("warning", "completed")] {
        let job = ended(&service, "/exports/full", Some("s"), json!({ "dataset": dataset })).await;
        assert_eq!(job["status"], status, "{job}");
        answers += &job.to_string();
    }
    let job = ended(&service, "/exports/delta", Some("a"), json!({ "datasets": ["people", "visits"] })).await;
    answers += &job.to_string();
    for path in ["/datasets", "/consumers", "/exports", "/deliveries", "/metrics", "/schedules"] {
        answers += &service.call("GET", path, &[]).await.text().await.unwrap();
    }
    // A deletion that is read as another type, which fails.
    database.run("alter table people alter free type int using 1").await;
    answers += &ended(&service, "/exports/delta", Some("csv"), json!({ "dataset": "people" })).await.to_string();
    require_nowhere(service.output(), PLANTED);
    assert!(!answers.contains(PLANTED), "{answers}");
    let log = service.log();
    assert!(log.contains("message is withheld") && !log.contains(PLANTED), "{log}");
    let kept = "select (select string_agg(j::text, '') from cdc_export.jobs j)
                  || (select string_agg(e::text, '') from cdc_export.exports e)";
    assert!(!database.one::<String>(kept).await.contains(PLANTED));
    let listed: Value = service.call("GET", "/datasets/people", &[]).await.json().await.unwrap();
    let masks: Vec<_> = listed["columns"].as_array().unwrap().iter().map(|column| &column["mask"]).collect();
    assert_eq!(json!(masks[..4]), json!([null, "hmac", "last 4", "null"]), "{listed}");
}

#[tokio::test]
async fn no_caller_selects_rows_by_a_masked_column() {
    let (_database, _catalog, service) = people(FILE).await;
    let filter = |column: &str| json!([{ "column": column, "op": "gte", "value": "a" }]);
    for body in [
        json!({ "dataset": "people", "filter": filter("email") }),
        json!({ "dataset": "people", "filter": filter("note"), "columns": ["id"] }),
        json!({ "dataset": "people", "filter": [{ "column": "name", "op": "isNull", "value": true }] }),
        json!({ "dataset": "visits", "limit": 1 }),
    ] {
        assert_eq!(
            refusal(post(&service, "/exports", None, &body).await).await,
            (400, "column_masked".to_owned()),
            "{body}"
        );
    }
    let body = json!({ "dataset": "people", "filter": filter("free"), "limit": 2 });
    assert_eq!(ended(&service, "/exports", None, body).await["rowsExported"], 2);
}

/// A column that was masked must not appear without its mask, under whatever name, until the operator says so.
#[tokio::test]
async fn a_masked_column_is_exported_without_its_mask_only_after_the_operators_word() {
    let pattern = "[[tables]]\nmatch = [\"public.people\"]\nmask = { email = \"hmac\", absent = \"null\" }\n";
    for (file, is_pattern) in [(FILE, false), (pattern, true)] {
        let (database, catalog, service) = people(file).await;
        if is_pattern {
            let (code, _, said) = command(&catalog, &database, &["datasets", "check"]).await;
            assert!(code == 0 && said.contains("people: it has no column `absent` to mask"), "{said}");
        }
        export(&service, "full", "people", "a").await;
        database.run("alter table people rename email to mail").await;
        let fails = async |service: &Service, what: &str| {
            let consumers = service.get("/consumers").await;
            let told = (&consumers["items"][0]["state"], &consumers["items"][0]["continuity"]);
            assert_eq!(told, (&json!("failing"), &json!("mask_removed")), "{what}: {consumers}");
            for (path, consumer) in [("/exports/full", Some("a")), ("/exports/delta", Some("a")), ("/exports", None)] {
                let job = ended(service, path, consumer, json!({ "dataset": "people" })).await;
                let why = (&job["error"]["code"], &job["continuity"]);
                assert_eq!(why, (&json!("dataset_mismatch"), &json!("mask_removed")), "{what} {path}: {job}");
            }
            let listed: Value = service.call("GET", "/datasets/people", &[]).await.json().await.unwrap();
            assert_eq!(listed["reason"], "mask_removed", "{what}: {listed}");
        };
        fails(&service, "renamed").await;
        let path = "/exports/watermark?dataset=people";
        assert_eq!(service.call("DELETE", path, &[("X-Consumer-ID", "a")]).await.status(), 204);
        fails(&service, "without a position").await;
        service.stop().await;
        // The operator masks it under its new name, and says that there is none of the old name.
        let renamed = file.replacen("email", "mail", 1);
        catalog.write(&renamed);
        ends(command(&catalog, &database, &["datasets", "check"]).await, 2, "its exports masked `email`");
        let service = start(&catalog, &database).service().await;
        fails(&service, "masked under its new name").await;
        ends(command(&catalog, &database, &["mask", "drop", "people"]).await, 0, "");
        export(&service, "full", "people", "a").await;
        // A file that was cut before a mask isn't in force at a reload, nor do its exports run after a start.
        catalog.write(&renamed.replacen("mail = \"hmac\", ", "", 1));
        if !is_pattern {
            until("it is refused", async || !service.events("datasets_reload_failed").is_empty()).await;
            export(&service, "full", "people", "a").await;
        }
        service.stop().await;
        let service = start(&catalog, &database).service().await;
        fails(&service, "without its mask").await;
        require_nowhere(service.output(), "nted1@example.com");
        ends(command(&catalog, &database, &["mask", "drop", "people"]).await, 0, "");
        let csv = Csv::read(&service.path(&export(&service, "full", "people", "a").await));
        assert!(csv.rows.iter().any(|row| row[1].contains("nted1@example.com")), "{csv:?}");
    }
}

#[tokio::test]
async fn rows_with_a_masked_key_are_in_no_order() {
    let block = |name: &str, rest: &str| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nmask = {{ email = \"hmac\" }}\n{rest}")
    };
    let file = block("logged", "")
        + &block("timed", "updated_at = \"changed_at\"\n")
        + &block("polled", "updated_at = \"changed_at\"\ncapture = \"timestamp\"\n");
    let tables: String = ["logged", "timed", "polled"]
        .map(|name| {
            format!(
                "create table {name} (email text primary key, n int, changed_at timestamptz default now());
                 create index on {name} (changed_at);
                 insert into {name} select format('v%s@example.com', 1000 + n), n from generate_series(1, 100) n;"
            )
        })
        .concat();
    let (database, _catalog, service) = people_with(&file, &tables).await;
    for dataset in ["logged", "timed", "polled"] {
        let require_no_order = async |export_type: &str, consumer: &str| {
            let rows = Csv::read(&service.path(&export(&service, export_type, dataset, consumer).await)).rows;
            let value = |row: &Vec<String>| {
                let place = usize::from(export_type == "delta");
                (1001..=1100).find(|n| row[place] == token(&format!("v{n}@example.com")))
            };
            let order: Vec<i32> = rows.iter().filter_map(value).collect();
            assert!(order.len() >= 25, "{dataset} {export_type} {consumer}: {order:?}");
            let ascents = order.windows(2).filter(|pair| pair[0] < pair[1]).count();
            let is_mixed = ascents > order.len() / 5 && ascents < order.len() * 4 / 5;
            assert!(is_mixed, "{dataset} {export_type} {consumer}: {order:?}");
        };
        for export_type in ["incremental", "delta"] {
            require_no_order(export_type, export_type).await;
        }
        let statements = format!(
            "delete from {dataset} where n between 1 and 50 and n % 2 = 0;
             update {dataset} set n = n + 1000, changed_at = now() where n > 50"
        );
        database.run(&statements).await;
        for export_type in ["incremental", "delta"] {
            require_no_order(export_type, export_type).await;
        }
    }
}

/// The old file would leave the column unmasked.
#[tokio::test]
async fn a_mask_without_a_secret_is_in_force_when_the_file_changes() {
    let database = Database::empty_with(PEOPLE).await;
    let unmasked = "[[dataset]]\nname = \"people\"\ntable = \"people\"\n";
    let catalog = Catalog::of(unmasked);
    catalog.track(&database, "people").await;
    let service = catalog.start(&database).with("FAILPOINTS", QUICK).service().await;
    export(&service, "full", "people", "a").await;
    catalog.write(&format!("{unmasked}mask = {{ email = \"hmac\" }}\n"));
    eventually("the file is in force", async || service.events("datasets_reloaded").pop()).await;
    assert_eq!(service.events("mask_secret_missing").len(), 1);
    let job = ended(&service, "/exports/full", Some("a"), json!({ "dataset": "people" })).await;
    assert_eq!(job["error"]["code"], "dataset_mismatch", "{job}");
}

#[tokio::test]
async fn another_mask_or_secret_needs_a_full_export() {
    let file = FILE.to_owned()
        + "[[dataset]]\nname = \"names\"\ntable = \"people\"\nmask = { name = \"null\", phone = \"last 2\" }\n";
    let (database, catalog, service) = people(&file).await;
    export(&service, "full", "people", "a").await;
    export(&service, "full", "names", "a").await;
    let needs_full = async |service: &Service, dataset: &str| {
        let job = ended(service, "/exports/delta", Some("a"), json!({ "dataset": dataset })).await;
        needs_full(&job, "dataset_changed");
        export(service, "full", dataset, "a").await;
    };
    service.stop().await;
    catalog.write(&file.replace("last 4", "last 3"));
    let service = start(&catalog, &database).service().await;
    needs_full(&service, "people").await;
    export(&service, "full", "visits", "a").await;

    // A process with another secret doesn't start, nor does one without a secret.
    let other = || start(&catalog, &database).with("MASK_SECRET", "another secret of the tests");
    let (code, said) = other().until_it_ends().await;
    assert!(code == 2 && said.contains("mask rotate") && !said.contains("another secret"), "{said}");
    ends(catalog.start(&database).output().await, 2, "MASK_SECRET");
    let (code, said) = start(&catalog, &database).with("MASK_SECRET", "short").until_it_ends().await;
    assert!(code == 2 && said.contains("at least 16 characters") && !said.contains("short"), "{said}");
    for expected in ["is accepted", "nothing has changed"] {
        let (code, printed, said) = other().arguments(&["mask", "rotate"]).output().await;
        assert!(code == 0 && printed.contains(expected), "{printed} {said}");
    }
    // The process that still runs has the old one, and leaves the job to one with the new secret.
    let job = submit(&service, "/exports/full", Some("b"), json!({ "dataset": "people" })).await;
    until("an attempt fails", async || service.job(&job).await["error"]["code"] == "dataset_mismatch").await;
    assert_eq!(service.job(&job).await["status"], "pending");
    service.stop().await;
    let service = other().service().await;
    service.completes(&job).await;
    needs_full(&service, "people").await;
    needs_full(&service, "visits").await;
    // It has no token.
    export(&service, "delta", "names", "a").await;
}

#[tokio::test]
async fn a_mask_that_can_not_be_is_refused() {
    let database = Database::empty_with(PEOPLE).await;
    let catalog = Catalog::of("");
    for (mask, why) in [
        ("{ email = \"sha256\" }", "none of hmac, null, year"),
        ("{ phone = \"last 0\" }", "a number from 1 to 64"),
        ("{ absent = \"null\" }", "there is no column `absent`"),
        ("{ id = \"last 2\" }", "can only have `hmac`"),
        ("{ email = \"year\" }", "`email` is text, which has no year"),
        ("{ email = \"hmac\" }\ndeleted = \"email\"", "can't be masked"),
        ("\"email\"", "mask"),
    ] {
        catalog.write(&format!("[[dataset]]\nname = \"people\"\ntable = \"people\"\nmask = {mask}\n"));
        ends(command(&catalog, &database, &["datasets", "check"]).await, 2, why);
    }
}

#[tokio::test]
async fn a_copy_has_the_masked_values() {
    let schema = "create schema sales; set search_path = sales;";
    let file = FILE.replace("table = \"", "table = \"sales.");
    let mirror = Mirror::with_secret(&file, &format!("{schema} {PEOPLE}"), SECRET).await;
    mirror.applies_all("the first").await;
    let types = "select string_agg(format_type(atttypid, atttypmod), ' ' order by attnum) from pg_attribute
                 where attrelid = 'sales.people'::regclass and attnum > 0";
    assert_eq!(mirror.target.one::<String>(types).await, "integer text text text text integer text text");
    let statements =
        "delete from sales.visits where email like '%1@%'; update sales.people set phone = '12345' where id = 2";
    mirror.source.run(statements).await;
    mirror.applies_all("a delta").await;
    let tokens: Vec<String> = mirror.target.one("select array_agg(email order by email) from sales.visits").await;
    let mut expected = [0, 2].map(|n| token(&format!("plänted{n}@example.com")));
    expected.sort();
    assert_eq!(tokens, expected);
    assert_eq!(mirror.target.one::<String>("select phone from sales.people where id = 2").await, "****45");
    let joined = "select count(*) from sales.people join sales.visits using (email)";
    assert_eq!(mirror.target.one::<i64>(joined).await, 13, "tokens join");
}
