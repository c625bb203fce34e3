#![doc = include_str!("../README.md")]

mod account;
mod binaries;
mod cluster;
mod data_dir;
mod download;
mod pid_file;
mod postmaster;
mod socket;

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::binaries::Binaries;
use crate::data_dir::DataDir;
use crate::pid_file::PidFile;
use crate::postmaster::Postmaster;

/// The superuser of the private server. It must differ from the name of the service's schema, because `"$user"` in the
/// search path would resolve to that schema.
pub const ROLE: &str = "postgres";
pub const DATABASE: &str = "cdc_export";

/// The port of the private server. It is only used in the socket's name, because the server listens on no network.
pub const PORT: u16 = 5432;

const DEFAULT_DATA_DIR: &str = "./data";

/// The folder that root uses if others may write to the default one, or the user that runs Postgres can't enter it.
const SYSTEM_DATA_DIR: &str = "/var/lib/cdc-export";

/// Downloads the file at an https URL. The error is the reason without the URL.
pub type Fetch = fn(String) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;

#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of the server's data, log and lock. `None` is `./data`. Root then uses `/var/lib/cdc-export` instead
    /// if others may write to `./data`, or the user that runs Postgres can't enter it.
    pub data_dir: Option<PathBuf>,
    /// The folder of `postgres` and `initdb`. `None` searches for installed ones.
    pub bin_dir: Option<PathBuf>,
    /// True if installed programs are ignored. Tests of the download set it.
    pub ignores_installed: bool,
    /// The function that downloads the programs if none are installed. `None` disables the download.
    pub download: Option<Fetch>,
    pub search_path: Vec<PathBuf>,
    /// The preferred parent of the socket's folder: `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
}

/// The error of a private server. Every message is one line with an advice or a place to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No Postgres is installed, and none could be downloaded. The text is empty, or the URL and the reason.
    #[error(
        "no installed Postgres found{0}: set DATABASE_URL, or install one (Debian, Ubuntu: `apt-get install postgresql`; \
         Fedora: `dnf install postgresql-server`; macOS: `brew install postgresql@17`)"
    )]
    NotInstalled(String),
    #[error("PG_BIN_DIR: no `postgres` and `initdb` in {}", .0.display())]
    NoBinaries(PathBuf),
    /// A program can't be run or failed, or its output is unexpected.
    #[error("{} failed: {detail}", .program.display())]
    Program {
        program: PathBuf,
        /// The line of the output that explains the failure, or the reason why the program can't be run.
        detail: String,
    },
    #[error(
        "the data in {} is of Postgres {data}, the versions found are {found}: install Postgres {data} or set PG_BIN_DIR to it", .folder.display()
    )]
    VersionMismatch {
        folder: PathBuf,
        data: u32,
        /// The major versions found, newest first.
        found: String,
    },
    #[error("{} is not a Postgres data folder: it has no valid PG_VERSION", .0.display())]
    NotData(PathBuf),
    #[error("another process already runs the Postgres server in {}: stop it, or choose another DATA_DIR", .0.display())]
    AlreadySupervised(PathBuf),
    #[error(
        "Postgres doesn't run as root, and there is neither a user `postgres` nor `nobody`: create one, or start as an ordinary user"
    )]
    NoAccount,
    #[error(
        "the user `{user}`, who runs Postgres, can't reach {}: choose another DATA_DIR or open the folders above it", .folder.display()
    )]
    Unreachable { folder: PathBuf, user: String },
    /// This process is root, and another user could replace the data folder.
    #[error(
        "DATA_DIR: {} {why}: choose a place below root's own folders, as {SYSTEM_DATA_DIR}, or start as an ordinary user", .part.display()
    )]
    Unguarded { part: PathBuf, why: &'static str },
    #[error("can't {action} {}", .path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("no private folder for the Postgres socket can be made in /tmp")]
    NoSocketFolder,
    #[error("Postgres did not start ({}): {detail}", .log.display())]
    Start { log: PathBuf, detail: String },
}

impl Error {
    /// Returns the function that `map_err` calls for a failed file operation.
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { action, path, source }
    }
}

/// A running private server. A task of the runtime restarts it after a failure. [`stop`](Server::stop) ends the server
/// and waits. Dropping this value only requests the end.
#[derive(Debug)]
pub struct Server {
    socket_folder: PathBuf,
    /// The supervisor stops the server when it gets a message, and when this sender is dropped.
    stop: oneshot::Sender<()>,
    supervisor: JoinHandle<()>,
}

impl Server {
    /// Starts the server. Creates its data folder if there is none. Stops a server in the folder that a killed process
    /// left running.
    ///
    /// Returns when the server accepts connections. A recovery may take any time. Dropping the future cancels the
    /// start.
    ///
    /// # Errors
    /// [`Error::AlreadySupervised`] if another process runs a server in the folder, or any other error of the start.
    pub async fn start(settings: &Settings) -> Result<Server, Error> {
        let data_dir = DataDir::find(settings)?;
        let found = Binaries::find(settings, &data_dir).await?;
        let lock = data_dir.lock().await?;
        let binaries = match found {
            Some(binaries) => binaries,
            None => {
                download::ensure(settings, &data_dir).await?;
                Binaries::downloaded(&data_dir).await?
            }
        };
        cluster::ensure(&data_dir, &binaries).await?;
        let socket_folder = socket::make_folder(settings.runtime_dir.as_deref(), &data_dir)?;
        let postmaster = Postmaster { socket_folder: socket_folder.clone(), binaries, data_dir, _lock: lock };
        let process = postmaster.start().await?;
        let (stop, stopped) = oneshot::channel();
        let supervisor = tokio::spawn(postmaster.supervise(process, stopped));
        Ok(Server { socket_folder, stop, supervisor })
    }

    /// Returns the folder of the server's Unix socket. It stays the same across restarts of the server. A client
    /// connects as [`ROLE`] to [`DATABASE`], by the socket of [`PORT`], without a password.
    pub fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// Ends the server and waits for its end. Sends SIGINT, after 20 s SIGQUIT, and after 5 s SIGKILL.
    pub async fn stop(self) {
        // An error means that the supervisor has ended.
        let _ = self.stop.send(());
        let _ = self.supervisor.await;
    }
}

/// The data folder of a private server. It may not exist.
#[derive(Clone, Debug)]
pub struct Location {
    /// The folder of the settings, or the system's folder if root uses it instead.
    pub data_dir: PathBuf,
    /// True if the folder has a stopped or running server.
    pub has_server: bool,
}

/// Returns the data folder of the private server. Creates nothing.
pub fn locate(settings: &Settings) -> Result<Location, Error> {
    let data_dir = DataDir::find(settings)?;
    Ok(Location { has_server: data_dir.cluster().exists(), data_dir: data_dir.named })
}

/// Returns the folder of the socket of the server that another process runs in this data folder. Returns `None` if
/// there is none or it is not ready.
pub fn join(settings: &Settings) -> Result<Option<PathBuf>, Error> {
    // The pid file of a killed server states `ready` until the next supervisor removes it.
    let server = PidFile::read(&DataDir::find(settings)?.cluster());
    let server = server.filter(|server| server.ready && socket::answers(&server.socket_folder));
    Ok(server.map(|server| server.socket_folder))
}
