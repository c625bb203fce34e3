//! The start of a service: the databases that it refuses, and the objects that it leaves alone.

use std::path::Path;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use sqlx::ConnectOptions;

use crate::harness::{
    Csv, Database, HANG_TIMEOUT, Start, answering, connect_options, embedded_settings, embedded_settings_with_cluster,
    free_port, reachable_folder,
};

/// A start that is refused says so in one line, nothing else.
async fn refused(start: Start) -> (i32, String) {
    let (code, errors) = start.until_it_ends().await;
    let line = errors.strip_suffix('\n').unwrap();
    assert!(line.starts_with("cdc-export: ") && !line.contains('\n'), "not one line: {errors}");
    (code, line.to_owned())
}

/// Returns all relations of a database, ours or not, except Postgres's own.
async fn relations(database: &Database) -> Vec<String> {
    let relations = "
        select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast') and c.relkind in ('r', 'v')
         union all select nspname || '.*' from pg_namespace where nspname = 'cdc_export'
         order by 1";
    database.all(relations).await
}

#[tokio::test]
async fn a_foreign_exports_or_watermarks_stops_the_start() {
    for table in ["exports", "watermarks"] {
        let database = Database::empty().await;
        database.run(&format!("create table {table} (id int); insert into {table} values (1)")).await;
        let (code, line) = refused(Start::on(&database)).await;
        assert_eq!(code, 1);
        assert!(line.contains(&format!("`public.{table}`")), "{line}");
        assert_eq!(relations(&database).await, [format!("public.{table}")], "nothing is made");
    }
    // Also one that comes first only since somebody changed the search_path.
    let database = Database::new_with("create schema theirs; create table theirs.exports (id int)").await;
    let name: String = database.one("select current_database()::text").await;
    database.run(&format!("alter database {name} set search_path = theirs, public")).await;
    let (code, line) = refused(Start::on(&database)).await;
    assert!(code == 1 && line.contains("`theirs.exports`"), "{line}");
}

/// The traces of another build's migrations: their record, and a view and a table outside of `cdc_export`.
const OF_ANOTHER_BUILD: &str = "
  create schema cdc_export;
  create table cdc_export.migrations (version bigint primary key, description text not null, installed_on timestamptz not null default now(),
    success boolean not null, checksum bytea not null, execution_time bigint not null);
  insert into cdc_export.migrations values (1, 'tables', now(), true, '\\x00', 1), (33, 'deliveries asked for', now(), true, '\\x00', 1);
  create table cdc_export.owned (schema_name text not null, table_name text not null, primary key (schema_name, table_name));
  create schema \"Old\";
  create view \"Old\".exports as select version from cdc_export.migrations;
  create table \"Old\".watermarks (id bigint primary key);
  insert into cdc_export.owned values ('Old', 'exports'), ('Old', 'watermarks')";

#[tokio::test]
async fn a_database_of_another_build_is_told_what_to_drop() {
    let database = Database::empty_with(OF_ANOTHER_BUILD).await;
    for arguments in [&["serve"][..], &["migrate"], &["status"], &["track", "users"]] {
        let (code, line) = refused(Start::on(&database).arguments(arguments)).await;
        assert!(code == 1 && line.contains("another build of cdc-export made"), "{arguments:?}: {line}");
        let drops = line.split('`').nth(1).unwrap();
        assert_eq!(
            drops,
            r#"DROP SCHEMA cdc_export CASCADE; DROP TABLE IF EXISTS "Old".exports, "Old".watermarks CASCADE"#
        );
    }
    let (_, line) = refused(Start::on(&database)).await;
    database.run(line.split('`').nth(1).unwrap()).await;
    let service = Start::on(&database).service().await;
    service.export("full", "a").await;
}

#[tokio::test]
async fn a_users_table_that_somebody_brought_is_left_alone() {
    let schema = "
        create table users (id bigserial primary key, name varchar(255) not null, email varchar(255) not null unique,
          created_at timestamptz not null, updated_at timestamptz not null, is_deleted boolean not null default false);
        insert into users (name, email, created_at, updated_at) values ('Ada', 'ada@example.org', now(), now())";
    let database = Database::empty_with(schema).await;
    // Every row of the catalog about it, and its own rows with where and by whom they were written.
    let state = "select jsonb_build_array(
           (select jsonb_agg(to_jsonb(u) || jsonb_build_object('at', u.ctid, 'by', u.xmin)) from users u),
           (select to_jsonb(c) - '{relpages,reltuples,relallvisible,relfrozenxid,relminmxid}'::text[]
            from pg_class c where oid = 'users'::regclass),
           (select jsonb_agg(to_jsonb(a) order by attnum) from pg_attribute a where attrelid = 'users'::regclass),
           (select jsonb_agg(to_jsonb(i) order by indexrelid) from pg_index i where indrelid = 'users'::regclass),
           (select jsonb_agg(to_jsonb(t) order by oid) from pg_trigger t where tgrelid = 'users'::regclass),
           (select jsonb_agg(to_jsonb(k) order by oid) from pg_constraint k where conrelid = 'users'::regclass)
         )::text";
    let look = || database.one::<String>(state);
    let before = look().await;
    let service = Start::on(&database).with("SEED_ROWS", 1000).service().await;
    for export_type in ["full", "incremental", "delta"] {
        service
            .refuses("POST", &format!("/exports/{export_type}"), &[("X-Consumer-ID", "a")], 409, "not_tracked")
            .await;
    }
    assert_eq!(service.call("DELETE", "/users/1", &[]).await.status(), 404);
    assert_eq!(look().await, before);
    assert_eq!(service.files(), Vec::<String>::new());
}

#[tokio::test]
async fn of_services_that_start_at_once_one_migrates_and_one_seeds() {
    let database = Database::empty().await;
    let start = || Start::on(&database).with("SEED_ROWS", 1000).service();
    let (one, two, three) = tokio::join!(start(), start(), start());
    assert_eq!(database.one::<i64>("select count(*) from users").await, 1000);
    let migrations = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap().count();
    // The first one is that of change capture.
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.migrations").await, 1 + migrations as i64);
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.owned").await, 3);
    let seeded = [&one, &two, &three].map(|service| service.events("demo_seeded").len());
    assert_eq!(seeded.iter().sum::<usize>(), 1, "{seeded:?}");
    for service in [&one, &two, &three] {
        // Each has a folder of its own, and does the jobs that were submitted to it.
        let (job, _) = service.export("full", "a").await;
        assert!(job["rowsExported"].as_u64() > Some(900), "{job}");
    }

    let tables = relations(&database).await;
    database.run("delete from users where id > 10").await;
    let again = Start::on(&database).with("SEED_ROWS", 1000).service().await;
    assert_eq!(relations(&database).await, tables);
    assert_eq!(database.one::<i64>("select count(*) from users").await, 10, "it isn't empty, so it isn't filled");
    assert!(again.watermark("a").await.is_some());
}

#[tokio::test]
async fn the_tables_are_where_the_search_path_puts_them() {
    let database = Database::empty().await;
    let name: String = database.one("select current_database()::text").await;
    database.run(&format!("create schema app; alter database {name} set search_path = app, public")).await;
    let service = Start::on(&database).with("SEED_ROWS", 100).service().await;
    let (job, _) = service.export("full", "a").await;
    assert_eq!(job["rowsExported"], 98);
    service.stop().await;
    let ours = relations(&database).await;
    for table in ["app.exports", "app.users", "app.watermarks", "cdc_export.exports", "cdc_export.jobs"] {
        assert!(ours.iter().any(|relation| relation == table), "{ours:?}");
    }
    let views =
        "select array_agg(relname::text) from pg_class where relkind = 'v' and relnamespace = 'app'::regnamespace";
    assert_eq!(database.one::<Vec<String>>(views).await, ["exports"]);
    assert!(!ours.iter().any(|relation| relation.starts_with("public.")), "{ours:?}");

    // A table that hides ours from now on is somebody's.
    database.run("create schema theirs; create table theirs.users (like app.users including all)").await;
    database.run(&format!("alter database {name} set search_path = theirs, app, public")).await;
    let service = Start::on(&database).with("SEED_ROWS", 100).service().await;
    service.refuses("POST", "/exports/full", &[("X-Consumer-ID", "a")], 409, "not_tracked").await;
    assert_eq!(database.one::<i64>("select count(*) from theirs.users").await, 0);
}

#[tokio::test]
async fn a_search_path_without_a_schema_stops_the_first_start_before_it_makes_anything() {
    let database = Database::empty().await;
    let name: String = database.one("select current_database()::text").await;
    database.run(&format!("alter database {name} set search_path = ''")).await;
    let (code, line) = refused(Start::on(&database)).await;
    assert!(code == 1 && line.contains("the search_path of the role leads to no schema"), "{line}");
    assert_eq!(relations(&database).await, Vec::<String>::new());
}

#[tokio::test]
async fn a_role_with_the_name_of_our_schema_gets_its_tables_in_public() {
    let database = Database::empty().await;
    // A run beside this one may have made it.
    let changes = "do $$ begin create role cdc_export login; exception when duplicate_object then end $$;
                   alter role cdc_export password 'pass'; grant create on schema public to cdc_export";
    database.run(changes).await;
    let name: String = database.one("select current_database()::text").await;
    database.run(&format!("grant create on database {name} to cdc_export")).await;
    for run in ["first", "again"] {
        let service = Start::plain()
            .with("DATABASE_URL", database.url_as("cdc_export", "pass"))
            .with("SEED_ROWS", 100)
            .service()
            .await;
        let (job, _) = service.export("full", run).await;
        assert_eq!(job["rowsExported"], 98);
    }
    let ours = relations(&database).await;
    for table in ["public.exports", "public.users", "public.watermarks", "cdc_export.exports", "cdc_export.owned"] {
        assert!(ours.iter().any(|relation| relation == table), "{ours:?}");
    }
    database.run("drop owned by cdc_export cascade").await;
    // Unless that run still uses it.
    let _ = sqlx::query("drop role cdc_export").execute(&database.pool).await;
}

#[tokio::test]
async fn a_bad_setting_is_named_before_anything_is_touched() {
    let database = Database::empty().await;
    let work = reachable_folder();
    let (data, output) = (work.path().join("data"), work.path().join("output"));
    for (name, value) in [
        ("PORT", "80a"),
        ("LEASE_SECONDS", "0"),
        ("WORKERS", "1000"),
        ("SEED_ROWS", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("AUTH", "maybe"),
        ("HOST", "here"),
        ("MASK_SECRET", "'a secret of the tests that stays'"),
        ("MASK_SECRET", "a secret of the tests\r"),
        ("DATABASE_URL", "\"postgres://root:secret@localhost/db\""),
        ("DATABASE_URL", "mysql://root:secret@localhost/db"),
    ] {
        let start = Start::on(&database).with("DATA_DIR", data.display()).with("OUTPUT_DIR", output.display());
        let (code, line) = refused(start.with(name, value)).await;
        assert!(code == 2 && line.starts_with(&format!("cdc-export: {name}: ")), "{code} {line}");
        assert!(!line.contains("secret"), "{line}");
    }
    let folders = [format!("\"{}\"", output.display()), format!("{}\r", output.display())];
    for name in ["OUTPUT_DIR", "DATA_DIR"] {
        for folder in &folders {
            let (code, line) = refused(Start::on(&database).with(name, folder)).await;
            assert!(code == 2 && line.starts_with(&format!("cdc-export: {name}: ")), "{code} {line}");
        }
    }
    let (code, line) = refused(Start::on(&database).with("HOST", "0.0.0.0")).await;
    assert!(code == 2 && line.starts_with("cdc-export: AUTH: ") && line.contains("0.0.0.0"), "{code} {line}");
    assert!(!data.exists() && !output.exists());
    assert_eq!(relations(&database).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_is_missing_is_said_in_one_line() {
    let database = Database::empty().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = nobody.local_addr().unwrap().port();
    let (code, line) = refused(Start::on(&database).with("PORT", port)).await;
    let told = format!("PORT: another process listens on 127.0.0.1:{port}: stop it, or set PORT to a free port");
    assert_eq!((code, line), (1, format!("cdc-export: {told}")));
    let start = Start::on(&database).arguments(&["worker"]).with("METRICS_PORT", port);
    let (code, line) = refused(start).await;
    assert!(code == 1 && line.starts_with("cdc-export: METRICS_PORT: ") && line.contains("set METRICS_PORT"), "{line}");
    let (code, line) = refused(Start::on(&database).with("HOST", "192.0.2.1").with("AUTH", "none")).await;
    assert!(code == 2 && line.starts_with("cdc-export: HOST: 192.0.2.1 is no address of this machine"), "{line}");
    assert_eq!(relations(&database).await, Vec::<String>::new(), "the port comes first");
    drop(nobody);

    let work = reachable_folder();
    let data = work.path().join("data");
    let start = Start::plain().with("DATA_DIR", data.display()).with("PG_BIN_DIR", work.path().display());
    let (code, line) = refused(start).await;
    assert!(code == 1 && line.contains("PG_BIN_DIR") && line.contains("initdb"), "{line}");
    assert!(!data.exists());
}

#[tokio::test]
async fn a_database_that_cant_be_used_is_named_with_its_address_and_what_to_do() {
    let database = Database::empty().await;
    let role = database.role().await;
    database.run(&format!("alter role {role} password 'secret'; revoke all on schema public from public")).await;
    let name: String = database.one("select current_database()::text").await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap().port();
    let closed = free_port();
    let socket = database.options.get_socket().unwrap().display().to_string();
    let port = database.options.get_port();
    let refusing = |password: &str, name: &str| {
        database.options.clone().username(&role).password(password).database(name).to_url_lossy().to_string()
    };
    // Servers that say this to whoever connects, for TLS and for passwords.
    let says = async |answer: &'static [u8]| answering(answer).await.rsplit_once(':').unwrap().1.to_owned();
    let plain = says(b"N").await;
    let wrong = says(b"E\0\0\0\x35SFATAL\0C28P01\0Mpassword authentication failed\0L334\0\0").await;
    let may_not = format!(
        "DATABASE_URL: {role}@{socket}:{port}/{name}: the database role `{role}` may not create the service's tables: run \
         `cdc-export migrate` as the database's owner, `postgres`, or run GRANT CREATE ON DATABASE {name} TO {role}; GRANT CREATE, USAGE ON SCHEMA public TO {role}"
    );
    let cases = [
        (
            format!("postgres://shop:secret@localhost:{closed}/shop"),
            format!("DATABASE_URL: shop@localhost:{closed}/shop: connection refused; is Postgres running there?"),
        ),
        (
            format!("postgres://shop:secret@127.0.0.1:{silent}/shop?sslmode=disable"),
            format!(
                "DATABASE_URL: shop@127.0.0.1:{silent}/shop: no answer within 15 seconds; is the address right, and does no firewall lie \
                 between?"
            ),
        ),
        (
            "postgres://shop:secret@no-such-host.invalid/shop".to_owned(),
            "DATABASE_URL: shop@no-such-host.invalid:5432/shop: the host is not known (".to_owned(),
        ),
        (
            "postgres://shop:secret@%2Fno%2Fsuch%2Ffolder/shop".to_owned(),
            "DATABASE_URL: shop@/no/such/folder:5432/shop: there is no such socket; is Postgres running there?"
                .to_owned(),
        ),
        (
            format!("postgres://shop:secret@127.0.0.1:{wrong}/shop?sslmode=disable"),
            format!(
                "DATABASE_URL: shop@127.0.0.1:{wrong}/shop: password authentication failed; are user and password right?"
            ),
        ),
        (
            format!("postgres://shop:secret@127.0.0.1:{plain}/shop?sslmode=require"),
            format!(
                "DATABASE_URL: shop@127.0.0.1:{plain}/shop: no connection with TLS: server does not support TLS; see sslmode"
            ),
        ),
        (
            refusing("secret", "there_is_no_such_database"),
            format!(
                "DATABASE_URL: {role}@{socket}:{port}/there_is_no_such_database: database \"there_is_no_such_database\" does not exist; \
                 `createdb` makes it, or name another one"
            ),
        ),
        (refusing("secret", &name), may_not),
    ];
    for (url, told) in cases {
        for arguments in [&["serve"][..], &["migrate"]] {
            let (code, line) = refused(Start::plain().with("DATABASE_URL", &url).arguments(arguments)).await;
            assert!(code == 1 && line.starts_with(&format!("cdc-export: {told}")), "{url}: {line}\nnot {told}");
            assert!(!line.contains("secret") && !line.contains("at line"), "{line}");
        }
    }
}

/// Nothing answers at these addresses, so the refusal shows how each was read.
#[tokio::test]
async fn an_address_is_read_as_by_libpq_or_its_mistake_is_named() {
    for (url, words) in [
        ("postgres://shop:a%20b@/db?host=/no/such/folder", "shop@/no/such/folder:5432/db: there is no such socket"),
        ("postgres://shop@/db?host=/no/such/folder&client_encoding=utf8", "shop@/no/such/folder:5432/db: "),
        ("postgres://shop@[::1]:1/db", "shop@[::1]:1/db: "),
        ("postgres://shop@/db", "no host"),
        ("postgres://shop@a:5432,b:5432/shop", "several hosts"),
        ("postgres://shop@/shop?host=a,b", "several hosts"),
        (" postgres://shop@a/shop", "blank"),
        ("jdbc:postgresql://a/shop", "driver"),
        ("postgresql+psycopg2://shop@a/shop", "driver"),
        ("host=a dbname=shop", "key=value"),
        ("postgres://shop@::1/shop", "brackets"),
        ("postgres://shop@a:65536/shop", "port"),
        ("postgres://shop:pa/ss@localhost/shop", "%2F"),
        ("postgres://shop:12/ss@localhost/shop", "%2F"),
    ] {
        let (_, line) = refused(Start::plain().with("DATABASE_URL", url)).await;
        assert!(line.starts_with("cdc-export: DATABASE_URL: ") && line.contains(words), "{url}: {line}");
        assert!(!line.contains("ss@"), "{line}");
    }
}

#[tokio::test]
async fn a_user_or_database_that_is_assumed_is_shown() {
    let own = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).unwrap().unwrap().name;
    let both =
        format!("{own}@localhost:1/{own} (it names no user and no database, so the system's user is taken for both)");
    let system = "(it names no user, so the system's is taken)";
    for (url, pguser, shown) in [
        ("postgres://localhost:1", None, both),
        ("postgres://localhost:1/shop", None, format!("{own}@localhost:1/shop {system}")),
        ("postgres://:secret@localhost:1/shop", None, format!("{own}@localhost:1/shop {system}")),
        ("postgres:///shop?host=/run/a@b", None, format!("{own}@/run/a@b:5432/shop {system}")),
        (
            "postgres://shop@localhost:1",
            None,
            "shop@localhost:1/shop (it names no database, so the user's name is taken for it)".to_owned(),
        ),
        ("postgres://shop:a@b@localhost:1/x", Some("other"), "shop@localhost:1/x: ".to_owned()),
        ("postgres://localhost:1/x?user=shop", Some("other"), "shop@localhost:1/x: ".to_owned()),
        ("postgres://localhost:1/shop", Some("shop"), "shop@localhost:1/shop: ".to_owned()),
    ] {
        let start = Start::plain().with("DATABASE_URL", url);
        let (_, line) = refused(pguser.into_iter().fold(start, |start, user| start.with("PGUSER", user))).await;
        assert!(line.starts_with(&format!("cdc-export: DATABASE_URL: {shown}")), "{url}: {line}");
    }
}

#[tokio::test]
async fn a_password_that_the_driver_cant_send_is_not_quoted() {
    let database = Database::empty().await;
    let role = database.role().await;
    let password = "set local password_encryption = 'scram-sha-256'; alter role";
    database.run(&format!("begin; {password} {role} password 'p😀w'; commit")).await;
    let url = database.url_as(&role, "p😀w");
    for arguments in [&["serve"][..], &["status"]] {
        let (_, _, said) = Start::plain().with("DATABASE_URL", &url).arguments(arguments).output().await;
        assert!(!said.contains('😀') && !said.contains("1f600"), "{said}");
        // A server that trusts its sockets asks for no password.
        assert!(said.contains("SASLprep") || !said.contains("saslprep"), "{said}");
    }
}

#[tokio::test]
async fn a_folder_that_takes_no_files_stops_the_start() {
    let database = Database::new().await;
    let work = reachable_folder();
    let below = work.path().join("a file/output");
    std::fs::write(work.path().join("a file"), "theirs").unwrap();
    for (folder, told) in [
        ("/etc/passwd", "/etc/passwd: there is a file, and a folder is expected"),
        (below.to_str().unwrap(), "there is a file, and a folder is expected"),
        // Nobody makes a folder there, root neither.
        ("/proc/cdc-export", "/proc/cdc-export: "),
        // Nor a file here.
        ("/proc/self", "/proc/self: "),
    ] {
        for arguments in [&["serve"][..], &["worker"], &["export", "full", "--consumer", "a"]] {
            let start = Start::on(&database).with("OUTPUT_DIR", folder).arguments(arguments);
            let (code, line) = refused(start).await;
            assert!(code == 2 && line.starts_with("cdc-export: OUTPUT_DIR: "), "{folder}: {line}");
            assert!(line.contains(told), "{folder}: {line}");
        }
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
}

#[tokio::test]
async fn certificates_that_cant_be_read_are_named() {
    let database = Database::empty().await;
    let url = |query: &str| format!("postgres://shop@127.0.0.1:1/shop?{query}");
    for (query, parameter) in [
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert"),
        ("sslmode=require&sslcert=/nowhere/ca.pem&sslkey=/nowhere/ca.pem", "sslcert"),
    ] {
        let (code, line) = refused(Start::on(&database).with("DATABASE_URL", url(query))).await;
        let told = format!("cdc-export: DATABASE_URL: {parameter}: /nowhere/ca.pem: ");
        assert!(code == 2 && line.starts_with(&told), "{line}");
    }
    let empty = tempfile::NamedTempFile::new().unwrap();
    let query = format!("sslmode=verify-full&sslrootcert={}", empty.path().display());
    let (code, line) = refused(Start::on(&database).with("DATABASE_URL", url(&query))).await;
    assert!(code == 2 && line.ends_with(": there is no certificate in PEM form in it"), "{line}");
    let (code, line) = refused(Start::on(&database).with("DATASETS", "/nowhere/datasets.toml")).await;
    assert!(code == 2 && line.starts_with("cdc-export: DATASETS: /nowhere/datasets.toml: "), "{line}");
}

#[tokio::test]
async fn a_signal_ends_a_start_that_waits() {
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://somebody@127.0.0.1:{}/db", silent.local_addr().unwrap().port());
    let (mut child, _work) = Start::plain().with("DATABASE_URL", url).spawn();
    let _connection = silent.accept().await.unwrap();
    let pid = Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(tokio::time::timeout(HANG_TIMEOUT, child.wait()).await.expect("it ends").unwrap().code(), Some(0));
}

#[tokio::test]
async fn the_private_server_outlives_what_happens_to_services() {
    let work = reachable_folder();
    let data = work.path().join("data");
    embedded_settings_with_cluster(&data).await;
    let start = || Start::plain().with("DATA_DIR", data.display()).with("SEED_ROWS", 100);
    let mut first = start().service().await;
    let (job, file) = first.export("full", "a").await;
    assert_eq!(file.rows.len(), 98);
    first.signal(Signal::SIGKILL);
    first.dies().await;

    let mut second = start().sharing_output(&first).service().await;
    assert_eq!(second.watermark("a").await.as_deref(), job["watermarkTo"].as_str());
    assert_eq!(Csv::read(&second.path(&second.job(job["jobId"].as_str().unwrap()).await)), file);
    let (next, delta) = second.export("delta", "a").await;
    assert_eq!((&next["watermarkFrom"], delta.header[0].as_str()), (&job["watermarkTo"], "operation"));

    // A Postgres that is there and doesn't answer keeps nobody from ending.
    let url = connect_options(&private_postgres::join(&embedded_settings(&data)).unwrap().unwrap()).to_url_lossy();
    let mut third = Start::plain().with("DATABASE_URL", url).service().await;
    let postgres = processes_in(&data);
    assert!(!postgres.is_empty() || cfg!(not(target_os = "linux")));
    // One that has ended meanwhile needs no signal.
    let all = |signal| {
        for &pid in &postgres {
            let _ = nix::sys::signal::kill(pid, signal);
        }
    };
    all(Signal::SIGSTOP);
    third.signal(Signal::SIGTERM);
    assert_eq!(third.exit().await, Some(0));
    all(Signal::SIGCONT);

    second.signal(Signal::SIGTERM);
    assert_eq!(second.exit().await, Some(0));
    assert_eq!(processes_in(&data), [], "Postgres goes with the service");
}

/// The processes whose working folder is in this one.
fn processes_in(folder: &Path) -> Vec<Pid> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let here = |path: &Path| std::fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
    let paths = processes.flatten().map(|entry| entry.path()).filter(|path| here(path));
    paths.filter_map(|path| Some(Pid::from_raw(path.file_name()?.to_str()?.parse().ok()?))).collect()
}
