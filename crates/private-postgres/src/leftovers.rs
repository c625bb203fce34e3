//! Ends the processes of a server whose supervisor was killed.
//!
//! The processes are identified by the operating system. The pid file alone is not sufficient, because its process id
//! may meanwhile belong to another process.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account::Account;
use crate::files::HeldFolder;
use crate::pid_file::{self, PidFile};
use crate::{ESCALATION, Error};

/// Ends every server process in `data`, then removes the stale pid file. Blocks for up to half a minute. The caller
/// must hold the supervisor's lock.
pub(super) fn clear(data: &Path, account: &Account) -> Result<(), Error> {
    let folder = match HeldFolder::open(data, account) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(Error::file("use", data))?,
    };
    // Postgres refuses to start if the process id in the file is that of any running process of its user. The file is
    // stale if no process uses the data.
    let remove_pid_file = || folder.remove(pid_file::NAME).map_err(Error::file("remove", &data.join(pid_file::NAME)));
    for (signal, timeout) in ESCALATION {
        let pids = processes_in(&folder, data, account);
        if pids.is_empty() {
            return remove_pid_file();
        }
        let postmaster = PidFile::read(&folder).map(|file| file.pid).filter(|pid| pids.contains(pid));
        let targets = match (signal, postmaster) {
            // The postmaster ends its backends itself. A backend treats SIGINT as the cancellation of its statement.
            (Signal::SIGINT, Some(postmaster)) => vec![postmaster],
            (Signal::SIGINT, None) => continue,
            _ => pids,
        };
        tracing::warn!(event = "postgres_leftovers", folder = %data.display(), signal = %signal, pids = ?targets, "ending processes of an earlier Postgres");
        for pid in targets {
            send(pid, signal, || processes_in(&folder, data, account).contains(&pid));
        }
        let deadline = Instant::now() + timeout;
        while !processes_in(&folder, data, account).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let pids = processes_in(&folder, data, account);
    if !pids.is_empty() {
        return Err(Error::Leftovers { folder: data.to_owned(), pids });
    }
    remove_pid_file()
}

/// Signals a process if `is_still` returns true. Its id may meanwhile belong to another process. Ignores a process that
/// has ended.
fn send(pid: i32, signal: Signal, is_still: impl Fn() -> bool) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

        let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal as i32)) else { return };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The descriptor refers to one process, so the checked process is the signalled one.
            Ok(process) if is_still() => {
                let _ = pidfd_send_signal(process, signal);
                return;
            }
            Ok(_) | Err(rustix::io::Errno::SRCH) => return,
            // Linux before 5.3 has no such descriptors.
            Err(_) => {}
        }
    }
    if is_still() {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Returns the account's processes named `postgres` with this working folder: the server and its backends. Excludes
/// zombies, which have no working folder.
#[cfg(target_os = "linux")]
pub(super) fn processes_in(folder: &HeldFolder, _data: &Path, account: &Account) -> Vec<i32> {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            let is_postgres =
                fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim_end() == "postgres");
            let is_ours = || process.metadata().is_ok_and(|process| process.uid() == account.uid());
            // `is_at` compares device and inode, because a folder can have several paths.
            is_postgres && is_ours() && folder.is_at(&process.path().join("cwd"))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// Returns the server process, identified by the folder in its command line. This system can't distinguish its backends
/// from those of another server. Postgres refuses to start while they hold its shared memory.
#[cfg(not(target_os = "linux"))]
pub(super) fn processes_in(folder: &HeldFolder, data: &Path, _account: &Account) -> Vec<i32> {
    let Some(file) = PidFile::read(folder).filter(|file| file.pid > 0) else {
        return Vec::new();
    };
    let listed = std::process::Command::new("ps").args(["-o", "args=", "-p", &file.pid.to_string()]).output();
    let is_ours = listed.is_ok_and(|output| {
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        line.contains("postgres -D") && line.contains(&*data.to_string_lossy())
    });
    if is_ours { vec![file.pid] } else { Vec::new() }
}
