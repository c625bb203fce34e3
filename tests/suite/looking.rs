//! Commands that look: on a database of somebody's, or without any, they make nothing.

use std::path::Path;

use crate::catalog::Catalog;
use crate::command::run_in;
use crate::harness::{Database, Start, ends, reachable_folder};

/// Every command that looks at a database, or uses what others have made there.
const LOOKING: [&[&str]; 7] = [
    &["status"],
    &["status", "--json"],
    &["keys", "list"],
    &["keys", "revoke", "k"],
    &["untrack", "orders"],
    &["download", "00000000-0000-4000-8000-000000000000"],
    &["export", "full", "--consumer", "a", "--dataset", "orders"],
];

const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

/// Every name below a folder, with the bytes of its files.
fn everything_in(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.push((path.display().to_string(), std::fs::read(&path).unwrap_or_default()));
        if path.is_dir() {
            found.extend(everything_in(&path));
        }
    }
    found.sort();
    found
}

/// Returns all relations, functions and schemas of a database, except Postgres's own.
async fn everything_of(database: &Database) -> String {
    let everything = "select coalesce(string_agg(name, ' ' order by name), '') from (
           select n.nspname || '.' || c.relname as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
           union all select n.nspname || '.' || p.proname || '()' from pg_proc p join pg_namespace n on n.oid = p.pronamespace
           union all select nspname || '.' from pg_namespace) names
         where name !~ '^(pg_catalog|pg_toast|information_schema|pg_temp|pg_toast_temp)'";
    database.one(everything).await
}

#[tokio::test]
async fn without_a_database_a_command_says_what_to_set_and_leaves_nothing() {
    let work = reachable_folder();
    std::fs::write(work.path().join("datasets.toml"), ORDERS).unwrap();
    let before = everything_in(work.path());
    let others = [
        &["datasets", "check"][..],
        &["datasets", "list"],
        &["datasets", "add", "items"],
        &["track", "orders"],
        &["keys", "create", "--name", "k"],
    ];
    for arguments in LOOKING.into_iter().chain(others) {
        let (code, printed, said) = run_in(work.path(), arguments, &[("DATASETS", "datasets.toml")]).await;
        assert_eq!((code, printed.as_str(), said.lines().count()), (2, "", 1), "{arguments:?}: {said}");
        for way in ["DATABASE_URL", "DATA_DIR"] {
            assert!(said.contains(way), "{arguments:?}: {said}");
        }
        let is_remote = ["status", "download", "export"].contains(&arguments[0]);
        assert_eq!(said.contains("--server"), is_remote, "{arguments:?}: {said}");
        assert!(everything_in(work.path()) == before, "{arguments:?} leaves something");
    }
}

#[tokio::test]
async fn where_root_uses_another_folder_than_the_default_one_a_command_names_it() {
    let system = Path::new("/var/lib/cdc-export");
    if !nix::unistd::geteuid().is_root() || system.exists() {
        return;
    }
    let work = reachable_folder();
    std::fs::set_permissions(work.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    ends(
        run_in(work.path(), &["status"], &[]).await,
        2,
        "no private Postgres in /var/lib/cdc-export: set DATABASE_URL",
    );
    assert!(!system.exists());
}

#[tokio::test]
async fn track_of_a_table_that_is_not_there_makes_nothing() {
    let database = Database::empty().await;
    let catalog = Catalog::of(ORDERS);
    let before = everything_of(&database).await;
    let (code, printed, said) = catalog.command(&database, &["track", "orders"]).await;
    assert_eq!((code, printed.as_str(), said.lines().count()), (2, "", 1), "{said}");
    assert!(said.contains("there is no table `orders`"), "{said}");
    assert_eq!(everything_of(&database).await, before);
}

#[tokio::test]
async fn a_private_server_that_is_there_is_started_for_a_command() {
    let work = reachable_folder();
    let settings = [("SEED_ROWS", "0")];
    assert_eq!(run_in(work.path(), &["seed", "--rows", "10"], &settings).await.0, 0);
    let (code, printed, said) = run_in(work.path(), &["status"], &settings).await;
    let told = "cdc-export: DATABASE_URL is unset: using the private Postgres in ./data\n";
    assert_eq!((code, said.as_str()), (0, told), "{printed}");
    assert!(!work.path().join("output").exists(), "the folder of the exports is not for looking");
    let (code, printed, said) = run_in(work.path(), &["export", "full", "--consumer", "a"], &settings).await;
    assert!(code == 0 && printed.ends_with(" rows\n"), "{printed}{said}");
}

#[tokio::test]
async fn looking_at_a_database_makes_nothing_in_it() {
    let database = Database::empty_with("create table orders (id int primary key, note text)").await;
    let catalog = Catalog::of(ORDERS);
    let before = everything_of(&database).await;
    for arguments in LOOKING {
        let work = reachable_folder();
        let (url, file) = (database.url(), catalog.path().display().to_string());
        let (code, printed, said) =
            run_in(work.path(), arguments, &[("DATABASE_URL", &url), ("DATASETS", &file)]).await;
        assert_eq!(everything_of(&database).await, before, "{arguments:?}");
        assert_eq!(everything_in(work.path()), [], "{arguments:?}");
        assert_eq!((code, printed.as_str(), said.lines().count()), (1, "", 1), "{arguments:?}: {said}");
        assert!(said.contains("there is no cdc-export in this database yet"), "{arguments:?}: {said}");
        assert!(said.contains("`cdc-export migrate`"), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_catalog_is_written_and_checked_before_anything_is_made() {
    let schema = "
        create schema sales; create type sales.state as enum ('new', 'paid');
        create table sales.orders (id int primary key, state sales.state, at timestamptz, modified_at timestamptz);
        create table items (a text, b int, deleted_at timestamptz, primary key (a, b))";
    let database = Database::empty_with(schema).await;
    let before = everything_of(&database).await;
    let work = reachable_folder();
    let url = database.url();
    let settings = [("DATABASE_URL", url.as_str()), ("DATASETS", "datasets.toml")];
    let file = || std::fs::read_to_string(work.path().join("datasets.toml")).unwrap();

    let (code, block, said) = run_in(work.path(), &["datasets", "add", "sales.orders"], &settings).await;
    assert!(code == 0 && said.contains("datasets.toml") && said.contains("`cdc-export track orders`"), "{said}");
    assert!(block.contains("name = \"orders\"\ntable = \"sales.orders\""));
    assert!(block.contains("updated_at = \"modified_at\""));
    assert_eq!(file(), block);

    // Text that somebody wrote stays, whatever it looks like.
    let theirs = format!("# ours, by hand\n{block}filter = \"id > 0\"   # no newline after this");
    std::fs::write(work.path().join("datasets.toml"), &theirs).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(work.path().join("datasets.toml"), mode).unwrap();
    let (code, block, said) = run_in(work.path(), &["datasets", "add", "items"], &settings).await;
    assert_eq!((code, file()), (0, format!("{theirs}\n\n{block}")), "{said}");
    let mode = std::fs::metadata(work.path().join("datasets.toml")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode.permissions()) & 0o777, 0o640);

    let both = file();
    for (table, exit, why) in
        [("sales.orders", 2, "orders: there is a dataset of this name already"), ("nothing", 1, "there is no table")]
    {
        assert_eq!(ends(run_in(work.path(), &["datasets", "add", table], &settings).await, exit, why).0, "", "{table}");
        assert_eq!(file(), both, "{table}");
    }
    let (code, printed, said) = run_in(work.path(), &["datasets", "check"], &settings).await;
    assert_eq!((code, printed.as_str()), (0, ""), "{said}");
    assert!(["orders", "items", "`cdc-export track --all`"].iter().all(|text| said.contains(text)), "{said}");
    let (code, printed, said) = run_in(work.path(), &["datasets", "list"], &settings).await;
    assert!(code == 0 && printed.matches("untracked").count() == 2, "{printed}{said}");
    // A wrong file stays wrong, and nothing is added.
    let wrong = both.replace("filter = \"id > 0\"", "filter = \"nobody > 0\"");
    std::fs::write(work.path().join("datasets.toml"), &wrong).unwrap();
    ends(run_in(work.path(), &["datasets", "check"], &settings).await, 2, "nobody");
    std::fs::write(work.path().join("datasets.toml"), "[[dataset]]\nname = 7\n").unwrap();
    ends(run_in(work.path(), &["datasets", "add", "items"], &settings).await, 2, "line 2");
    assert_eq!(file(), "[[dataset]]\nname = 7\n");
    assert_eq!(std::fs::read_dir(work.path()).unwrap().count(), 1, "nothing is left beside it");
    assert_eq!(everything_of(&database).await, before);

    // A path that isn't a file of its own is not replaced.
    let at = |name: &str| work.path().join(name);
    std::os::unix::fs::symlink("nowhere", at("link.toml")).unwrap();
    std::fs::write(at("one.toml"), "").unwrap();
    std::fs::hard_link(at("one.toml"), at("two.toml")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(at("pipe.toml")).status().unwrap().success());
    for (name, code_of, why) in
        [("link.toml", 2, "No such file"), ("one.toml", 1, "another name"), ("pipe.toml", 1, "is no file")]
    {
        let settings = [("DATABASE_URL", url.as_str()), ("DATASETS", name)];
        assert_eq!(
            ends(run_in(work.path(), &["datasets", "add", "items"], &settings).await, code_of, why).0,
            "",
            "{name}"
        );
    }
    assert!(!at("nowhere").exists() && std::fs::read(at("two.toml")).unwrap().is_empty());

    // A role without rights is told the first step.
    let role = database.role().await;
    database.run(&format!("grant select on items to {role}")).await;
    let url = database.url_as(&role, "pass");
    ends(
        run_in(work.path(), &["datasets", "add", "items"], &[("DATABASE_URL", &url)]).await,
        1,
        "`cdc-export migrate`",
    );
}

#[tokio::test]
async fn looking_at_an_incomplete_schema_makes_nothing_either() {
    let database = Database::new_with("delete from cdc_export.migrations where version = 2").await;
    let before = everything_of(&database).await;
    let (code, _, said) = Start::on(&database).arguments(&["status"]).output().await;
    assert!(code == 1 && said.contains("some of the service's tables are missing"), "{said}");
    assert!(said.contains("`cdc-export migrate`"), "{said}");
    assert_eq!(everything_of(&database).await, before);
}

#[tokio::test]
async fn users_is_made_only_where_the_catalog_names_it() {
    let catalog = Catalog::of(ORDERS);
    for arguments in [&["migrate"][..], &["track", "orders"], &["keys", "create", "--name", "k"]] {
        let database = Database::empty_with("create table orders (id int primary key, note text)").await;
        ends(catalog.command(&database, arguments).await, 0, "");
        assert!(database.one::<bool>("select to_regclass('users') is null").await, "{arguments:?}");
        catalog.start(&database).service().await.stop().await;
        assert!(database.one::<bool>("select to_regclass('users') is null").await, "{arguments:?}");
        assert_eq!(Start::on(&database).arguments(&["status"]).output().await.0, 0);
    }
    let database = Database::empty().await;
    ends(Start::on(&database).arguments(&["migrate"]).output().await, 0, "");
    assert!(database.one::<bool>("select to_regclass('users') is not null").await);
}
