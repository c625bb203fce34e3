//! A private Postgres that nobody else uses, so the nemesis may crash it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::User;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection};
use tokio::net::TcpSocket;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::patience::at_last;
use crate::{environment, receiver};

pub(crate) const DATABASE: &str = "torture";
/// Role of the replicas. It owns the database and is no superuser.
pub(crate) const SERVICE: &str = "service";

const SETTINGS: &[&str] = &[
    "track_commit_timestamp=on",
    "max_connections=200",
    "listen_addresses=127.0.0.1",
    "deadlock_timeout=100ms",
    "log_line_prefix=%m [%p] %u ",
    "restart_after_crash=on",
    "max_wal_size=256MB",
    "wal_level=logical",
    "wal_retrieve_retry_interval=500ms",
    // There is no archive. A recovery that somebody requests ends with the WAL that the server has.
    "restore_command=/bin/false",
];

pub(crate) struct Cluster {
    binaries: PathBuf,
    folder: PathBuf,
    account: Option<User>,
    port: u16,
    /// Port of the server while only this program may reach it.
    side_port: u16,
    /// Sockets that are bound and don't listen. They keep the ports reserved while the server is down.
    _reserved: [TcpSocket; 2],
    password: String,
    clock: Option<Clock>,
    server: Mutex<Option<Child>>,
    /// Held by the task that stops and starts the server.
    hands: Mutex<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    All,
    OnlyUs,
}

impl Cluster {
    /// Creates a cluster in `folder` and starts it. With a `clock`, the server uses that one.
    pub(crate) async fn start(folder: &Path, clock: Option<Clock>) -> Result<Cluster> {
        // Postgres refuses to run as root.
        let account = if nix::unistd::geteuid().is_root() {
            Some(User::from_name("postgres")?.context("as root, a user `postgres` must be there to run Postgres")?)
        } else {
            None
        };
        let folder = folder.join("postgres");
        std::fs::create_dir(&folder)?;
        let reserved = [receiver::bound(0)?, receiver::bound(0)?];
        let cluster = Cluster {
            binaries: binaries()?,
            port: reserved[0].local_addr()?.port(),
            side_port: reserved[1].local_addr()?.port(),
            _reserved: reserved,
            password: uuid::Uuid::new_v4().simple().to_string(),
            clock,
            server: Mutex::new(None),
            hands: Mutex::new(()),
            folder,
            account,
        };
        cluster.initialise().await?;
        cluster.launch(Reach::All).await?;
        let mut admin = PgConnection::connect_with(&cluster.admin().database("postgres")).await?;
        for statement in [
            format!("create role {SERVICE} login password '{}'", cluster.password),
            format!("create database {DATABASE} owner {SERVICE}"),
        ] {
            admin.execute(sqlx::AssertSqlSafe(statement)).await?;
        }
        let mut admin = cluster.connect().await?;
        admin.execute(sqlx::AssertSqlSafe(format!("alter schema public owner to {SERVICE}"))).await?;
        Ok(cluster)
    }

    /// Returns the options of a superuser's connection that bypasses the proxy.
    pub(crate) fn admin(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("postgres")
            .password(&self.password)
            .database(DATABASE)
            .application_name("torture")
            .disable_statement_logging()
    }

    pub(crate) async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.admin()).await
    }

    pub(crate) async fn connect_to(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.admin().database(database)).await
    }

    pub(crate) fn publisher(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres password={} dbname=publisher", self.port, self.password)
    }

    pub(crate) async fn connect_at_last(&self) -> Result<PgConnection, sqlx::Error> {
        at_last(Duration::from_secs(60), || self.connect()).await
    }

    pub(crate) fn service_url(&self, port: u16) -> String {
        format!("postgres://{SERVICE}:{}@127.0.0.1:{port}/{DATABASE}", self.password)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Crashes the whole server and recovers it, like `pg_ctl restart -m immediate`. The server stays a child process,
    /// so that it doesn't outlive this program.
    pub(crate) async fn crash(&self) -> Result<()> {
        let _hands = self.hands.lock().await;
        self.stop_by("immediate").await?;
        self.launch(Reach::All).await
    }

    pub(crate) async fn hands(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.hands.lock().await
    }

    /// Connects while only this program may reach the server.
    pub(crate) async fn connect_aside(&self) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect_with(&self.admin().port(self.side_port)).await
    }

    /// Makes commits wait for a dead synchronous standby, for `time`. Nobody stops the server meanwhile.
    pub(crate) async fn without_standby(&self, time: Duration) -> Result<()> {
        let _hands = self.hands.lock().await;
        let mut conn = self.connect_at_last().await?;
        conn.execute("alter system set synchronous_standby_names = 'nobody'").await?;
        conn.execute("select pg_reload_conf()").await?;
        tokio::time::sleep(time).await;
        conn.execute("alter system reset synchronous_standby_names").await?;
        conn.execute("select pg_reload_conf()").await?;
        Ok(())
    }

    pub(crate) async fn copy(&self) -> Result<()> {
        self.replace_by("data", "copy").await
    }

    pub(crate) async fn put_back(&self) -> Result<()> {
        self.replace_by("copy", "data").await
    }

    async fn replace_by(&self, from: &str, to: &str) -> Result<()> {
        let (from, to) = (self.folder.join(from), self.folder.join(to));
        if to.exists() {
            tokio::fs::remove_dir_all(&to).await?;
        }
        succeed(Command::new("cp").arg("-a").arg(&from).arg(&to)).await
    }

    pub(crate) fn set_clock(&self, seconds: i64) -> Result<()> {
        self.clock.as_ref().map_or(Ok(()), |clock| clock.set(seconds))
    }

    /// Makes the next start end with a new timeline, like a promotion or a recovery to a point in time.
    pub(crate) fn promote(&self) -> Result<()> {
        Ok(std::fs::write(self.folder.join("data/recovery.signal"), "")?)
    }

    /// Returns how often a session in a transaction was told to begin one: its caller didn't know of the first.
    pub(crate) fn unknown_transactions(&self) -> Result<usize> {
        let log = std::fs::read(self.folder.join("log"))?;
        Ok(String::from_utf8_lossy(&log).matches("there is already a transaction in progress").count())
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        self.stop_by("fast").await
    }

    async fn stop_by(&self, mode: &str) -> Result<()> {
        succeed(self.command("pg_ctl").args(["stop", "-m", mode, "-w"])).await
    }

    async fn initialise(&self) -> Result<()> {
        let password_file = self.folder.join("password");
        std::fs::write(&password_file, &self.password)?;
        std::fs::set_permissions(&password_file, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        if let Some(account) = &self.account {
            for path in [&self.folder, &password_file] {
                std::os::unix::fs::chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw()))?;
            }
        }
        let mut initdb = self.command("initdb");
        initdb.args(["-U", "postgres", "-E", "UTF8", "--locale", "C", "-A", "scram-sha-256", "--pwfile"]);
        succeed(initdb.arg(&password_file)).await
    }

    pub(crate) async fn launch(&self, reach: Reach) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.join("log"))?;
        let mut command = self.command("postgres");
        let port = if reach == Reach::All { self.port } else { self.side_port };
        command.arg("-p").arg(port.to_string()).arg("-k").arg(&self.folder);
        for setting in SETTINGS {
            command.arg("-c").arg(setting);
        }
        if let Some(clock) = &self.clock {
            clock.rule(&mut command);
        }
        let child = command.stdout(log.try_clone()?).stderr(log).kill_on_drop(true).spawn()?;
        *self.server.lock().await = Some(child);
        let reached = self.admin().port(port).database("postgres");
        let connection = at_last(Duration::from_secs(60), || PgConnection::connect_with(&reached)).await;
        Ok(connection.context("Postgres doesn't start")?.close().await?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        if let Some(account) = &self.account {
            command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
        }
        // Own process group: Ctrl-C reaches only this program, which stops the server last.
        command.process_group(0).current_dir(&self.folder).stdin(Stdio::null());
        command.env("PGDATA", self.folder.join("data")).env("LC_ALL", "C");
        command
    }
}

/// Runs a program. Returns an error if the program fails.
pub(crate) async fn succeed(command: &mut Command) -> Result<()> {
    let done = command.output().await?;
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Returns the folder of Postgres's programs: `PG_BIN_DIR`, else Debian's newest, else one of the `PATH`.
fn binaries() -> Result<PathBuf> {
    if let Some(chosen) = environment("PG_BIN_DIR") {
        return Ok(chosen.into());
    }
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let installed = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("postgres").exists());
    let number = |bin: &PathBuf| bin.parent().and_then(|v| v.file_name()?.to_str()?.parse::<u32>().ok());
    if let Some(newest) = installed.max_by_key(number) {
        return Ok(newest);
    }
    let path = environment("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|folder| folder.join("initdb").exists() && folder.join("postgres").exists())
        .context("no Postgres found: set PG_BIN_DIR")
}
