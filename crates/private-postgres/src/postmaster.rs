//! Supervises the server process. One thread starts, monitors and restarts it, and runs as long as the server. Other
//! threads can only request a stop.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions};
use tokio::sync::oneshot;

use crate::binaries::Binaries;
use crate::cluster::last_error;
use crate::data_dir::LockedDataDir;
use crate::pid_file::PidFile;
use crate::socket::SocketFolder;
use crate::{Error, PORT, greeting, leftovers};

/// The pause before the first restart. It doubles before each further one that follows soon.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause before a restart.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A server that ran this long before it died is restarted after [`FIRST_PAUSE`] again.
const STEADY: Duration = Duration::from_secs(60);

/// The pause between two checks of a server that is not ready yet.
const POLL: Duration = Duration::from_millis(20);

/// The interval at which a long start is logged, for example one with a recovery.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);

/// The size above which the server's log is rotated before a start. One old log is kept.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// The size of the log's end that is searched for the reason of a failed start.
const LOG_END_BYTES: u64 = 1 << 20;

/// The state that the supervising thread shares with the threads that stop the server.
#[derive(Debug, Default)]
pub(super) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// True after the first request to stop. It is never reset, and no server is started after that.
    stopping: bool,
    /// The server process. It is removed when it is reaped, so that no signal reaches another process with its id.
    child: Option<Child>,
}

impl Control {
    /// Signals the server, if there is one, and prevents its restart.
    pub(super) fn stop(&self, signal: Signal) {
        let mut state = self.lock();
        state.stopping = true;
        if let Some(child) = &state.child {
            // The only possible error is that the process has ended.
            let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
        }
        self.changed.notify_all();
    }

    /// Starts the server and returns its process id. Returns `None` if a stop was requested. Holds the lock, so that
    /// `stop` always finds the child.
    fn spawn(&self, command: &mut Command) -> io::Result<Option<i32>> {
        let mut state = self.lock();
        if state.stopping {
            return Ok(None);
        }
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        state.child = Some(child);
        Ok(Some(pid))
    }

    /// Returns the exit status of the server, or `None` while it is running.
    fn try_reap(&self) -> io::Result<Option<ExitStatus>> {
        let mut state = self.lock();
        let Some(child) = &mut state.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            state.child = None;
        }
        Ok(status)
    }

    /// Blocks until the server ends. Does not hold the lock meanwhile, because `stop` needs it.
    fn wait(&self) -> io::Result<ExitStatus> {
        let id = self.lock().child.as_ref().map(Child::id);
        let pid = id.and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
        let gone = || io::Error::other("there is no server to wait for");
        let pid = pid.ok_or_else(gone)?;
        // With NOWAIT the child stays a zombie, so that no other process can get its id.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(pid), options))?;
        self.lock().child.take().ok_or_else(gone)?.wait()
    }

    fn is_stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Sleeps. Returns early on `stop`.
    fn pause(&self, length: Duration) {
        let state = self.lock();
        let _ = self.changed.wait_timeout_while(state, length, |state| !state.stopping);
    }

    /// Locks the state. Ignores poisoning, because the state is consistent after every statement.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The supervisor of the server, with everything that a start needs.
#[derive(Debug)]
pub(super) struct Postmaster {
    // The fields are dropped in this order, so that the lock on the folder is released last.
    socket: SocketFolder,
    binaries: Binaries,
    data_dir: LockedDataDir,
    control: Arc<Control>,
}

impl Postmaster {
    pub(super) fn new(data_dir: LockedDataDir, binaries: Binaries, socket: SocketFolder) -> Postmaster {
        Postmaster { socket, binaries, data_dir, control: Arc::default() }
    }

    pub(super) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Runs the server until it is stopped. Sends the result of the first start to `ready`. The kernel ends the server
    /// when the calling thread ends.
    pub(super) fn run(self, ready: oneshot::Sender<Result<(), Error>>) {
        if let Err(error) = self.launch() {
            // The lock is released first, because the caller may retry as soon as it gets the error.
            drop(self);
            let _ = ready.send(Err(error));
            return;
        }
        // The receiver is closed if the start was cancelled. A stop follows then.
        let _ = ready.send(Ok(()));
        let mut pause = FIRST_PAUSE;
        loop {
            let started = Instant::now();
            let ended = self.control.wait();
            if self.control.is_stopping() {
                break;
            }
            let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::error!(event = "postgres_died", status, "Postgres ended unexpectedly");
            if started.elapsed() > STEADY {
                pause = FIRST_PAUSE;
            }
            self.relaunch(&mut pause);
        }
        // A server that was ended by SIGKILL leaves backends. They must end before the lock is released.
        if let Err(error) = leftovers::clear(&self.data_dir.cluster(), &self.data_dir.account) {
            tracing::warn!(event = "postgres_left", error = %error, "Postgres did not end cleanly");
        }
    }

    /// Retries until the server runs again or a stop is requested.
    fn relaunch(&self, pause: &mut Duration) {
        loop {
            self.control.pause(*pause);
            *pause = LONGEST_PAUSE.min(*pause * 2);
            if self.control.is_stopping() {
                return;
            }
            match self.launch() {
                Ok(()) => {
                    tracing::warn!(event = "postgres_restarted", "Postgres was restarted");
                    return;
                }
                // A stop during the start is not a failure.
                Err(_) if self.control.is_stopping() => return,
                Err(error) => {
                    tracing::error!(event = "postgres_restart_failed", error = %error, cause = ?std::error::Error::source(&error), "Postgres could not be restarted");
                }
            }
        }
    }

    /// Starts the server and waits until it is ready, or has ended.
    fn launch(&self) -> Result<(), Error> {
        leftovers::clear(&self.data_dir.cluster(), &self.data_dir.account)?;
        self.socket.clear();
        let path = self.data_dir.log();
        let mut log = self.open_log().map_err(Error::file("open", &path))?;
        let begin = log.seek(SeekFrom::End(0)).map_err(Error::file("read", &path))?;
        let mut command = self.command(&log).map_err(Error::file("open", &path))?;
        let spawned = self.control.spawn(&mut command);
        let spawned = spawned.map_err(|source| Error::Program { program: self.binaries.postgres(), source })?;
        let Some(pid) = spawned else {
            return Err(self.not_started("it was stopped before".to_owned()));
        };
        let status = match self.await_ready(pid) {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => status,
            Err(error) => {
                // The server may be running, and after the error it has no supervisor.
                leftovers::clear(&self.data_dir.cluster(), &self.data_dir.account)?;
                return Err(error);
            }
        };
        let said = read_from(&mut log, begin).unwrap_or_default();
        Err(self.not_started(last_error(&said).unwrap_or_else(|| status.to_string())))
    }

    /// Waits until the server is ready or has ended. Returns `None` if it is ready, else its exit status. Has no time
    /// limit, because a recovery may take any time.
    fn await_ready(&self, pid: i32) -> Result<Option<ExitStatus>, Error> {
        let started = Instant::now();
        let mut noted = started;
        loop {
            let ended = self.control.try_reap().map_err(Error::Supervisor)?;
            if ended.is_some() {
                return Ok(ended);
            }
            let data = self.data_dir.held_cluster()?;
            let ready = PidFile::read(&data).is_some_and(|server| server.pid == pid && server.ready);
            if ready {
                greeting::require_scram(&self.socket.path, &self.data_dir.account)?;
                tracing::info!(event = "postgres_ready", pid, major = self.binaries.major, data_dir = %self.data_dir.path.display(), "Postgres is ready");
                return Ok(None);
            }
            if noted.elapsed() > NOTE_INTERVAL {
                noted = Instant::now();
                tracing::info!(event = "postgres_starting", pid, seconds = started.elapsed().as_secs(), log = %self.data_dir.log().display(), "Postgres isn't ready yet");
            }
            std::thread::sleep(POLL);
        }
    }

    /// Builds the server's command line. Passes the settings that this service relies on as arguments, because neither
    /// a configuration file nor `alter system` can override arguments.
    fn command(&self, log: &File) -> io::Result<Command> {
        let data = self.data_dir.cluster();
        let mut command = self.data_dir.account.command(&self.binaries.postgres(), &data);
        let settings = [
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            format!("unix_socket_directories={}", self.socket.quoted()),
            "unix_socket_permissions=0700".to_owned(),
            "timezone=UTC".to_owned(),
            "log_timezone=UTC".to_owned(),
            // The server's standard error is the log file.
            "log_destination=stderr".to_owned(),
            "logging_collector=off".to_owned(),
            "log_checkpoints=off".to_owned(),
            // Statements and the details of errors contain values of rows, which must not be logged.
            "log_min_error_statement=panic".to_owned(),
            "log_error_verbosity=terse".to_owned(),
        ];
        command.arg("-D").arg(data);
        for setting in settings {
            command.arg("-c").arg(setting);
        }
        command
            .stdout(log.try_clone()?)
            .stderr(log.try_clone()?)
            // The log is searched for errors, so they must not be translated.
            .env("LC_ALL", "C")
            // Otherwise the server would notify the service manager in the name of this service.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("PGDATESTYLE")
            .env_remove("PGCLIENTENCODING");
        Ok(command)
    }

    fn open_log(&self) -> io::Result<File> {
        let path = self.data_dir.log();
        let account = &self.data_dir.account;
        let log = account.open_file(&path)?;
        if log.metadata()?.len() <= LOG_MAX_BYTES {
            return Ok(log);
        }
        fs::rename(&path, path.with_extension("log.1"))?;
        account.open_file(&path)
    }

    fn not_started(&self, detail: String) -> Error {
        Error::Start { log: self.data_dir.log(), detail }
    }
}

/// Reads the log's text from `begin` on, at most the last [`LOG_END_BYTES`]. The log may contain invalid UTF-8.
fn read_from(log: &mut File, begin: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let end = log.seek(SeekFrom::End(0))?;
    log.seek(SeekFrom::Start(begin.max(end.saturating_sub(LOG_END_BYTES))))?;
    log.take(LOG_END_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
