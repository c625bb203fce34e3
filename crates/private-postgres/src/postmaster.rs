//! Starts the server process, restarts it after a failure, and stops it.

use std::convert::Infallible;
use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::account::{last_error, run};
use crate::binaries::Binaries;
use crate::data_dir::{DataDir, open_private};
use crate::pid_file::PidFile;
use crate::{Error, PORT, socket};

const RESTART_PAUSE: Duration = Duration::from_secs(2);

const POLL: Duration = Duration::from_millis(20);

/// The size above which the server's log is rotated before a start. One old log is kept.
const LOG_MAX_BYTES: u64 = 16 << 20;

/// The signals that end a server, each with its time limit: a fast shutdown with a checkpoint, an immediate shutdown
/// with a recovery at the next start, and SIGKILL.
const ESCALATION: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(20)),
    (Signal::SIGQUIT, Duration::from_secs(5)),
    (Signal::SIGKILL, Duration::from_secs(5)),
];

/// The supervisor of the server, with everything that a start needs.
pub(super) struct Postmaster {
    pub(super) socket_folder: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) data_dir: DataDir,
    pub(super) _lock: File,
}

/// A server process. Dropping this value requests its shutdown.
pub(super) struct Process {
    child: Child,
    log_begin: usize,
}

impl Process {
    fn signal(&self, signal: Signal) {
        // A process that has been reaped has no id, so the signal reaches no other process.
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    async fn stop(&mut self) {
        for (signal, limit) in ESCALATION {
            self.signal(signal);
            if timeout(limit, self.child.wait()).await.is_ok() {
                tracing::info!(event = "postgres_stopped", signal = %signal, "Postgres stopped");
                return;
            }
            tracing::warn!(event = "postgres_stop_slow", signal = %signal, seconds = limit.as_secs(), "Postgres has not stopped yet");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

impl Postmaster {
    /// Starts the server and waits until it is ready. Has no time limit, because a recovery may take any time.
    pub(super) async fn start(&self) -> Result<Process, Error> {
        let mut process = self.spawn().await?;
        let pid = process.child.id();
        tracing::info!(event = "postgres_starting", pid, log = %self.data_dir.log().display(), "waiting until Postgres is ready");
        loop {
            if let Some(status) = process.child.try_wait().map_err(Error::file("watch", &self.data_dir.cluster()))? {
                let log = self.data_dir.log();
                let logged = fs::read(&log).unwrap_or_default();
                let logged = String::from_utf8_lossy(logged.get(process.log_begin..).unwrap_or_default());
                let detail = last_error(&logged).unwrap_or_else(|| status.to_string());
                return Err(Error::Start { log, detail });
            }
            if PidFile::read(&self.data_dir.cluster()).is_some_and(|file| file.ready && Some(file.pid) == pid) {
                tracing::info!(event = "postgres_ready", pid, major = self.binaries.major, data_dir = %self.data_dir.path.display(), "Postgres is ready");
                return Ok(process);
            }
            sleep(POLL).await;
        }
    }

    /// Restarts the server after failures, until a message arrives at `stop` or its sender is dropped. Then stops the
    /// server.
    pub(super) async fn supervise(self, mut process: Process, stop: oneshot::Receiver<()>) {
        tokio::select! {
            never = self.keep_running(&mut process) => match never {},
            _ = stop => process.stop().await,
        }
        socket::clear(&self.socket_folder);
        // An error is ignored, because the next start reuses the folder.
        let _ = fs::remove_dir(&self.socket_folder);
    }

    async fn keep_running(&self, process: &mut Process) -> Infallible {
        loop {
            let ended = process.child.wait().await;
            let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::error!(event = "postgres_died", status, log = %self.data_dir.log().display(), "Postgres ended unexpectedly");
            sleep(RESTART_PAUSE).await;
            match self.spawn().await {
                Ok(restarted) => {
                    *process = restarted;
                    tracing::warn!(event = "postgres_restarted", "Postgres was restarted");
                }
                Err(error) => {
                    tracing::error!(event = "postgres_restart_failed", error = %error, cause = ?std::error::Error::source(&error), "Postgres could not be restarted");
                }
            }
        }
    }

    async fn spawn(&self) -> Result<Process, Error> {
        self.stop_leftover().await?;
        socket::clear(&self.socket_folder);
        let log = self.open_log().map_err(Error::file("open", &self.data_dir.log()))?;
        let spawned = log.metadata().and_then(|log_begin| {
            let child = tokio::process::Command::from(self.command(&log)?).spawn()?;
            Ok(Process { child, log_begin: log_begin.len() as usize })
        });
        spawned.map_err(Error::file("run", &self.binaries.program("postgres")))
    }

    /// Stops a server that an earlier process left running in the data folder, and removes a stale pid file.
    async fn stop_leftover(&self) -> Result<(), Error> {
        let data = self.data_dir.cluster();
        let Some(PidFile { pid, socket_folder, .. }) = PidFile::read(&data) else { return Ok(()) };
        if socket::answers(&socket_folder) {
            tracing::warn!(event = "postgres_leftover", pid, folder = %data.display(), "stopping the Postgres that an earlier process left running");
            let mut pg_ctl = self.data_dir.account.command(self.binaries.program("pg_ctl"), &data);
            pg_ctl.args(["stop", "--mode=fast", "--wait", "--timeout=60", "--pgdata"]).arg(&data);
            let stopped = run(pg_ctl, b"").await;
            // The server may have ended by itself before.
            if socket::answers(&socket_folder) {
                stopped?;
            }
        }
        // Postgres refuses to start if the process id in the file meanwhile belongs to any other process of its user.
        let file = PidFile::path(&data);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &file)(error)),
            _ => Ok(()),
        }
    }

    /// Builds the server's command line. Passes the settings that this service relies on as arguments, because neither
    /// a configuration file nor `alter system` can override arguments.
    fn command(&self, log: &File) -> io::Result<Command> {
        let data = self.data_dir.cluster();
        let mut command = self.data_dir.account.command(self.binaries.program("postgres"), &data);
        let settings = [
            "listen_addresses=".to_owned(),
            format!("port={PORT}"),
            format!("unix_socket_directories={}", socket::quoted(&self.socket_folder)),
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
        let log = open_private(&path)?;
        if log.metadata()?.len() <= LOG_MAX_BYTES {
            return Ok(log);
        }
        fs::rename(&path, path.with_extension("log.1"))?;
        open_private(&path)
    }
}
