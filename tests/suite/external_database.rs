//! A database that an operator brings: with migrations of its own, a role with few rights, another encoding.

use cdc_export::postgres;
use serde_json::{Value, json};

use crate::catalog::Catalog;
use crate::harness::{Database, Start, silent};
use crate::restores::cluster::Cluster;

/// A role of a test, without any right but to connect.
struct Role {
    name: String,
    url: String,
}

impl Role {
    async fn new(database: &Database) -> Role {
        let name = database.role().await;
        // Before Postgres 15 everybody may create in public.
        database.run("revoke all on schema public from public").await;
        Role { url: database.url_as(&name, "pass"), name }
    }

    fn start(&self) -> Start {
        Start::plain().with("DATABASE_URL", &self.url)
    }

    /// A start that is refused: its one line.
    async fn refused(&self) -> String {
        let (code, errors) = self.start().until_it_ends().await;
        let line = errors.strip_suffix('\n').unwrap();
        assert!(code == 1 && line.starts_with("cdc-export: ") && !line.contains('\n'), "{code} {errors}");
        line.to_owned()
    }
}

/// Returns the command that a line says to run.
fn remedy(line: &str) -> &str {
    line.rsplit_once(" run ").unwrap_or_else(|| panic!("nothing to run: {line}")).1
}

#[tokio::test]
async fn a_start_that_can_never_have_its_connections_is_refused() {
    let database = Database::new().await;
    let role = Role::new(&database).await;
    let name = database.options.get_database().unwrap();
    let grants = format!(
        "grant all on schema public, cdc_export to {role};
         grant all on all tables in schema public, cdc_export to {role};
         alter role {role} connection limit 20",
        role = role.name
    );
    database.run(&grants).await;
    let line = role.refused().await;
    assert!(line.contains("up to 24 connections") && line.contains("20 at most") && line.contains("WORKERS"), "{line}");
    // Enough for what is asked: 4 x 1 + 1 + 1 for the exports, 11 + 3 for the API.
    let service = role.start().with("WORKERS", 1).with("READERS", 1).with("API_CONNECTIONS", 11).service().await;
    service.stop().await;
    let statements = format!("alter role {} connection limit -1; alter database {name} connection limit 21", role.name);
    database.run(&statements).await;
    let line = role.refused().await;
    assert!(line.contains("21 at most"), "{line}");
}

#[tokio::test]
async fn migrations_of_somebody_are_not_taken_for_ours() {
    let database = Database::empty().await;
    // His first migration failed, and none has a checksum of ours.
    let schema = "
        create table _sqlx_migrations (version bigint primary key, description text not null,
          installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null,
          execution_time bigint not null);
        insert into _sqlx_migrations values (1, 'his', now(), false, '\\x00', 1), (7, 'his', now(), true, '\\x07', 1)";
    database.run(schema).await;
    let look = "select jsonb_agg(to_jsonb(m) || jsonb_build_object('at', m.ctid, 'by', m.xmin) order by version)::text
                from _sqlx_migrations m";
    let before: String = database.one(look).await;
    for run in ["first", "again"] {
        let service = Start::on(&database).with("SEED_ROWS", 100).service().await;
        assert_eq!(service.export("full", run).await.1.rows.len(), 98);
    }
    assert_eq!(database.one::<String>(look).await, before);
}

#[tokio::test]
async fn what_a_role_may_not_create_is_named_with_the_grants_for_it() {
    let database = Database::empty().await;
    let role = Role::new(&database).await;
    let (name, db) = (&role.name, database.one::<String>("select current_database()::text").await);
    let both = format!("GRANT CREATE ON DATABASE {db} TO {name}; GRANT CREATE, USAGE ON SCHEMA public TO {name}");
    let line = role.refused().await;
    assert!(line.contains(&format!("the database role `{name}` may not create")), "{line}");
    assert_eq!(remedy(&line), both);
    assert!(line.contains(": run `cdc-export migrate` as the database's owner, `postgres`, or run "), "{line}");

    // With half of the grants, the start asks for the other half, and leaves nothing half made.
    let (first, second) = both.split_once("; ").unwrap();
    database.run(first).await;
    assert_eq!(remedy(&role.refused().await), second);
    database.run(&format!("grant usage on schema public to {name}")).await;
    assert_eq!(remedy(&role.refused().await), format!("GRANT CREATE ON SCHEMA public TO {name}"));
    assert!(!database.one::<bool>("select to_regnamespace('cdc_export') is not null").await);
    database.run(second).await;
    let service = role.start().with("SEED_ROWS", 100).service().await;
    assert_eq!(service.export("full", "a").await.1.rows.len(), 98);
    service.stop().await;

    // A schema that an administrator made for it.
    let statements = format!("drop owned by {name} cascade; create schema cdc_export; grant {name} to current_user");
    database.run(&statements).await;
    let (cdc_export, public) =
        ("GRANT CREATE, USAGE ON SCHEMA cdc_export TO", "GRANT CREATE, USAGE ON SCHEMA public TO");
    let line = role.refused().await;
    assert_eq!(remedy(&line), format!("{cdc_export} {name}; {public} {name}"));
    database.run(remedy(&line)).await;
    role.start().service().await.stop().await;
}

#[tokio::test]
async fn a_role_that_may_create_nothing_exports_from_what_another_has_made() {
    let database = Database::with_users(19).await;
    let role = Role::new(&database).await;
    let line = role.refused().await;
    assert!(line.contains("may not use") && !line.contains("CREATE"), "{line}");
    // The keys are looked for first, and can't be read either.
    let (code, errors) = role.start().with("AUTH", "keys").until_it_ends().await;
    assert_eq!((code, errors.trim_end()), (1, &*line));
    database.run(remedy(&line)).await;
    assert!(!database.one::<bool>(&format!("select has_schema_privilege('{}', 'public', 'create')", role.name)).await);

    let service = role.start().with("SEED_ROWS", 10).service().await;
    assert_eq!(service.export("full", "a").await.1.rows.len(), 18);
    database.run("delete from users where id = 3; update users set name = 'x' where id = 4").await;
    let (_, delta) = service.export("delta", "a").await;
    assert_eq!(delta.ids(), [3, 4]);
    assert_eq!(service.export("incremental", "b").await.1.rows.len(), 17);
    assert_eq!(service.call("DELETE", "/users/5", &[]).await.status(), 200);
    assert_eq!(service.call("DELETE", "/exports/watermark", &[("X-Consumer-ID", "b")]).await.status(), 204);
    assert_eq!(service.call("GET", "/consumers", &[]).await.status(), 200);
    assert_eq!(service.call("GET", "/health/ready", &[]).await.status(), 200);
    let log = service.log();
    assert!(!log.contains("\"WARN\"") && !log.contains("\"ERROR\""), "{log}");
    service.stop().await;

    // The tables' owner finishes an interrupted migration.
    database.run("create table saved as select * from cdc_export.migrations where version = 2; delete from cdc_export.migrations where version = 2").await;
    let line = role.refused().await;
    assert!(line.ends_with("may not migrate the service's tables: run `cdc-export migrate` as `postgres`"), "{line}");
    database.run("insert into cdc_export.migrations select * from saved; drop table saved").await;
    role.start().service().await.stop().await;

    database.run(&format!("revoke usage on schema public from {}", role.name)).await;
    let line = role.refused().await;
    assert!(line.contains("`public.exports` can't be found"), "{line}");
}

#[tokio::test]
async fn the_owner_of_a_table_is_told_what_track_needs() {
    let database = Database::new().await;
    let (owner, reader) = (Role::new(&database).await, Role::new(&database).await);
    let statements = format!(
        "create schema sales authorization {0}; create table sales.orders (id int primary key);
         alter table sales.orders owner to {0}; grant usage on schema sales, cdc_export, public to {1};
         grant all on all tables in schema cdc_export, public to {1}",
        owner.name, reader.name
    );
    database.run(&statements).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"orders\"\ntable = \"sales.orders\"\n");
    let runs = async |role: &Role, arguments: &[&str]| {
        let (code, _, said) =
            catalog.start(&database).with("DATABASE_URL", &role.url).arguments(arguments).output().await;
        (code, said.trim_end().to_owned())
    };
    let (code, line) = runs(&owner, &["track", "orders"]).await;
    let tables = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA cdc_export TO";
    let grants = format!(
        "GRANT USAGE, CREATE ON SCHEMA cdc_export TO {0}; {tables} {0}; GRANT USAGE ON SCHEMA public TO {0}",
        owner.name
    );
    assert_eq!((code, remedy(&line)), (1, grants.as_str()), "{line}");
    database.run(&format!("{grants}; revoke create on schema cdc_export from {}", owner.name)).await;
    let (code, line) = runs(&owner, &["track", "orders"]).await;
    assert_eq!(code, 1, "{line}");
    assert_eq!(remedy(&line), format!("GRANT CREATE ON SCHEMA cdc_export TO {}", owner.name).as_str(), "{line}");
    database.run(remedy(&line)).await;
    for arguments in [["track", "orders"], ["untrack", "orders"]] {
        let (code, line) = runs(&reader, &arguments).await;
        let told = format!("may not change the triggers of `sales.orders`: run this as its owner, `{}`", owner.name);
        assert!(code == 1 && line.ends_with(&told) && line.contains(&format!("`{}`", reader.name)), "{line}");
        assert_eq!(runs(&owner, &arguments).await, (0, String::new()));
        if arguments[0] == "track" {
            // The triggers work for who writes.
            database.run("insert into sales.orders values (1)").await;
            assert_eq!(database.one::<i64>("select count(*) from cdc_export.change_log where key = '1'").await, 1);
        }
    }
}

#[tokio::test]
async fn the_grants_are_for_the_schema_that_has_the_tables() {
    let database = Database::empty().await;
    let db: String = database.one("select current_database()::text").await;
    database.run(&format!("create schema app; alter database {db} set search_path = app, public")).await;
    Start::on(&database).with("SEED_ROWS", 100).service().await.stop().await;
    let role = Role::new(&database).await;
    let line = role.refused().await;
    assert!(line.contains("app.users, app.watermarks"), "{line}");
    database.run(remedy(&line)).await;
    assert_eq!(role.start().service().await.export("full", "a").await.1.rows.len(), 98);
}

#[tokio::test]
async fn a_transaction_timeout_of_the_server_ends_no_export() {
    let database = Database::new().await;
    let name: String = database.one("select current_database()::text").await;
    // Postgres has it since 17.
    if !database.one::<bool>("select exists (select from pg_settings where name = 'transaction_timeout')").await {
        return;
    }
    database.run(&format!("alter database {name} set transaction_timeout = '1s'")).await;
    let failpoints = "sink.write=sleep:1200,worker.staged=sleep:1200";
    let service = Start::on(&database).with("FAILPOINTS", failpoints).service().await;
    let (job, _) = service.export("full", "a").await;
    assert!(job["attempt"] == 1 && job["durationSeconds"].as_f64() > Some(2.0), "{job}");
}

#[tokio::test]
async fn a_database_that_reads_texts_otherwise_and_checks_functions_strictly_is_migrated() {
    let database = Database::empty().await;
    let name: String = database.one("select current_database()::text").await;
    let statements = format!(
        "alter database {name} set standard_conforming_strings = off; alter database {name} set plpgsql.extra_errors = 'all'"
    );
    database.run(&statements).await;
    silent(Start::on(&database).arguments(&["migrate"]).output().await);
    let service = Start::on(&database).service().await;
    service.export("full", "a").await;
    database.run("set standard_conforming_strings = on; delete from users").await;
    service.export("delta", "a").await;
}

#[tokio::test]
async fn what_a_client_was_told_of_survives_a_crash_of_postgres() {
    // Whatever is not written to disk by the commit itself stays in memory for half a minute.
    let mut cluster = Cluster::with(&["wal_writer_delay = '10s'"]).await;
    cluster.database().run("alter database cdc_export set synchronous_commit = off").await;
    let database = cluster.database();
    let mut service = Start::on(&database).with("FAILPOINTS", "worker.opened=hold").service().await;
    let id = service.submit("full", "a").await;
    let pid = database.one::<String>("select pg_read_file('postmaster.pid')").await;
    let pid = nix::unistd::Pid::from_raw(pid.lines().next().unwrap().parse().unwrap());
    // Ends at once, as in a crash.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGQUIT).unwrap();
    service.signal(nix::sys::signal::Signal::SIGKILL);
    service.dies().await;
    cluster.stop().await;
    cluster.start().await;
    let jobs: Vec<String> = cluster.database().all("select job::text from exports").await;
    assert_eq!(jobs, [id]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_commit_waits_for_the_disk_and_for_what_the_operator_asks_beyond() {
    let database = Database::empty().await;
    let name = database.options.get_database().unwrap().to_owned();
    for (set, is) in [
        ("off", "on"),
        ("local", "local"),
        ("remote_write", "remote_write"),
        ("on", "on"),
        ("remote_apply", "remote_apply"),
    ] {
        database.run(&format!("alter database {name} set synchronous_commit = {set}")).await;
        let pool = postgres::Database::from(database.options.clone()).pool();
        let shown: String = sqlx::query_scalar("show synchronous_commit").fetch_one(&pool).await.unwrap();
        assert_eq!(shown, is);
    }
}

#[tokio::test]
async fn writers_of_other_databases_are_not_in_the_way() {
    let (database, other) = (Database::new().await, Database::new().await);
    let writing = other.open("select pg_current_xact_id()::text").await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    assert_eq!((&job["openTransactions"], &job["oldestTransactionSeconds"]), (&json!(0), &Value::Null));
    writing.rollback().await.unwrap();
}

#[tokio::test]
async fn texts_of_an_unknown_encoding_are_exported_if_they_are_utf_8() {
    let database = Database::encoded("SQL_ASCII").await;
    let service = Start::on(&database).service().await;
    let changes = "
        insert into users (id, name, email, created_at, updated_at) values
        (1, 'Zoë 日本', 'zoe@example.org', '2026-01-01', '2026-01-01'), (2, 'b', 'b@example.org', '2026-01-01', '2026-01-01')";
    database.run(changes).await;
    let (job, file) = service.export("full", "a").await;
    assert_eq!(file.sorted("name"), ["Zoë 日本", "b"]);

    database.run("update users set name = E'Ren\\xe9' where id = 2").await;
    for export_type in ["full", "incremental", "delta"] {
        let job = service.ended(&service.submit(export_type, "a").await).await;
        assert_eq!((&job["status"], &job["error"]["code"]), (&json!("failed"), &json!("invalid_text")), "{job}");
        assert!(job["error"]["detail"].as_str().unwrap().contains("`name`"), "{job}");
        assert!(!job.to_string().contains("Ren"), "no row's value: {job}");
    }
    assert_eq!(service.watermark("a").await.as_deref(), job["watermarkTo"].as_str(), "nothing has moved");
    assert_eq!(service.files().len(), 1);

    database.run("update users set name = 'René' where id = 2").await;
    let (_, delta) = service.export("delta", "a").await;
    assert_eq!(delta.sorted("name"), ["René"]);
}

#[tokio::test]
async fn texts_of_another_encoding_arrive_as_utf_8() {
    let database = Database::encoded("LATIN1").await;
    let service = Start::on(&database).service().await;
    let changes = "
        insert into users (id, name, email, created_at, updated_at) values
        (1, 'Zoë', 'zoé@example.org', '2026-01-01', '2026-01-01'), (2, 'b', 'b@example.org', '2026-01-01', '2026-01-01')";
    database.run(changes).await;
    let (_, file) = service.export("full", "a").await;
    assert_eq!((file.sorted("name")[0], file.sorted("email")[1]), ("Zoë", "zoé@example.org"));
    let bytes: i32 = database.one("select octet_length(name) from users where id = 1").await;
    assert_eq!(bytes, 3, "one byte a letter there");

    database.run("update users set name = 'Søren' where id = 2").await;
    let (_, delta) = service.export("delta", "a").await;
    assert_eq!(delta.sorted("name"), ["Søren"]);
}

/// Uses the system's user, like psql, with the password in that user's own file.
#[tokio::test]
async fn a_url_without_a_user_means_the_user_of_the_system() {
    let database = Database::new().await;
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let name = database.options.get_database().unwrap();
    // A role is of the cluster, and other tests may have made it.
    let statements = format!(
        "do $$ begin create role \"{user}\"; exception when duplicate_object then null; end $$;
         alter role \"{user}\" login superuser password 'secret-of-the-file'"
    );
    database.run(&statements).await;
    let url = database.url_as("somebody", "pass").replace("somebody:pass@", "");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pgpass");
    std::fs::write(&file, format!("*:*:*:anonymous:wrong\n*:*:{name}:{user}:secret-of-the-file\n")).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let service = Start::plain().with("DATABASE_URL", url).with("PGPASSFILE", file.display()).service().await;
    service.export("full", "a").await;
}
