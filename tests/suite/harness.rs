//! The test harness: one Postgres for each run, a fresh database for each test, and the real binary, called over HTTP.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cdc_capture::capture::Triggers;
use cdc_export::catalog::Catalog;
use cdc_export::postgres;
use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool, Postgres, Transaction};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{OnceCell, oneshot};

/// A call or a wait that takes longer than this has failed, even on a busy machine.
pub(crate) const HANG_TIMEOUT: Duration = Duration::from_secs(180);

/// Failpoints of every service. A call and a look at a table may take 20 s, longer than in use, because the machine may
/// be busy. Health checks look again at each call. The clocks are believed at once. A test's own `FAILPOINTS` come
/// first, and the first entry of a name counts.
const PATIENT: &str =
    "service.call=time:20000,service.patience=time:20000,service.checks=time:0,maintenance.clock=time:0";

/// Failpoints of a test of the time limit itself: a call may take as long as in use.
pub(crate) const PROMPT: &str = "service.call=time:1900";

pub(crate) const UNKNOWN_JOB: &str = "01900000-0000-7000-8000-000000000000";

/// Each setting that changes how Postgres reads or writes a value, with another value than the default. The list is
/// from `pg_settings` of Postgres 13 to 18. `client_encoding` belongs to each client, and the operating system may lack
/// another `lc_monetary`.
pub(crate) const SETTINGS_OF_VALUES: [&str; 12] = [
    "array_nulls = off",
    "bytea_output = escape",
    "datestyle = 'SQL, DMY'",
    "extra_float_digits = -10",
    "gin_fuzzy_search_limit = 1",
    "intervalstyle = sql_standard",
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "timezone = 'Asia/Kolkata'",
    "transform_null_equals = on",
    "xmlbinary = hex",
    "xmloption = document",
];

/// Waits until `condition` returns a value, and returns that. `what` names the condition in the failure.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = condition().await {
            return found;
        }
        pause(what, begun).await;
    }
}

/// Waits until `condition` holds. `what` names the condition in the failure.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        pause(what, begun).await;
    }
}

/// Waits for the next check of a condition. The pauses grow, because each check takes processor time from the process
/// that the test waits for.
async fn pause(what: &str, begun: Instant) {
    let waited = begun.elapsed();
    assert!(waited < HANG_TIMEOUT, "waited in vain: {what}");
    tokio::time::sleep((waited / 4).clamp(Duration::from_millis(5), Duration::from_millis(100))).await;
}

/// Returns a port that nobody listens on, for a server that starts later or again. The port is below the range from
/// which Linux takes the ports of clients (32768 and up): a client could take one of that range before the server
/// starts.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Each process begins at another number.
        let number = std::process::id() * 100 + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (number % 20_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Serves these routes as long as the test runs. Returns their address.
pub(crate) async fn serving(routes: axum::Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, routes).await });
    address
}

/// Sends the same bytes to each client that has sent something. Returns the server's address.
pub(crate) async fn answering(answer: impl Into<Vec<u8>>) -> String {
    let (listener, answer) = (tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap(), answer.into());
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let _ = client.read(&mut [0; 4096]).await;
            let _ = client.write_all(&answer).await;
        }
    });
    address
}

/// Sends a request on to the service at this address.
pub(crate) async fn passed_on(
    client: &reqwest::Client,
    to: &str,
    request: axum::extract::Request,
) -> reqwest::Response {
    let (mut head, body) = request.into_parts();
    head.headers.remove("host");
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    client.request(head.method, format!("{to}{}", head.uri)).headers(head.headers).body(body).send().await.unwrap()
}

/// The exit code of a command that a signal has ended.
pub(crate) const KILLED: i32 = -1;

/// Makes a folder that the user who runs Postgres can reach.
pub(crate) fn reachable_folder() -> TempDir {
    opened(tempfile::tempdir().unwrap())
}

/// Makes such a folder in memory, if more than 1 GiB is free there. A sync in memory doesn't wait for other programs'
/// writes to the disk.
#[cfg(feature = "amqp")]
pub(crate) fn folder_in_memory() -> TempDir {
    let has_room = |volume: rustix::fs::StatVfs| volume.f_bavail * volume.f_frsize > 1 << 30;
    match rustix::fs::statvfs("/dev/shm").is_ok_and(has_room) {
        true => opened(tempfile::tempdir_in("/dev/shm").unwrap()),
        false => reachable_folder(),
    }
}

fn opened(folder: TempDir) -> TempDir {
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    folder
}

/// Returns the user of a private server if the tests run as root: Postgres doesn't run as root.
pub(crate) fn lent_user() -> nix::unistd::User {
    let named = |name: &&str| nix::unistd::User::from_name(name).unwrap();
    ["postgres", "nobody"].iter().find_map(named).expect("a user without rights")
}

/// Returns settings for a private server in `data_dir`, of the Postgres that the tests run on.
pub(crate) fn embedded_settings(data_dir: &Path) -> private_postgres::Settings {
    settings_with(data_dir, chosen_binaries())
}

/// Returns such settings after copying a cluster to `data_dir`. The copied cluster is made once in the run, since
/// `initdb` takes long. It isn't the cluster of the run's server.
pub(crate) async fn embedded_settings_with_cluster(data_dir: &Path) -> private_postgres::Settings {
    static CLUSTER: OnceCell<PathBuf> = OnceCell::const_new();
    let cluster = CLUSTER
        .get_or_init(|| async {
            let folder = private_server().folder.with_extension("cluster");
            remove_folder(&folder);
            private_postgres::Server::start(&embedded_settings(&folder)).await.unwrap().stop().await;
            std::fs::remove_file(folder.join("postgres.log")).unwrap();
            folder
        })
        .await;
    let copied = std::process::Command::new("cp").arg("-a").arg(cluster).arg(data_dir).status().unwrap();
    assert!(copied.success(), "{}", data_dir.display());
    embedded_settings(data_dir)
}

fn remove_folder(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", folder.display()),
        _ => {}
    }
}

fn settings_with(data_dir: &Path, bin_dir: Option<PathBuf>) -> private_postgres::Settings {
    private_postgres::Settings {
        data_dir: Some(data_dir.to_owned()),
        bin_dir,
        ignores_installed: false,
        download: None,
        search_path: std::env::split_paths(&option_env("PATH").unwrap()).collect(),
        runtime_dir: None,
    }
}

pub(crate) fn connect_options(socket_folder: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(socket_folder)
        .port(private_postgres::PORT)
        .username(private_postgres::ROLE)
        .database(private_postgres::DATABASE)
        .ssl_mode(PgSslMode::Disable)
}

/// Returns the folder of the Postgres programs that the tests use: `TEST_PG_BIN_DIR`, or that of the Postgres that was
/// downloaded for the run's server. `None`: the service finds the installed one by itself.
pub(crate) fn chosen_binaries() -> Option<PathBuf> {
    match option_env("TEST_PG_BIN_DIR") {
        Some(folder) => Some(PathBuf::from(folder)).filter(|folder| !folder.as_os_str().is_empty()),
        None => private_server().downloaded.clone(),
    }
}

/// Returns true if a program isn't installed, and prints what to install. The test that needs it then passes; in CI it
/// fails instead.
#[must_use]
pub(crate) fn lacks(program: &str, package: &str) -> bool {
    // Debian installs servers in a folder that only root has in its `PATH`.
    let folders: Vec<PathBuf> =
        std::env::split_paths(&option_env("PATH").unwrap()).chain(["/usr/sbin".into()]).collect();
    lacks_in(&folders, program, package)
}

/// Does the same for a program that comes with Postgres.
#[must_use]
pub(crate) async fn server_lacks(program: &str) -> bool {
    let mut connection = PgConnection::connect_with(server().await).await.unwrap();
    let folder = programs(&mut connection).await;
    // The packages of `tests/postgres.sh` have a server alone.
    if option_env("TEST_PG_BIN_DIR").is_some_and(|folder| !folder.is_empty()) && !folder.join(program).is_file() {
        tell_not_run(&format!("no `{program}` is beside the chosen server"));
        return true;
    }
    lacks_in(&[folder], program, "postgresql")
}

fn lacks_in(folders: &[PathBuf], program: &str, package: &str) -> bool {
    if folders.iter().any(|folder| folder.join(program).is_file()) {
        return false;
    }
    let why = format!("no `{program}` was found: install it (Debian, Ubuntu: `apt-get install {package}`)");
    assert!(option_env("CI").is_none_or(|ci| ci != "true"), "{why}");
    tell_not_run(&why);
    true
}

/// Prints that this thread's test did not run. Doesn't use `eprintln!`, whose output is shown only if the test fails.
fn tell_not_run(why: &str) {
    let thread = std::thread::current();
    let _ = writeln!(std::io::stderr(), "{} did not run: {why}", thread.name().unwrap_or("a test"));
}

/// Returns the features that this build lacks, each with the name of the tests that need it.
fn left_out() -> Vec<(&'static str, &'static str)> {
    let groups = [
        (cfg!(feature = "amqp"), "amqp", "brokers"),
        (cfg!(feature = "buckets"), "buckets", "buckets"),
        (cfg!(feature = "otel"), "otel", "traces"),
        (cfg!(feature = "parquet"), "parquet", "Parquet"),
    ];
    groups.into_iter().filter(|(is_built, ..)| !is_built).map(|(_, feature, group)| (feature, group)).collect()
}

/// Prints which tests are not in this build. Doesn't use `eprintln!`, whose output is shown only if the test fails.
fn tell_left_out() {
    let (features, groups): (Vec<_>, Vec<_>) = left_out().into_iter().unzip();
    if !features.is_empty() {
        let (features, groups) = (features.join(","), groups.join(", "));
        let _ = writeln!(
            std::io::stderr(),
            "The tests of {groups} are not in this build: `cargo test --features {features}` runs them."
        );
    }
}

/// Returns the run's server: `TEST_DATABASE_URL`, else a private one, started at the first call. The server has a
/// migrated template database.
async fn server() -> &'static PgConnectOptions {
    static SERVER: OnceCell<PgConnectOptions> = OnceCell::const_new();
    SERVER
        .get_or_init(|| async {
            tell_left_out();
            let options = match option_env("TEST_DATABASE_URL") {
                Some(url) => url.parse().unwrap(),
                None => private_server().options.clone(),
            };
            let mut admin = PgConnection::connect_with(&options).await.unwrap();
            // Databases of earlier runs. A run beside this one is connected to its own databases.
            let left: Vec<String> = sqlx::query_scalar(
                "select datname::text from pg_database d where datname like 'cdc_test_%'
                 and not exists (select from pg_stat_activity a where a.datid = d.oid)",
            )
            .fetch_all(&mut admin)
            .await
            .unwrap();
            for name in left {
                let _ = admin.execute(AssertSqlSafe(format!("drop database if exists {name}"))).await;
            }
            // Roles of databases that no longer exist.
            let roles: Vec<String> = sqlx::query_scalar(
                "select rolname::text from pg_roles where rolname ~ '^cdc_export_capture_[0-9]+$'
                 and not exists (select from pg_database where oid::text = substr(rolname, 20))
                 or rolname like 'cdc_test_%' and not exists (select from pg_database where starts_with(rolname, datname))",
            )
            .fetch_all(&mut admin)
            .await
            .unwrap();
            for role in roles {
                let _ = admin.execute(AssertSqlSafe(format!("drop role if exists {role}"))).await;
            }
            let name = template();
            let _ = admin.execute(AssertSqlSafe(format!("drop database if exists {name}"))).await;
            admin.execute(AssertSqlSafe(format!("create database {name}"))).await.unwrap();
            let template: postgres::Database = options.clone().database(&name).into();
            postgres::migrate(&template, &Catalog::default(), postgres::RequiredGrants::Serve).await.unwrap();
            let pool = template.pool();
            Triggers(&pool).restore().await.unwrap();
            // A database can't be cloned while somebody is connected to it.
            pool.close().await;
            options
        })
        .await
}

#[expect(clippy::disallowed_methods, reason = "the tests' own switch")]
pub(crate) fn option_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn template() -> String {
    format!("cdc_test_{}_template", std::process::id())
}

struct PrivateServer {
    folder: PathBuf,
    options: PgConnectOptions,
    /// The folder of its programs, if they were downloaded.
    downloaded: Option<PathBuf>,
    /// Ends the server when this process ends.
    _guard: std::process::Child,
}

/// Starts the run's server at the first call. It lives as long as this process.
fn private_server() -> &'static PrivateServer {
    static SERVER: OnceLock<PrivateServer> = OnceLock::new();
    SERVER.get_or_init(|| {
        let (ready, started) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let (folder, _lock) = run_folder();
                let bin_dir = option_env("TEST_PG_BIN_DIR").filter(|folder| !folder.is_empty());
                let mut settings = settings_with(&folder, bin_dir.map(PathBuf::from));
                let downloads = option_env("PG_DOWNLOAD").is_none_or(|word| word != "off");
                settings.download = downloads.then_some(postgres::download::fetch);
                let start = async || {
                    let server = private_postgres::Server::start(&settings).await;
                    server.unwrap_or_else(|error| panic!("no private server for the tests: {error}"))
                };
                let server = start().await;
                let programs = hasten(&connect_options(server.socket_folder())).await;
                // Some settings are read at the start alone.
                server.stop().await;
                let server = start().await;
                // A pooler before it asks for a password.
                let options = connect_options(server.socket_folder()).password("pass");
                ask_for_passwords(&options).await;
                let downloaded = Some(programs).filter(|programs| programs.starts_with(&folder));
                let pid = std::fs::read_to_string(folder.join("postgres/postmaster.pid")).unwrap();
                let _guard = end_with_this_process(pid.lines().next().unwrap());
                ready.send(PrivateServer { folder, options, downloaded, _guard }).unwrap();
                std::future::pending::<()>().await;
            });
        });
        started.recv().expect("a private server for the tests")
    })
}

/// Sends SIGINT to a process when this one ends. Nothing runs at a test binary's end, so a shell waits for the end of
/// its input, which this process holds open.
fn end_with_this_process(pid: &str) -> std::process::Child {
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "cat; kill -INT \"$1\"", "sh", pid]).stdin(Stdio::piped()).stdout(Stdio::null());
    // Ctrl-C ends this process alone.
    std::os::unix::process::CommandExt::process_group(&mut shell, 0).spawn().unwrap()
}

/// Returns a folder that no other run uses at this time, and its lock. Removes the cluster of an earlier run: a new one
/// is made faster than the hundreds of old databases are dropped. A Postgres that was downloaded into the folder stays.
fn run_folder() -> (PathBuf, File) {
    let binaries = option_env("TEST_PG_BIN_DIR").unwrap_or_default().replace('/', "-");
    let runs = std::env::temp_dir().join(format!("cdc-export-suite-{}{binaries}", nix::unistd::getuid()));
    std::fs::create_dir_all(&runs).unwrap();
    for n in 0.. {
        let lock = File::create(runs.join(format!("{n}.lock"))).unwrap();
        if lock.try_lock().is_err() {
            continue;
        }
        let folder = runs.join(n.to_string());
        remove_folder(&folder.join("postgres"));
        std::fs::create_dir_all(&folder).unwrap();
        return (folder, lock);
    }
    unreachable!("a number is free")
}

/// Configures the run's server for speed, and returns the folder of its programs. No test is about a power cut, so
/// `fsync` is off. Autovacuum would visit hundreds of databases each minute. All tests that run at once need
/// connections.
async fn hasten(options: &PgConnectOptions) -> PathBuf {
    let mut admin = PgConnection::connect_with(options).await.unwrap();
    let settings = [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("autovacuum", "off"),
        ("max_connections", "400"),
        ("max_prepared_transactions", "9"),
        // The log names the database of each message.
        ("log_line_prefix", "'%d '"),
    ];
    for (setting, value) in settings {
        admin.execute(AssertSqlSafe(format!("alter system set {setting} = {value}"))).await.unwrap();
    }
    programs(&mut admin).await
}

/// The log of the run's server, in which each message begins with the name of its database.
pub(crate) fn server_log() -> String {
    String::from_utf8_lossy(&std::fs::read(private_server().folder.join("postgres.log")).unwrap()).into_owned()
}

/// Makes the server ask all roles but the tests' own for a password. `md5` takes passwords stored either way: Postgres
/// 13 stores MD5, later ones SCRAM. SCRAM takes thousands of hashes for each login, and the tests connect often.
async fn ask_for_passwords(options: &PgConnectOptions) {
    let mut admin = PgConnection::connect_with(options).await.unwrap();
    let file: String = sqlx::query_scalar("show hba_file").fetch_one(&mut admin).await.unwrap();
    std::fs::write(&file, format!("local all {} trust\nlocal all all md5\n", private_postgres::ROLE)).unwrap();
    admin.execute("select pg_reload_conf()").await.unwrap();
}

async fn programs(connection: &mut PgConnection) -> PathBuf {
    let folder = "select setting from pg_config() where name = 'BINDIR'";
    sqlx::query_scalar::<_, String>(folder).fetch_one(connection).await.unwrap().into()
}

/// A fresh, migrated database.
pub(crate) struct Database {
    pub(crate) options: PgConnectOptions,
    pub(crate) pool: PgPool,
}

impl Database {
    pub(crate) fn name(&self) -> &str {
        self.options.get_database().unwrap()
    }

    /// Clones the migrated template.
    pub(crate) async fn new() -> Database {
        let server = server().await;
        Database::create(server, &format!("template {}", template())).await
    }

    /// Clones the migrated template, and runs these statements.
    pub(crate) async fn new_with(sql: &str) -> Database {
        let database = Database::new().await;
        database.run(sql).await;
        database
    }

    /// Clones the migrated template, and adds users `1..=count`.
    pub(crate) async fn with_users(count: i64) -> Database {
        let database = Database::new().await;
        if count > 0 {
            database.add_users(1, count).await;
        }
        database
    }

    /// Makes a database with nothing in it.
    pub(crate) async fn empty() -> Database {
        let server = server().await;
        Database::create(server, "").await
    }

    /// Makes a database with nothing in it but what these statements make.
    pub(crate) async fn empty_with(sql: &str) -> Database {
        let database = Database::empty().await;
        database.run(sql).await;
        database
    }

    /// Makes a database with nothing in it, in an encoding other than UTF-8.
    pub(crate) async fn encoded(encoding: &str) -> Database {
        let server = server().await;
        Database::create(server, &format!("template template0 encoding '{encoding}' locale 'C'")).await
    }

    async fn create(server: &PgConnectOptions, how: &str) -> Database {
        let name = format!("cdc_test_{}_{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let mut admin = PgConnection::connect_with(server).await.unwrap();
        admin.execute(AssertSqlSafe(format!("create database {name} {how}"))).await.unwrap();
        Database::at(server.clone().database(&name))
    }

    pub(crate) fn at(options: PgConnectOptions) -> Database {
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(options.clone());
        Database { options, pool }
    }

    pub(crate) fn url(&self) -> String {
        self.options.to_url_lossy().to_string()
    }

    pub(crate) async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.unwrap();
    }

    /// Makes a role that may log in by the password `pass`, and returns its name. The next run drops it.
    pub(crate) async fn role(&self) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let role = format!("{}_{number}", self.name());
        self.run(&format!("create role {role} login password 'pass'")).await;
        role
    }

    /// Makes all but this pool connect as a role that has another value of each setting that changes how Postgres reads
    /// or writes a value.
    pub(crate) async fn set_otherwise(&mut self) {
        let role = self.role().await;
        self.run(&format!("alter role {role} superuser")).await;
        for setting in SETTINGS_OF_VALUES {
            self.run(&format!("alter role {role} set {setting}")).await;
        }
        self.options = self.options.clone().username(&role).password("pass");
    }

    pub(crate) async fn programs(&self) -> PathBuf {
        programs(&mut PgConnection::connect_with(&self.options).await.unwrap()).await
    }

    /// Returns the one value that a query selects.
    pub(crate) async fn one<T>(&self, sql: &str) -> T
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.unwrap()
    }

    /// Returns the values of the one column that a query selects.
    pub(crate) async fn all<T>(&self, sql: &str) -> Vec<T>
    where
        T: Send + Unpin + for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_all(&self.pool).await.unwrap()
    }

    pub(crate) async fn postgres_version(&self) -> i32 {
        self.one::<i32>("select current_setting('server_version_num')::int / 10000").await
    }

    pub(crate) fn url_as(&self, role: &str, password: &str) -> String {
        self.options.clone().username(role).password(password).to_url_lossy().to_string()
    }

    /// Locks `users` so that no export goes on: each waits for the lock before its snapshot, for at most 5 seconds.
    pub(crate) async fn hold_exports(&self) -> Transaction<'static, Postgres> {
        self.open("lock table users in access exclusive mode").await
    }

    /// Opens a transaction and runs these statements in it.
    pub(crate) async fn open(&self, sql: &str) -> Transaction<'static, Postgres> {
        let mut open = self.pool.begin().await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut *open).await.unwrap();
        open
    }

    /// Waits until somebody waits for a lock on this relation.
    pub(crate) async fn waits_for(&self, relation: &str) {
        let waits =
            format!("select exists (select from pg_locks where not granted and relation = '{relation}'::regclass)");
        until(relation, async || self.one::<bool>(&waits).await).await;
    }

    /// Adds users `from..=to`, made and last changed at minute `id` of 2026-01-01, every tenth of them deleted.
    pub(crate) async fn add_users(&self, from: i64, to: i64) {
        self.run(&format!(
            "insert into users (id, name, email, created_at, updated_at, is_deleted)
             select n, 'User ' || n, 'user' || n || '@example.com', t, t, n % 10 = 0
             from generate_series({from}, {to}) as n
             cross join lateral (select timestamptz '2026-01-01 00:00:00+00' + n * interval '1 minute' as t) as times;
             analyze users"
        ))
        .await;
    }
}

/// Returns a statement that inserts jobs of one export each. `rows` selects the consumer, dataset, number, export type,
/// status and time of each. The number is the export's place in its lane, and its number if it is published. Ids grow
/// with the times. The status is one of `cdc_export.jobs`. There are no files.
pub(crate) fn planted(rows: &str) -> String {
    format!(
        "with planted as materialized (
           select p.*, status in ('pending', 'processing', 'committed') as is_open,
             status in ('committed', 'completed') as has_file,
             (lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0') || substr(md5(random()::text), 13))::uuid
               as id
           from ({rows}) p (consumer, dataset, n, type, status, at)),
         jobs as (
           insert into cdc_export.jobs (
             id, consumer_id, export_type, format, status, open_exports, attempt, max_attempts, run_at, turn,
             lease_token, lease_owner, lease_expires_at, error_code, created_at, started_at)
           select id, consumer, type, 'csv', status, is_open::int, (status <> 'pending')::int, 5, at, at,
             case status when 'processing' then id end, case status when 'processing' then 'somebody' end,
             case status when 'processing' then now() + interval '1 day' end,
             case status when 'failed' then 'internal' end, at, case when status <> 'pending' then at end
           from planted)
         insert into cdc_export.exports (
           job, dataset, consumer_id, lane_sequence, export_type, output_filename, status, destination_id, staged_name,
           sha256, published_at, number, finished_at)
         select id, dataset, consumer, case when consumer is not null then n end, type, concat_ws(' ', consumer, dataset, n),
           case when has_file then 'completed' when is_open then 'open' else status end,
           case when has_file then uuid '11111111-1111-1111-1111-111111111111' end,
           case when has_file then 'staged' end, case when has_file then repeat('a', 64) end,
           case status when 'completed' then at end,
           case when status = 'completed' and consumer is not null then n end,
           case when has_file or not is_open then at end
         from planted;"
    )
}

/// The real binary, serving a database. It is stopped when it is dropped.
pub(crate) struct Service {
    child: Child,
    pub(crate) address: String,
    pub(crate) client: reqwest::Client,
    output: Arc<TempDir>,
    log: Arc<Log>,
    reader: JoinHandle<()>,
    work: Arc<TempDir>,
}

/// The lines of a log. If a test fails, the last lines of its services are printed.
#[derive(Default)]
struct Log(Mutex<Vec<Value>>);

impl Log {
    fn lines(&self) -> MutexGuard<'_, Vec<Value>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a service's log to its end. Sends the address at which it listens, once it says so.
    fn read(&self, log: PipeReader, address: oneshot::Sender<String>) {
        let mut address = Some(address);
        for line in BufReader::new(log).lines().map_while(Result::ok) {
            let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if let Some(told) = event["address"].as_str().filter(|_| address.is_some()) {
                let _ = address.take().map(|address| address.send(told.to_owned()));
            }
            self.lines().push(event);
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.lines().iter().rev().take(20).rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// A process that waits at a failpoint, by `FAILPOINTS=NAME=hold`.
pub(crate) struct Hold {
    file: PathBuf,
    // The folder that the file is in.
    _work: Arc<TempDir>,
}

impl Hold {
    fn of(work: &Arc<TempDir>, failpoint: &str) -> Hold {
        Hold { file: work.path().join(format!("{failpoint}.held")), _work: Arc::clone(work) }
    }

    pub(crate) async fn reached(&self) {
        eventually("the failpoint is reached", async || self.file.exists().then_some(())).await;
    }

    /// Lets the process go on, once it is held.
    pub(crate) async fn release(self) {
        self.reached().await;
        std::fs::remove_file(&self.file).unwrap();
    }
}

/// The settings of a service that is to start.
pub(crate) struct Start {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    umask: Option<&'static str>,
    open_files: Option<u32>,
    output: Arc<TempDir>,
    work: Arc<TempDir>,
}

impl Start {
    pub(crate) fn on(database: &Database) -> Start {
        Start::plain().with("DATABASE_URL", database.url())
    }

    /// Makes a start with nothing but a folder for its files.
    pub(crate) fn plain() -> Start {
        let output = Arc::new(tempfile::tempdir().unwrap());
        Start {
            arguments: Vec::new(),
            variables: Vec::new(),
            umask: None,
            open_files: None,
            output,
            work: Arc::new(reachable_folder()),
        }
        .with("PORT", "0")
        .with("LOG_FORMAT", "json")
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Start {
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the umask, in octal.
    pub(crate) fn under_umask(mut self, umask: &'static str) -> Start {
        self.umask = Some(umask);
        self
    }

    /// Sets the command and its arguments. Without them, the process serves.
    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Start {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    pub(crate) fn with_open_files(mut self, count: u32) -> Start {
        self.open_files = Some(count);
        self
    }

    /// Adds arguments behind the others.
    pub(crate) fn and(mut self, more: &[&str]) -> Start {
        self.arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub(crate) fn sharing_output(mut self, other: &Service) -> Start {
        self.output = Arc::clone(&other.output);
        self
    }

    /// Returns the handle of a failpoint that holds the process, by which the test waits for it and releases it.
    pub(crate) fn hold(&self, failpoint: &str) -> Hold {
        Hold::of(&self.work, failpoint)
    }

    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_cdc-export");
        let umask = self.umask.map(|umask| format!("umask {umask}; "));
        let open_files = self.open_files.map(|count| format!("ulimit -n {count}; "));
        let limits: String = umask.into_iter().chain(open_files).collect();
        let mut command = match &*limits {
            "" => Command::new(binary),
            limits => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", &format!("{limits}exec \"$0\" \"$@\""), binary]);
                shell
            }
        };
        command
            .args(&self.arguments)
            .env_clear()
            .env("PATH", option_env("PATH").unwrap())
            .env("OUTPUT_DIR", self.output.path());
        command.envs(chosen_binaries().map(|folder| ("PG_BIN_DIR", folder)));
        // So that coverage counts what the binary does.
        command.envs(option_env("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
        command.env("FAILPOINTS", PATIENT);
        for (name, value) in &self.variables {
            match name.as_str() {
                "FAILPOINTS" => command.env(name, format!("{value},{PATIENT}")),
                _ => command.env(name, value),
            };
        }
        command
            .current_dir(self.work.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts the service and waits until it listens.
    pub(crate) async fn service(self) -> Service {
        let (reader, writer) = std::io::pipe().unwrap();
        let child = self.command().stderr(writer).spawn().unwrap();
        let log = Arc::<Log>::default();
        let (sender, address) = oneshot::channel();
        // A thread, since nothing else runs in a test's runtime while a service is dropped.
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(reader, sender)
        });
        let address = tokio::time::timeout(HANG_TIMEOUT, address).await.expect("the service starts");
        let address = address.unwrap_or_else(|_| panic!("the service ended: {:?}", log.lines()));
        Service { child, address, client: client(), output: self.output, log, reader, work: self.work }
    }

    /// Starts the process and waits for nothing. Returns the process, and the folder that it runs in.
    pub(crate) fn spawn(self) -> (Child, Arc<TempDir>) {
        (self.command().spawn().unwrap(), self.work)
    }

    /// Does the same, and lets the test read what the process prints.
    pub(crate) fn spawn_piped(self) -> (Child, Arc<TempDir>) {
        (self.command().stdout(Stdio::piped()).spawn().unwrap(), self.work)
    }

    /// Starts the process and waits until it ends by itself. Returns the exit code and standard error.
    pub(crate) async fn until_it_ends(self) -> (i32, String) {
        let (code, _, errors) = self.output().await;
        (code, errors)
    }

    /// Starts the process and waits until it ends by itself. Returns the exit code, its output, and standard error.
    pub(crate) async fn output(self) -> (i32, String, String) {
        let output = tokio::time::timeout(HANG_TIMEOUT, self.command().stdout(Stdio::piped()).output()).await;
        let output = output.expect("it ends by itself").unwrap();
        let [printed, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code().unwrap_or(KILLED), printed, errors)
    }
}

/// Asserts that a command ended with this code, and said `words` on standard error. Returns what it printed and said.
#[track_caller]
pub(crate) fn ends(output: (i32, String, String), code: i32, words: &str) -> (String, String) {
    let (ended, printed, errors) = output;
    assert!(ended == code && errors.contains(words), "{ended} {printed} {errors}, not {code} {words}");
    (printed, errors)
}

/// Asserts that a command succeeded, and wrote nothing but progress to standard error. Returns what it printed.
#[track_caller]
pub(crate) fn silent((code, printed, errors): (i32, String, String)) -> String {
    assert_eq!((code, without_progress(&errors)), (0, vec![]), "{printed}");
    printed
}

/// Returns the lines of standard error, without the progress of a job that takes over five seconds.
pub(crate) fn without_progress(errors: &str) -> Vec<&str> {
    let rows = |line: &str| line.split_once("% ")?.1.split_once(" rows")?.0.parse::<u64>().ok();
    errors.lines().filter(|line| rows(line).is_none()).collect()
}

/// Starts a service on a fresh database with this number of users.
pub(crate) async fn serving_users(count: i64) -> (Database, Service) {
    let database = Database::with_users(count).await;
    let service = Start::on(&database).service().await;
    (database, service)
}

/// Makes a command that has no database to fall back on.
pub(crate) fn far(arguments: &[&str]) -> Start {
    Start::plain().with("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing").arguments(arguments)
}

/// Returns the builder of an HTTP client with the service's TLS library, the only one in this build.
pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // Another test of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// Ends a program that a test has spawned, like an operator.
pub(crate) async fn stop(child: &mut tokio::process::Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().expect("it runs").cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().await.unwrap().success());
}

/// Makes a client whose timeout is twice `HANG_TIMEOUT`, because a call with `?wait=` may last that long by itself. It
/// closes an idle connection before the service does, which happens after 10 seconds.
fn client() -> reqwest::Client {
    client_builder().timeout(2 * HANG_TIMEOUT).pool_idle_timeout(Duration::from_secs(5)).build().unwrap()
}

impl Service {
    /// Sends a request without a body.
    pub(crate) async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// Asserts that a call is refused with this status and this code of its problem.
    pub(crate) async fn refuses(&self, method: &str, path: &str, headers: &[(&str, &str)], status: u16, code: &str) {
        let refused = refusal(self.call(method, path, headers).await).await;
        assert_eq!(refused, (status, code.to_owned()), "{method} {path} {headers:?}");
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.call("GET", path, &[]).await;
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    pub(crate) async fn pages(&self, path: &str, headers: &[(&str, &str)], limit: usize) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let and = if path.contains('?') { '&' } else { '?' };
            let page = self.call("GET", &format!("{path}{and}limit={limit}{cursor}"), headers).await;
            assert_eq!(page.status(), 200, "{path}");
            let page: Value = page.json().await.unwrap();
            let rows = page["items"].as_array().unwrap();
            items.extend(rows.iter().cloned());
            let Some(next) = page["nextCursor"].as_str() else { return items };
            assert_eq!(rows.len(), limit, "only the last page may be short");
            cursor = format!("&cursor={next}");
        }
    }

    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> reqwest::Response {
        let mut request = self.client.post(format!("{}{path}", self.address)).json(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// Calls like `call`, and repeats the call while the answer is 503 with `Retry-After`. On a busy machine, the
    /// service may get no connection in time.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let is_busy =
            |answer: &reqwest::Response| answer.status() == 503 && answer.headers().contains_key("retry-after");
        let call = || async { Some(self.call(method, path, headers).await).filter(|answer| !is_busy(answer)) };
        eventually("a connection for the call", call).await
    }

    /// Submits an export that runs until the lock, which it waits for, is released.
    pub(crate) async fn held_export(
        &self,
        database: &Database,
        export_type: &str,
        consumer: &str,
    ) -> (Transaction<'static, Postgres>, String) {
        let held = database.hold_exports().await;
        let id = self.submit(export_type, consumer).await;
        self.becomes(&id, "processing").await;
        (held, id)
    }

    pub(crate) async fn submit(&self, export_type: &str, consumer: &str) -> String {
        // A call that was answered 503 may have made the job: with the same key, the next one makes no second job.
        let once = uuid::Uuid::new_v4().to_string();
        let headers = [("X-Consumer-ID", consumer), ("Idempotency-Key", &once)];
        let answer = self.ask("POST", &format!("/exports/{export_type}"), &headers).await;
        assert_eq!(answer.status(), 202);
        answer.json::<Value>().await.unwrap()["jobId"].as_str().unwrap().to_owned()
    }

    /// Requests an export that kills the service, and waits for that. The answer may be lost.
    pub(crate) async fn dies_of(&mut self, export_type: &str, consumer: &str, body: &Value) {
        let request = self.client.post(format!("{}/exports/{export_type}", self.address)).json(body);
        let _ = request.header("X-Consumer-ID", consumer).send().await;
        self.dies().await;
    }

    pub(crate) async fn job(&self, id: &str) -> Value {
        let answer = self.ask("GET", &format!("/exports/{id}"), &[]).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// Waits until a job has ended, in whatever status.
    pub(crate) async fn ended(&self, id: &str) -> Value {
        let terminal = |job: &Value| matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"));
        eventually("a job ends", || async { Some(self.job(id).await).filter(terminal) }).await
    }

    pub(crate) async fn deliveries(&self, query: &str) -> Vec<Value> {
        self.get(&format!("/deliveries{query}")).await["items"].as_array().unwrap().clone()
    }

    pub(crate) async fn manifest(&self, job: &Value) -> Value {
        self.get(&format!("/exports/{}/manifest", job["jobId"].as_str().unwrap())).await
    }

    pub(crate) async fn completes(&self, id: &str) -> Value {
        let job = self.ended(id).await;
        assert_eq!(job["status"], "completed", "{job} {}", self.log());
        job
    }

    /// Runs an export that must complete. Returns its job and its file.
    pub(crate) async fn export(&self, export_type: &str, consumer: &str) -> (Value, Csv) {
        let id = self.submit(export_type, consumer).await;
        let job = self.completes(&id).await;
        let file = Csv::read(&self.path(&job));
        (job, file)
    }

    pub(crate) async fn watermark(&self, consumer: &str) -> Option<String> {
        let answer = self.call("GET", "/exports/watermark", &[("X-Consumer-ID", consumer)]).await;
        let body: Value = answer.json().await.unwrap();
        body["lastExportedAt"].as_str().map(str::to_owned)
    }

    pub(crate) fn output(&self) -> &Path {
        self.output.path()
    }

    pub(crate) fn path(&self, job: &Value) -> PathBuf {
        self.output().join(job["outputFilename"].as_str().unwrap())
    }

    /// Returns the names in the output folder, without the folder's own mark and the markers of lanes.
    pub(crate) fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.output()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> =
            names.filter(|name| name != ".cdc-export-store" && !name.starts_with(".lane-")).collect();
        names.sort();
        names
    }

    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        self.log.lines().iter().filter(|line| line["event"] == event).cloned().collect()
    }

    pub(crate) async fn reaches(&self, failpoint: &str) {
        eventually(failpoint, || async { self.events("failpoint").into_iter().find(|line| line["name"] == failpoint) })
            .await;
    }

    pub(crate) async fn release(&self, failpoint: &str) {
        Hold::of(&self.work, failpoint).release().await;
    }

    /// Waits until the log has an event of a job.
    pub(crate) async fn says(&self, event: &str, job: &str) -> Value {
        eventually(event, || async { self.events(event).into_iter().find(|line| line["jobId"] == job) }).await
    }

    pub(crate) fn log(&self) -> String {
        self.log.lines().iter().map(|line| format!("{line}\n")).collect()
    }

    pub(crate) async fn becomes(&self, id: &str, status: &str) -> Value {
        eventually(status, || async { Some(self.job(id).await).filter(|job| job["status"] == status) }).await
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().expect("it runs").cast_signed())
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Waits until the service has ended and its whole log is read. Returns the exit code, or `None` after a signal.
    pub(crate) async fn exit(&mut self) -> Option<i32> {
        let status = tokio::time::timeout(HANG_TIMEOUT, self.child.wait()).await.expect("the service ends").unwrap();
        eventually("its log is read", async || self.reader.is_finished().then_some(())).await;
        status.code()
    }

    pub(crate) async fn dies(&mut self) {
        assert_eq!(self.exit().await, None, "killed, not ended");
    }

    /// Stops the service like an operator.
    pub(crate) async fn stop(mut self) {
        self.end().await;
    }

    /// Stops the service like an operator, and keeps its folder for another service.
    pub(crate) async fn end(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(self.exit().await, Some(0));
    }
}

impl Drop for Service {
    /// Stops the service like an operator, if it runs. If the test has failed, the service is killed.
    fn drop(&mut self) {
        if std::thread::panicking() || self.child.try_wait().unwrap().is_some() {
            return;
        }
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(begun.elapsed() < HANG_TIMEOUT, "the service ends");
            std::thread::sleep(Duration::from_millis(2));
        };
        // A test that has just killed it need not have waited for its end.
        let is_killed = status.signal() == Some(nix::sys::signal::Signal::SIGKILL as i32);
        assert!(status.success() || is_killed, "it ends well: {status}");
    }
}

/// Returns the status of a call that was refused, with the problem's code.
pub(crate) async fn refusal(answer: reqwest::Response) -> (u16, String) {
    let status = answer.status().as_u16();
    (status, answer.json::<Value>().await.unwrap()["code"].as_str().unwrap_or_default().to_owned())
}

/// Asserts that an export failed because a full one is needed, and why.
#[track_caller]
pub(crate) fn needs_full(job: &Value, why: &str) {
    let found = [&job["status"], &job["error"]["code"], &job["continuity"]];
    assert_eq!(found, ["failed", "full_export_needed", why], "{job}");
}

/// A CSV file, read by a reader other than the service's own code.
#[derive(Debug, PartialEq)]
pub(crate) struct Csv {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Csv {
    pub(crate) fn read(path: &Path) -> Csv {
        let mut reader = csv::Reader::from_path(path).unwrap();
        let texts = |record: &csv::StringRecord| record.iter().map(str::to_owned).collect::<Vec<_>>();
        let header = texts(reader.headers().unwrap());
        Csv { header, rows: reader.records().map(|record| texts(&record.unwrap())).collect() }
    }

    pub(crate) fn sorted(&self, column: &str) -> Vec<&str> {
        let at = self.header.iter().position(|name| name == column).unwrap();
        let mut values: Vec<_> = self.rows.iter().map(|row| row[at].as_str()).collect();
        values.sort_unstable();
        values
    }

    pub(crate) fn ids(&self) -> Vec<i64> {
        let mut ids: Vec<i64> = self.sorted("id").into_iter().map(|id| id.parse().unwrap()).collect();
        ids.sort_unstable();
        ids
    }
}
