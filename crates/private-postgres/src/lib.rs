//! The private Postgres server of a process.
//!
//! This crate finds installed binaries or downloads them, creates a data folder, runs `postgres` until the process
//! ends, and restarts it after a failure.
//!
//! It must not know the use of the database: no schema, no pool, no client library, no environment variable.
//!
//! ```no_run
//! use private_postgres::{DATABASE, PORT, ROLE, Server, Settings, mirror::Mirror};
//!
//! # async fn run() -> Result<(), private_postgres::Error> {
//! let settings = Settings {
//!     data_dir: "/srv/app/data".into(),
//!     data_dir_is_default: false,
//!     bin_dir: None,
//!     ignores_installed: false,
//!     download: Some(Mirror::default()),
//!     fetch: |url, _limit| Err(format!("{url}: this program downloads nothing")),
//!     search_path: vec!["/usr/bin".into()],
//!     runtime_dir: None,
//! };
//! let server = Server::start(&settings).await?;
//! let folder = server.endpoint().socket_folder.display();
//! println!("psql -h {folder} -p {PORT} -U {ROLE} {DATABASE}");
//! server.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! | module | purpose |
//! |---|---|
//! | `account` | the system user that runs Postgres if this process is root |
//! | `ancestors` | the check that no other user can replace a folder on the path to the data |
//! | `binaries` | the selection of the Postgres binaries |
//! | `mirror` | the source of downloads |
//! | `download` | the download of the Postgres programs if none are installed |
//! | `data_dir` | the data folder and the lock of its only supervisor |
//! | `cluster` | `initdb`, the database, the password |
//! | `files` | access to files that the account's user may have tampered with |
//! | `socket` | the folder of the Unix socket |
//! | `greeting` | the check of the server on the socket before it gets a password |
//! | `pid_file` | the parser of `postmaster.pid` |
//! | `leftovers` | the processes of a server whose supervisor was killed |
//! | `postmaster` | the thread that starts, monitors and restarts the server |

mod account;
mod ancestors;
mod binaries;
mod cluster;
mod data_dir;
mod download;
mod files;
mod greeting;
mod leftovers;
pub mod mirror;
mod pid_file;
mod postmaster;
mod socket;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::sync::oneshot;

use crate::binaries::Binaries;
use crate::data_dir::{DataDir, LockedDataDir, SYSTEM_DATA_DIR};
use crate::leftovers::processes_in;
use crate::mirror::Mirror;
use crate::pid_file::PidFile;
use crate::postmaster::{Control, Postmaster};
use crate::socket::SocketFolder;

/// The superuser of the private server. It must differ from the name of the service's schema, because `"$user"` in the
/// search path would resolve to that schema.
pub const ROLE: &str = "postgres";
/// The database in the private server.
pub const DATABASE: &str = "cdc_export";

/// The port of the private server. It is only used in the socket's name, because the server listens on no network.
pub const PORT: u16 = 5432;

/// The signals that end a server, each with its time limit: a fast shutdown with a checkpoint, an immediate shutdown
/// with a recovery at the next start, and SIGKILL.
const ESCALATION: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(20)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Returns the bytes at a URL. Returns an error if there are more bytes than the second argument. It blocks.
///
/// An https URL may redirect to https only. An http URL, which is one of this machine, may not redirect. The error is
/// the reason without the URL.
pub type Fetch = fn(&str, usize) -> Result<Vec<u8>, String>;

/// The settings of a private server: its data folder and its binaries.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the server's data, log, password and lock.
    pub data_dir: PathBuf,
    /// True if `data_dir` is the default. Root then uses `/var/lib/cdc-export` instead if the user that runs Postgres
    /// can't enter the default folder.
    pub data_dir_is_default: bool,
    /// The folder of `postgres` and `initdb`. `None` searches for installed ones.
    pub bin_dir: Option<PathBuf>,
    /// True if installed programs are ignored. Tests of the download set it.
    pub ignores_installed: bool,
    /// The source of a download if no programs are installed. `None` disables the download.
    pub download: Option<Mirror>,
    /// The function that downloads a file.
    pub fetch: Fetch,
    /// The folders of `PATH`.
    pub search_path: Vec<PathBuf>,
    /// The preferred parent of the socket's folder: `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

/// The connection data of a private server. A client connects as [`ROLE`] to [`DATABASE`], by the socket of [`PORT`] in
/// a folder.
#[derive(Clone)]
pub struct Endpoint {
    /// The folder of the server's Unix socket.
    pub socket_folder: PathBuf,
    /// The password of [`ROLE`].
    pub password: String,
}

/// Does not print the password.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("socket_folder", &self.socket_folder).finish_non_exhaustive()
    }
}

/// The advice for an operator without an installed Postgres.
const HOW_TO_INSTALL: &str = "set DATABASE_URL, or install one (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql@17`)";

impl Settings {
    /// Returns the source of a download. Returns `None` also if the operator chose a folder of programs.
    fn mirror(&self) -> Option<&Mirror> {
        self.download.as_ref().filter(|_| self.bin_dir.is_none())
    }
}

/// The error of a private server. Every message is one line with an advice or a place to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No Postgres is installed, and the download is disabled.
    #[error("no installed Postgres found: {HOW_TO_INSTALL}")]
    NotInstalled,
    /// No Postgres is installed, and the download failed.
    #[error("no installed Postgres found, and {url} can't be downloaded ({why}): {HOW_TO_INSTALL}")]
    Download {
        /// The URL of the download.
        url: String,
        /// The reason of the failure.
        why: String,
    },
    /// The folder that the operator chose has no binaries.
    #[error("PG_BIN_DIR: no `postgres` and `initdb` in {}", .0.display())]
    NoBinaries(PathBuf),
    /// A program can't be run, or its output is unexpected.
    #[error("can't run {}", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The major version of the data differs from that of every usable Postgres.
    #[error(
        "the data in {} is of Postgres {data}, the binaries found are of {binaries}: install Postgres {data} or set PG_BIN_DIR to it", .folder.display()
    )]
    VersionMismatch {
        /// The folder of the data.
        folder: PathBuf,
        /// The major version of the data.
        data: u32,
        /// The major versions found, newest first.
        binaries: String,
    },
    /// The path of the data exists and is not a Postgres data folder.
    #[error("{} is not a Postgres data folder: it has no valid PG_VERSION", .0.display())]
    NotData(PathBuf),
    /// Another process supervises a server in this folder.
    #[error("another process already runs the Postgres server in {}", .0.display())]
    AlreadySupervised(PathBuf),
    /// This process is root, and there is no user that can run Postgres.
    #[error(
        "Postgres doesn't run as root, and there is neither a user `postgres` nor `nobody`: create one, or start as an ordinary user"
    )]
    NoAccount,
    /// The user that runs Postgres can't enter the folder.
    #[error(
        "the user `{user}`, who runs Postgres, can't reach {}: choose another DATA_DIR or open the folders above it", .folder.display()
    )]
    Unreachable {
        /// The folder that only root can reach.
        folder: PathBuf,
        /// The user's name or number.
        user: String,
    },
    /// This process is root, and another user could replace the data folder.
    #[error(
        "DATA_DIR {}: {} {why}: choose a place below root's own folders, as {SYSTEM_DATA_DIR}, or start as an ordinary user", .data_dir.display(), .part.display()
    )]
    Unguarded {
        /// The configured folder.
        data_dir: PathBuf,
        /// The unsafe part of its path.
        part: PathBuf,
        /// The defect of that part.
        why: &'static str,
    },
    /// An operation on a file or folder failed.
    #[error("can't {action} {}", .path.display())]
    File {
        /// The operation.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// There is no private folder with a path that is short enough for a socket.
    #[error("no private folder for the Postgres socket can be made under {}", .0.display())]
    NoSocketFolder(PathBuf),
    /// `initdb` failed, or the creation of the database or of its password.
    #[error("can't prepare the Postgres data folder {}: {detail}", .folder.display())]
    Initialise {
        /// The data folder.
        folder: PathBuf,
        /// The line of the output that explains the failure.
        detail: String,
    },
    /// Postgres ended before it was ready.
    #[error("Postgres did not start ({}): {detail}", .log.display())]
    Start {
        /// The server's log.
        log: PathBuf,
        /// The log's last error.
        detail: String,
    },
    /// Another process listens on the server's socket, or the server was configured to ask for another authentication.
    #[error(
        "the server socket in {} {why}, and the private server asks for SCRAM-SHA-256: end its process, or check its pg_hba.conf", .folder.to_string_lossy().escape_debug()
    )]
    Impostor {
        /// The socket's folder.
        folder: PathBuf,
        /// The defect of the socket or of its process.
        why: String,
    },
    /// Processes of an earlier server still run after SIGKILL.
    #[error("processes of an earlier Postgres still use {} and can't be ended: {pids:?}", .folder.display())]
    Leftovers {
        /// The folder that the processes use.
        folder: PathBuf,
        /// The process ids.
        pids: Vec<i32>,
    },
    /// The supervisor's thread or task could not start, or panicked.
    #[error("the supervisor of Postgres can't run")]
    Supervisor(#[source] io::Error),
}

impl Error {
    /// Returns the function that `map_err` calls for a failed file operation.
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { action, path, source }
    }
}

/// A running private server. Its supervisor restarts it after a failure. [`stop`](Server::stop) ends the server and
/// waits. Dropping this value only signals the server.
pub struct Server {
    endpoint: Endpoint,
    control: Arc<Control>,
    /// The supervising thread closes this channel when the server has ended and the folder is unlocked.
    ended: oneshot::Receiver<()>,
}

impl Server {
    /// Starts the server. Creates its data folder if there is none.
    ///
    /// Returns when the server accepts connections. A recovery may take any time. Dropping the future cancels the
    /// start.
    pub async fn start(settings: &Settings) -> Result<Server, Error> {
        let settings = settings.clone();
        let (postmaster, endpoint) = tokio::task::spawn_blocking(move || prepare(&settings))
            .await
            .map_err(|panic| Error::Supervisor(io::Error::other(panic)))??;
        let (ready_sender, ready) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        // The value exists before the first wait, so that a cancelled start stops the server too.
        let server = Server { endpoint, control: postmaster.control(), ended };
        // The kernel ends the server when the thread that started it ends. So this must not be a thread of the runtime.
        std::thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || {
                postmaster.run(ready_sender);
                drop(ended_sender);
            })
            .map_err(Error::Supervisor)?;
        ready.await.map_err(|gone| Error::Supervisor(io::Error::other(gone)))??;
        Ok(server)
    }

    /// Returns the connection data. They stay the same across restarts of the server.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Ends the server and waits for its end. Sends SIGINT, after 20 s SIGQUIT, and after 5 s SIGKILL.
    pub async fn stop(mut self) {
        for (signal, timeout) in ESCALATION {
            self.control.stop(signal);
            if tokio::time::timeout(timeout, &mut self.ended).await.is_ok() {
                tracing::info!(event = "postgres_stopped", signal = %signal, "Postgres stopped");
                return;
            }
            tracing::warn!(event = "postgres_stop_slow", signal = %signal, seconds = timeout.as_secs(), "Postgres has not stopped yet");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Drop for Server {
    /// Signals the server and does not wait, because a destructor may run on the runtime. Does nothing after `stop`.
    fn drop(&mut self) {
        self.control.stop(Signal::SIGINT);
    }
}

/// The data folder of a private server. It may not exist.
#[derive(Clone, Debug)]
pub struct Location {
    /// The folder of the settings, or the system's folder if root uses it instead.
    pub data_dir: PathBuf,
    /// True if the folder has a stopped or running server, or if another process is creating one.
    pub has_server: bool,
}

/// Returns the data folder of the private server. Creates nothing.
///
/// ```no_run
/// # fn shown(settings: &private_postgres::Settings) -> Result<(), private_postgres::Error> {
/// let place = private_postgres::locate(settings)?;
/// let state = if place.has_server { "has a server" } else { "is free" };
/// println!("{} {state}", place.data_dir.display());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// If the folder can't be used for a private server.
pub fn locate(settings: &Settings) -> Result<Location, Error> {
    let data_dir = DataDir::find(settings)?;
    let has_server = data_dir.cluster().exists() || data_dir.is_supervised()?;
    let data_dir = if has_moved(settings, &data_dir) { data_dir.path } else { settings.data_dir.clone() };
    Ok(Location { data_dir, has_server })
}

/// Returns true if root uses the system's folder instead of the default one.
fn has_moved(settings: &Settings, data_dir: &DataDir) -> bool {
    settings.data_dir_is_default && data_dir.path == Path::new(SYSTEM_DATA_DIR)
}

/// Returns the connection data of the server that another process supervises in this data folder. Returns `None` if
/// there is none or it is not ready.
///
/// ```no_run
/// # fn shown(settings: &private_postgres::Settings) -> Result<(), private_postgres::Error> {
/// match private_postgres::join(settings)? {
///     Some(endpoint) => println!("its socket is in {}", endpoint.socket_folder.display()),
///     None => println!("no process runs a server in this folder"),
/// }
/// # Ok(())
/// # }
/// ```
pub fn join(settings: &Settings) -> Result<Option<Endpoint>, Error> {
    let data_dir = DataDir::find(settings)?;
    if !data_dir.is_supervised()? {
        return Ok(None);
    }
    let data = data_dir.cluster();
    let folder = match data_dir.held_cluster() {
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        held => held?,
    };
    // The pid file of a killed server states `ready` until the next supervisor removes it. So the process is checked.
    let server = PidFile::read(&folder)
        .filter(|server| server.ready && processes_in(&folder, &data, &data_dir.account).contains(&server.pid));
    let Some(server) = server else {
        return Ok(None);
    };
    let password = cluster::read_password(&data_dir)?;
    greeting::require_scram(&server.socket_folder, &data_dir.account)?;
    Ok(Some(Endpoint { socket_folder: server.socket_folder, password }))
}

/// Prepares the start of the server: selects the binaries and creates the cluster and the socket's folder. Blocks.
fn prepare(settings: &Settings) -> Result<(Postmaster, Endpoint), Error> {
    let data_dir = DataDir::find(settings)?;
    let (data_dir, binaries) = match (Binaries::find(settings, &data_dir), settings.mirror()) {
        (Ok(binaries), _) => (LockedDataDir::open(data_dir)?, binaries),
        (Err(Error::NotInstalled | Error::VersionMismatch { data: download::MAJOR, .. }), Some(mirror)) => {
            // The folder is locked first, so that only one of two processes downloads.
            let data_dir = LockedDataDir::open(data_dir)?;
            if !download::programs(&data_dir).exists() {
                download::place(mirror, settings.fetch, &data_dir)?;
            }
            // There is no other candidate, so its error is the error of the start.
            let binaries = Binaries::only(&download::programs(&data_dir), &data_dir)?;
            (data_dir, binaries)
        }
        (Err(error), _) => return Err(error),
    };
    if has_moved(settings, &data_dir) {
        tracing::info!(event = "data_dir_moved", data_dir = %data_dir.path.display(), "the user that runs Postgres can't reach the default data folder, using this one");
    }
    let password = cluster::ensure(&data_dir, &binaries)?;
    let socket = SocketFolder::make(settings.runtime_dir.as_deref(), &data_dir)?;
    let endpoint = Endpoint { socket_folder: socket.path.clone(), password };
    Ok((Postmaster::new(data_dir, binaries, socket), endpoint))
}
