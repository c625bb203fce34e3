//! The private server, run for real on the installed Postgres: started, joined, killed in every way, started again.

use std::fs;
use std::future::poll_fn;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, getpgid};
use private_postgres::{Error, Server, Settings, join};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;
use tokio::time::interval;

use crate::harness::{
    chosen_binaries, connect_options, embedded_settings, embedded_settings_with_cluster, option_env, until,
};

/// Set for the process that [`supervise_until_killed`] turns into a supervisor.
const DATA_DIR_OF_CHILD: &str = "CDC_EXPORT_TEST_SUPERVISE";

/// Keeps a processor busy and looks neither at its client nor at the postmaster.
const ENDLESS: &str = "do $$ begin loop end loop; end $$";

/// A folder of a test that the user who runs Postgres can reach.
struct Home {
    folder: TempDir,
}

impl Home {
    /// Makes a folder with a cluster in it.
    async fn new() -> Home {
        let home = Home::empty();
        embedded_settings_with_cluster(&home.data_dir()).await;
        home
    }

    fn empty() -> Home {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        open_to_all(folder.path());
        Home { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn data_dir(&self) -> PathBuf {
        self.path().join("data")
    }

    fn data(&self) -> PathBuf {
        self.data_dir().join("postgres")
    }

    fn settings(&self) -> Settings {
        embedded_settings(&self.data_dir())
    }

    /// The process id that the server wrote down.
    fn postmaster(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }
}

/// A server on a cluster that was there before.
async fn started() -> (Home, Server) {
    let home = Home::new().await;
    let server = Server::start(&home.settings()).await.unwrap();
    (home, server)
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
}

async fn ask(options: &PgConnectOptions, question: &'static str) -> String {
    let mut connection = options.connect().await.unwrap();
    let answer = sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    answer
}

/// Living: a killed process that nobody has waited for yet doesn't count.
fn lives(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kill(Pid::from_raw(pid), None).is_ok() && !status.contains("State:\tZ")
}

async fn is_gone(pid: i32) {
    until("the process is gone", async || !lives(pid)).await;
}

fn sigkill(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// A backend in an endless loop; its process id.
async fn busy_backend(options: &PgConnectOptions) -> i32 {
    let mut connection = options.connect().await.unwrap();
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    tokio::spawn(async move { sqlx::raw_sql(ENDLESS).execute(&mut connection).await });
    let mut observer = options.connect().await.unwrap();
    until("the backend is busy", async || {
        sqlx::query_scalar("select state = 'active' and query like 'do %' from pg_stat_activity where pid = $1")
            .bind(pid)
            .fetch_one(&mut observer)
            .await
            .unwrap()
    })
    .await;
    pid
}

/// No test of its own: the body of a second process, which the tests below kill.
#[tokio::test]
async fn supervise_until_killed() {
    let Some(data_dir) = option_env(DATA_DIR_OF_CHILD) else {
        return;
    };
    let _server = Server::start(&embedded_settings(Path::new(&data_dir))).await.unwrap();
    std::future::pending::<()>().await;
}

/// A supervisor in a process of its own, killed with its value.
struct Supervisor(Child);

impl Supervisor {
    /// Returns when its server is ready.
    async fn start(home: &Home) -> (Supervisor, PgConnectOptions) {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["embedded::supervise_until_killed", "--exact"])
            .env(DATA_DIR_OF_CHILD, home.data_dir())
            // The process needn't find the programs with a server of its own.
            .env("TEST_PG_BIN_DIR", chosen_binaries().unwrap_or_default())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let supervisor = Supervisor(child);
        let mut options = None;
        until("the other process' server is ready", async || {
            options = join(&home.settings()).unwrap().as_deref().map(connect_options);
            options.is_some()
        })
        .await;
        (supervisor, options.unwrap())
    }

    fn sigkill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_server_on_an_empty_folder_is_joined_while_it_runs_and_closed_to_other_users() {
    let home = Home::empty();
    assert!(join(&home.settings()).unwrap().is_none());
    assert!(!home.data_dir().exists());
    let server = Server::start(&home.settings()).await.unwrap();
    let options = connect_options(&join(&home.settings()).unwrap().unwrap());
    let facts = ask(
        &options,
        "select concat_ws(' ', current_user, current_database(), current_setting('server_encoding'),
            'checksums', current_setting('data_checksums'), 'tcp:' || current_setting('listen_addresses'),
            'fsync', current_setting('fsync'), current_setting('TimeZone'))",
    )
    .await;
    assert_eq!(facts, "postgres cdc_export UTF8 checksums on tcp: fsync on UTC");
    let postmaster = Pid::from_raw(home.postmaster().unwrap());
    assert_eq!(getpgid(Some(postmaster)).unwrap(), postmaster, "a process group of its own");
    let socket = options.get_socket().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&home.data_dir().join("postgres.log")), mode(socket)), (0o600, 0o700));
    assert_eq!(fs::metadata(socket).unwrap().uid(), fs::metadata(home.data()).unwrap().uid());
    server.stop().await;
    assert!(!socket.exists() && join(&home.settings()).unwrap().is_none());
}

#[tokio::test]
async fn join_does_not_believe_the_file_of_a_killed_server() {
    let (home, server) = started().await;
    let ready = fs::read_to_string(home.data().join("postmaster.pid")).unwrap();
    server.stop().await;
    fs::write(home.data().join("postmaster.pid"), ready).unwrap();
    assert!(join(&home.settings()).unwrap().is_none());
}

#[tokio::test]
async fn stop_ends_a_busy_server() {
    let (home, server) = started().await;
    let backend = busy_backend(&connect_options(server.socket_folder())).await;
    let postmaster = home.postmaster().unwrap();
    server.stop().await;
    assert!(!lives(backend) && !lives(postmaster));
    let log = fs::read_to_string(home.data_dir().join("postgres.log")).unwrap();
    assert!(log.contains("database system is shut down"), "{log}");
}

#[tokio::test]
async fn dropped_server_ends_and_frees_the_folder() {
    let (home, server) = started().await;
    let postmaster = home.postmaster().unwrap();
    drop(server);
    is_gone(postmaster).await;
    Server::start(&home.settings()).await.unwrap().stop().await;
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_no_server() {
    let home = Home::new().await;
    let settings = home.settings();
    let pid = {
        let (mut start, mut look) = (pin!(Server::start(&settings)), interval(Duration::from_millis(5)));
        // The postmaster exists before it is ready, so each turn looks for its process id before it polls the start.
        poll_fn(|cx| {
            while look.poll_tick(cx).is_ready() {}
            if let Some(pid) = home.postmaster() {
                return Poll::Ready(pid);
            }
            assert!(start.as_mut().poll(cx).is_pending(), "it was ready before it wrote its process id");
            Poll::Pending
        })
        .await
    };
    is_gone(pid).await;
    Server::start(&settings).await.unwrap().stop().await;
}

#[tokio::test]
async fn killed_server_is_restarted() {
    let (home, server) = started().await;
    let options = connect_options(server.socket_folder());
    let first = home.postmaster().unwrap();
    sigkill(first);
    until("another server answers", async || home.postmaster() != Some(first) && options.connect().await.is_ok()).await;
    server.stop().await;
}

#[tokio::test]
async fn server_of_a_killed_supervisor_is_used_and_stopped_by_the_next_one() {
    let home = Home::new().await;
    let (mut supervisor, options) = Supervisor::start(&home).await;
    let postmaster = home.postmaster().unwrap();
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql("create table kept as select 'row' as word").execute(&mut connection).await.unwrap();
    supervisor.sigkill();
    assert_eq!(ask(&connect_options(&join(&home.settings()).unwrap().unwrap()), "select word from kept").await, "row");
    let server = Server::start(&home.settings()).await.unwrap();
    assert!(!lives(postmaster) && home.postmaster() != Some(postmaster));
    assert_eq!(ask(&connect_options(server.socket_folder()), "select word from kept").await, "row");
    server.stop().await;
}

#[tokio::test]
async fn start_waits_for_the_server_of_a_killed_supervisor() {
    let home = Home::new().await;
    let (mut supervisor, options) = Supervisor::start(&home).await;
    let backend = busy_backend(&options).await;
    // A stopped backend keeps its server from ending before we have looked.
    let stopped = Pid::from_raw(backend);
    kill(stopped, Signal::SIGSTOP).unwrap();
    supervisor.sigkill();
    let settings = home.settings();
    let start = Server::start(&settings);
    tokio::pin!(start);
    let early = tokio::time::timeout(Duration::from_millis(500), &mut start).await;
    kill(stopped, Signal::SIGCONT).unwrap();
    assert!(early.is_err(), "{early:?}");
    let server = start.await.unwrap();
    assert!(!lives(backend));
    assert_eq!(ask(&connect_options(server.socket_folder()), "select 'here'").await, "here");
    server.stop().await;
}

#[tokio::test]
async fn stale_files_naming_a_foreign_process_are_no_obstacle() {
    let (home, server) = started().await;
    let socket = connect_options(server.socket_folder()).get_socket().unwrap().clone();
    let pid_file = fs::read_to_string(home.data().join("postmaster.pid")).unwrap();
    let postmaster = home.postmaster().unwrap().to_string();
    server.stop().await;
    // Postgres takes any living process of its own user for a server.
    let owner = fs::metadata(home.data()).unwrap();
    let mut sleep = Command::new("sleep");
    sleep.arg("600");
    if geteuid().is_root() {
        sleep.uid(owner.uid()).gid(owner.gid());
    }
    let mut foreign = sleep.spawn().unwrap();
    let stale = pid_file.replacen(&postmaster, &foreign.id().to_string(), 1);
    let lock = socket.join(".s.PGSQL.5432.lock");
    fs::create_dir(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o700)).unwrap();
    for path in [&home.data().join("postmaster.pid"), &lock] {
        fs::write(path, &stale).unwrap();
    }
    for path in [&home.data().join("postmaster.pid"), &lock, &socket] {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let started = Server::start(&home.settings()).await;
    let unharmed = foreign.try_wait().unwrap().is_none();
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    let server = started.unwrap();
    assert!(unharmed);
    assert_eq!(connect_options(server.socket_folder()).get_socket(), Some(&socket));
    server.stop().await;
}

#[tokio::test]
async fn half_made_data_folder_is_swept() {
    let home = Home::new().await;
    let half_made = home.data_dir().join("postgres.new-1");
    fs::create_dir_all(half_made.join("base")).unwrap();
    fs::write(half_made.join("PG_VERSION"), "15\n").unwrap();
    let owner = fs::metadata(home.data()).unwrap();
    std::os::unix::fs::chown(&half_made, Some(owner.uid()), Some(owner.gid())).unwrap();
    fs::create_dir(home.data_dir().join("postgres.new-2")).unwrap();
    let server = Server::start(&home.settings()).await.unwrap();
    let names: Vec<_> = fs::read_dir(home.data_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("postgres.new"))
        .collect();
    assert!(names.is_empty(), "{names:?}");
    server.stop().await;
}

#[tokio::test]
async fn data_of_another_major_is_refused_by_both_versions() {
    let home = Home::new().await;
    let file = home.data().join("PG_VERSION");
    let ours = fs::read_to_string(&file).unwrap();
    fs::write(&file, "7\n").unwrap();
    let error = Server::start(&home.settings()).await.unwrap_err();
    let line = error.to_string();
    assert!(matches!(error, Error::VersionMismatch { .. }), "{line}");
    assert!(line.contains("Postgres 7") && line.contains(ours.trim()), "{line}");
}

#[tokio::test]
async fn failed_start_quotes_the_servers_last_error() {
    let home = Home::new().await;
    let configuration = home.data().join("postgresql.conf");
    let good = fs::read_to_string(&configuration).unwrap();
    fs::write(&configuration, format!("{good}\nmax_connections = many\n")).unwrap();
    let error = Server::start(&home.settings()).await.unwrap_err();
    let line = error.to_string();
    assert!(matches!(error, Error::Start { .. }), "{line}");
    assert!(line.contains("FATAL:") && line.contains("postgres.log"), "{line}");
    // Nothing hinders the next start.
    fs::write(&configuration, good).unwrap();
    Server::start(&home.settings()).await.unwrap().stop().await;
}

#[tokio::test]
async fn socket_is_kept_in_the_runtime_folder_unless_its_path_is_too_long() {
    let home = Home::new().await;
    for (name, is_kept) in [("run,time".to_owned(), true), ("r".repeat(90), false)] {
        let runtime_dir = home.path().join(name);
        fs::create_dir(&runtime_dir).unwrap();
        open_to_all(&runtime_dir);
        let settings = Settings { runtime_dir: Some(runtime_dir.clone()), ..home.settings() };
        let server = Server::start(&settings).await.unwrap();
        let options = connect_options(&join(&settings).unwrap().unwrap());
        let parent = options.get_socket().unwrap().parent();
        assert_eq!(parent, Some(if is_kept { &*runtime_dir } else { Path::new("/tmp") }));
        assert_eq!(ask(&options, "select 'found'").await, "found");
        server.stop().await;
    }
}

#[tokio::test]
async fn socket_folder_planted_by_somebody_else_is_not_used() {
    let (home, server) = started().await;
    let expected = connect_options(server.socket_folder()).get_socket().unwrap().clone();
    server.stop().await;
    let elsewhere = home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // Private and of the right user: nothing but the link itself is wrong.
    fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
    let owner = fs::metadata(home.data()).unwrap();
    std::os::unix::fs::chown(&elsewhere, Some(owner.uid()), Some(owner.gid())).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &expected).unwrap();
    let started = Server::start(&home.settings()).await;
    fs::remove_file(&expected).unwrap();
    let server = started.unwrap();
    assert_ne!(connect_options(server.socket_folder()).get_socket(), Some(&expected));
    assert_eq!(ask(&connect_options(server.socket_folder()), "select 'safe'").await, "safe");
    server.stop().await;
}

#[tokio::test]
async fn data_dir_that_is_a_file_is_named() {
    let home = Home::empty();
    fs::write(home.data_dir(), "").unwrap();
    let line = Server::start(&home.settings()).await.unwrap_err().to_string();
    assert!(line.contains(home.data_dir().to_str().unwrap()), "{line}");
}

#[tokio::test]
async fn chosen_folder_closed_to_the_servers_user_is_refused_by_name() {
    if !geteuid().is_root() {
        // Only root lends Postgres another user.
        return;
    }
    let home = Home::empty();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Server::start(&home.settings()).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert!(error.to_string().contains(home.data_dir().to_str().unwrap()));
    assert!(!home.data_dir().exists());
}
