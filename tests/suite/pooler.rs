//! Postgres behind PgBouncer: with sessions everything works, without them the start is refused.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use sqlx::{ConnectOptions, Connection, PgConnection};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::harness::{Database, Start, ends, eventually, free_port, lacks, lent_user, option_env, reachable_folder};

/// A PgBouncer before the server of a database.
struct Pooler {
    url: String,
    _folder: TempDir,
    _process: Child,
}

impl Pooler {
    /// Starts a pooler with these settings beside those that it needs, one per line.
    async fn start(database: &Database, settings: &str) -> Pooler {
        let folder = reachable_folder();
        let direct = database.options.to_url_lossy();
        let options = &database.options;
        let host = match options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => options.get_host().to_owned(),
        };
        let port = free_port();
        let (user, password) = (options.get_username(), direct.password().unwrap_or("pass"));
        let at = |file: &str| folder.path().join(file).display().to_string();
        std::fs::write(at("users"), format!("\"{user}\" \"{password}\"\n")).unwrap();
        let text = format!(
            "[databases]\n* = host={host} port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\n{settings}\n",
            options.get_port(),
            at("users")
        );
        std::fs::write(at("pgbouncer.ini"), text).unwrap();

        // Debian has it where only root looks.
        let path =
            std::env::join_paths(std::env::split_paths(&option_env("PATH").unwrap()).chain(["/usr/sbin".into()]));
        let mut command = std::process::Command::new("pgbouncer");
        command.arg("-q").arg(at("pgbouncer.ini")).env_clear().env("PATH", path.unwrap());
        // The pooler doesn't run as root.
        if nix::unistd::geteuid().is_root() {
            let user = lent_user();
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        let log = std::fs::File::create(at("log")).unwrap();
        let (stdout, stderr) = (log.try_clone().unwrap(), log);
        let process =
            Command::from(command).stdin(Stdio::null()).stdout(stdout).stderr(stderr).kill_on_drop(true).spawn();
        let process = process.expect("the package `pgbouncer` is installed");

        let name = options.get_database().unwrap();
        let url = format!("postgres://{user}:{password}@127.0.0.1:{port}/{name}?sslmode=disable");
        let pooler = Pooler { url, _folder: folder, _process: process };
        let tcp = || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() };
        eventually("the pooler listens", tcp).await;
        pooler
    }
}

#[tokio::test]
async fn through_a_pool_of_sessions_everything_works() {
    if lacks("pgbouncer", "pgbouncer") {
        return;
    }
    let database = Database::empty().await;
    let name: String = database.one("select current_database()::text").await;
    // A pooler passes no options on, so what the service needs is not lost with them. Of the settings, that of the role
    // comes before that of the database.
    let user = database.options.get_username();
    let statements = format!(
        "alter role {user} in database {name} set default_transaction_read_only = off;
         alter database {name} set default_transaction_read_only = on;
         alter database {name} set default_transaction_isolation = 'serializable'"
    );
    database.run(&statements).await;
    let pooler = Pooler::start(&database, "pool_mode = session\ndefault_pool_size = 60").await;
    let start = Start::plain().with("DATABASE_URL", &pooler.url).with("SEED_ROWS", 30_000);
    let service = start.service().await;
    let (full, file) = service.export("full", "a").await;
    assert_eq!(full["rowsExported"].as_u64(), Some(file.rows.len() as u64));
    assert!(file.rows.len() > 29_000, "{full}");

    let mut direct = PgConnection::connect_with(&database.options).await.unwrap();
    let changes = "begin read write;
         update users set name = 'changed', updated_at = now(), is_deleted = false where id <= 10;
         delete from users where id = 11;
         commit";
    sqlx::raw_sql(changes).execute(&mut direct).await.unwrap();
    let (delta, file) = service.export("delta", "a").await;
    assert_eq!((delta["rowsExported"].as_u64(), file.rows.len()), (Some(11), 11), "{delta}");
    assert_eq!(delta["continuity"], serde_json::Value::Null);
}

#[tokio::test]
async fn a_pool_that_lends_sessions_is_refused_at_the_start() {
    if lacks("pgbouncer", "pgbouncer") {
        return;
    }
    let database = Database::empty().await;
    for settings in [
        "pool_mode = transaction",
        "pool_mode = transaction\ndefault_pool_size = 1",
        "pool_mode = transaction\nserver_round_robin = 1\nmin_pool_size = 5",
        "pool_mode = transaction\nserver_reset_query_always = 1",
        "pool_mode = statement",
    ] {
        let pooler = Pooler::start(&database, settings).await;
        let (code, errors) = Start::plain().with("DATABASE_URL", &pooler.url).until_it_ends().await;
        let line = errors.strip_suffix('\n').unwrap();
        assert!(code == 1 && !line.contains('\n'), "{settings}: {errors}");
        assert!(line.contains("a pooler in transaction mode") && line.contains("session mode"), "{settings}: {line}");
    }
    assert!(database.one::<bool>("select to_regnamespace('cdc_export') is null").await, "nothing was made");

    let pooler = Pooler::start(&database, "pool_mode = session\ndefault_pool_size = 1").await;
    ends(Start::plain().with("DATABASE_URL", &pooler.url).output().await, 1, "its pool is too small");
}
