//! The private Postgres server: finds installed binaries or downloads them, makes a data folder, runs `postgres` as
//! long as this process lives, and restarts it if it dies.
//!
//! It knows nothing of what the database is for: no schema, no pool, no client library, no environment variable.
//!
//! | module | its part |
//! |---|---|
//! | `account` | the system user that runs Postgres when we are root |
//! | `ancestors` | whether another user could replace a folder on the path to the data |
//! | `binaries` | which Postgres to run |
//! | `mirror` | where programs may be downloaded from |
//! | `download` | Postgres's programs, where none are installed |
//! | `data_dir` | where everything lives, and the lock that makes one supervisor |
//! | `cluster` | `initdb`, the database, the password |
//! | `files` | access to files which that user may have tampered with |
//! | `socket` | the folder of the Unix socket |
//! | `greeting` | whether the process on the socket is the server, before it gets a password |
//! | `pid_file` | what Postgres says of itself in `postmaster.pid` |
//! | `leftovers` | processes of a server whose supervisor is gone |
//! | `postmaster` | the thread that starts, watches and restarts the server |

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

/// The superuser of the private server. Not the name of our schema: `"$user"` in the search_path would lead into it.
pub const ROLE: &str = "postgres";
/// The database that is made in the private server.
pub const DATABASE: &str = "cdc_export";

/// The port of the private server. It is only part of the socket's name: the server listens on no network.
pub const PORT: u16 = 5432;

/// The signals that end a server, each with the time it may take: a fast shutdown with a checkpoint, an immediate one
/// (the next start recovers), and SIGKILL.
const ESCALATION: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(20)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// Returns the bytes at a URL, or an error if there are more than the second argument says. It blocks. An https URL may
/// redirect to https only; an http URL, which is one of this machine, may not redirect. The error says why there are no
/// bytes, without the URL.
pub type Fetch = fn(&str, usize) -> Result<Vec<u8>, String>;

/// Where the private server lives and where its binaries may be.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the server's data, log, password and lock.
    pub data_dir: PathBuf,
    /// Whether `data_dir` is the default. Root then uses `/var/lib/cdc-export` where the user that runs Postgres can't
    /// reach it.
    pub data_dir_is_default: bool,
    /// The folder of `postgres` and `initdb`; unset, installed ones are looked for.
    pub bin_dir: Option<PathBuf>,
    /// Whether installed programs count for nothing, as in a test of the download.
    pub ignores_installed: bool,
    /// Where to download the programs from if none are installed; `None`: nothing is downloaded.
    pub download: Option<Mirror>,
    /// Downloads, if something is to be downloaded.
    pub fetch: Fetch,
    /// The folders of `PATH`.
    pub search_path: Vec<PathBuf>,
    /// `XDG_RUNTIME_DIR`: the preferred home of the socket.
    pub runtime_dir: Option<PathBuf>,
}

/// How to connect to a private server: as [`ROLE`] to [`DATABASE`], by the socket of [`PORT`] in a folder.
#[derive(Clone)]
pub struct Endpoint {
    /// The folder of the server's Unix socket.
    pub socket_folder: PathBuf,
    /// The password of [`ROLE`].
    pub password: String,
}

/// Without the password.
impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint").field("socket_folder", &self.socket_folder).finish_non_exhaustive()
    }
}

/// What an operator without a Postgres can do.
const HOW_TO_INSTALL: &str = "set DATABASE_URL, or install one (Debian, Ubuntu: `apt-get install postgresql`; Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql@17`)";

impl Settings {
    /// Where to download from; `None` too where the operator chose a folder of programs.
    fn mirror(&self) -> Option<&Mirror> {
        self.download.as_ref().filter(|_| self.bin_dir.is_none())
    }
}

/// Why there is no private server. Every message is one line that says what to do about it or where to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No Postgres on this machine, and none to be downloaded.
    #[error("no installed Postgres found: {HOW_TO_INSTALL}")]
    NotInstalled,
    /// No Postgres on this machine, and the download of one failed.
    #[error("no installed Postgres found, and {url} can't be downloaded ({why}): {HOW_TO_INSTALL}")]
    Download {
        /// What was asked for.
        url: String,
        /// What went wrong with it.
        why: String,
    },
    /// The chosen folder of binaries has none.
    #[error("PG_BIN_DIR: no `postgres` and `initdb` in {}", .0.display())]
    NoBinaries(PathBuf),
    /// A program can't be run, or answers nonsense.
    #[error("can't run {}", .program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The data was written by another major version than any that may run.
    #[error(
        "the data in {} is of Postgres {data}, the binaries found are of {binaries}: install Postgres {data} or set PG_BIN_DIR to it", .folder.display()
    )]
    VersionMismatch {
        /// The folder of the data.
        folder: PathBuf,
        /// The major version that wrote it.
        data: u32,
        /// The major versions found, newest first.
        binaries: String,
    },
    /// There is something in the data's place, but no data.
    #[error("{} is not a Postgres data folder: it has no valid PG_VERSION", .0.display())]
    NotData(PathBuf),
    /// Another process supervises a server in this folder.
    #[error("another process already runs the Postgres server in {}", .0.display())]
    AlreadySupervised(PathBuf),
    /// Root found no user to run Postgres as.
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
    /// Another user could put another folder in the place of the data folder, and root would use that.
    #[error(
        "DATA_DIR {}: {} {why}: choose a place below root's own folders, as {SYSTEM_DATA_DIR}, or start as an ordinary user", .data_dir.display(), .part.display()
    )]
    Unguarded {
        /// The folder asked for.
        data_dir: PathBuf,
        /// It, or a folder or link on the way to it.
        part: PathBuf,
        /// What is wrong with that.
        why: &'static str,
    },
    /// A file or folder of ours can't be read or written.
    #[error("can't {action} {}", .path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No folder is private and short enough for a socket.
    #[error("no private folder for the Postgres socket can be made under {}", .0.display())]
    NoSocketFolder(PathBuf),
    /// `initdb`, or the making of the database or its password, failed.
    #[error("can't prepare the Postgres data folder {}: {detail}", .folder.display())]
    Initialise {
        /// The data folder.
        folder: PathBuf,
        /// The line that says why.
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
        "what listens in {} {why}, and the private server asks for SCRAM-SHA-256: end it, or see its pg_hba.conf", .folder.to_string_lossy().escape_debug()
    )]
    Impostor {
        /// The socket's folder.
        folder: PathBuf,
        /// What it is or does instead.
        why: String,
    },
    /// Processes of an earlier server are still there after SIGKILL.
    #[error("processes of an earlier Postgres still use {} and can't be ended: {pids:?}", .folder.display())]
    Leftovers {
        /// The folder they use.
        folder: PathBuf,
        /// Their ids.
        pids: Vec<i32>,
    },
    /// The supervisor's thread or task can't run or broke.
    #[error("the supervisor of Postgres can't run")]
    Supervisor(#[source] io::Error),
}

impl Error {
    /// For `map_err` around one file operation.
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { action, path, source }
    }
}

/// A running private server. Its supervisor restarts it when it dies. [`stop`](Server::stop) ends it and waits;
/// dropping this value only signals it.
pub struct Server {
    endpoint: Endpoint,
    control: Arc<Control>,
    /// Closed by the supervising thread when the server is gone and the folder unlocked.
    ended: oneshot::Receiver<()>,
}

impl Server {
    /// Starts the server, and makes its data folder first where there is none. Returns once the server accepts
    /// connections, however long a recovery takes; dropping the future gives the start up.
    pub async fn start(settings: &Settings) -> Result<Server, Error> {
        let settings = settings.clone();
        let (postmaster, endpoint) = tokio::task::spawn_blocking(move || prepare(&settings))
            .await
            .map_err(|panic| Error::Supervisor(io::Error::other(panic)))??;
        let (ready_sender, ready) = oneshot::channel();
        let (ended_sender, ended) = oneshot::channel();
        // Made before the first wait, so that a start that is given up stops the server too.
        let server = Server { endpoint, control: postmaster.control(), ended };
        // Not a thread of the runtime: the kernel ends the server with the thread that started it.
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

    /// How to connect. It stays true across restarts of the server.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Ends the server and returns when it is gone: 20 s to roll back and checkpoint, 5 s to drop everything, then
    /// SIGKILL.
    pub async fn stop(mut self) {
        for (signal, timeout) in ESCALATION {
            self.control.stop(signal);
            if tokio::time::timeout(timeout, &mut self.ended).await.is_ok() {
                tracing::info!(event = "postgres_stopped", signal = %signal, "Postgres stopped");
                return;
            }
            tracing::warn!(event = "postgres_stop_slow", signal = %signal, seconds = timeout.as_secs(), "Postgres is still there");
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

impl Drop for Server {
    /// Signals and doesn't wait: a destructor may run on the runtime. After `stop` there is nothing left to signal.
    fn drop(&mut self) {
        self.control.stop(Signal::SIGINT);
    }
}

/// The folder of a private server, existing or not.
#[derive(Clone, Debug)]
pub struct Location {
    /// The folder: that of the settings, or the system's where root uses that instead.
    pub data_dir: PathBuf,
    /// Whether there is a server in it: a stopped one, a running one, or one that another process is making.
    pub has_server: bool,
}

/// Where the private server is, or would be. Makes nothing.
///
/// # Errors
/// If the folder can't be used for one.
pub fn locate(settings: &Settings) -> Result<Location, Error> {
    let data_dir = DataDir::find(settings)?;
    let has_server = data_dir.cluster().exists() || data_dir.is_supervised()?;
    let data_dir = if has_moved(settings, &data_dir) { data_dir.path } else { settings.data_dir.clone() };
    Ok(Location { data_dir, has_server })
}

/// Whether root uses the system's folder instead of the default one.
fn has_moved(settings: &Settings, data_dir: &DataDir) -> bool {
    settings.data_dir_is_default && data_dir.path == Path::new(SYSTEM_DATA_DIR)
}

/// How to connect to the server that another process supervises in this data folder; `None` where there is none or it
/// isn't ready.
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
    // The pid file of a killed server says `ready` until the next supervisor removes it.
    let server = PidFile::read(&folder)
        .filter(|server| server.ready && processes_in(&folder, &data, &data_dir.account).contains(&server.pid));
    let Some(server) = server else {
        return Ok(None);
    };
    let password = cluster::read_password(&data_dir)?;
    greeting::require_scram(&server.socket_folder, &data_dir.account)?;
    Ok(Some(Endpoint { socket_folder: server.socket_folder, password }))
}

/// Everything that comes before the server's start. Blocks.
fn prepare(settings: &Settings) -> Result<(Postmaster, Endpoint), Error> {
    let data_dir = DataDir::find(settings)?;
    let (data_dir, binaries) = match (Binaries::find(settings, &data_dir), settings.mirror()) {
        (Ok(binaries), _) => (LockedDataDir::open(data_dir)?, binaries),
        (Err(Error::NotInstalled | Error::VersionMismatch { data: download::MAJOR, .. }), Some(mirror)) => {
            // Locked first, so that only one of two processes downloads.
            let data_dir = LockedDataDir::open(data_dir)?;
            if !download::programs(&data_dir).exists() {
                download::place(mirror, settings.fetch, &data_dir)?;
            }
            // There is no other candidate, so an error of this one is the start's error.
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
