//! Processes of a server whose supervisor was killed. The system says which they are, never a pid file alone: its
//! number may be another process's by now.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::account::Account;
use crate::files::HeldFolder;
use crate::pid_file::{self, PidFile};
use crate::{ESCALATION, Error};

/// Ends every server process at work in `data`, then removes the pid file they left. Blocks, up to half a minute; only
/// for the holder of the lock.
pub(super) fn clear(data: &Path, account: &Account) -> Result<(), Error> {
    let folder = match HeldFolder::open(data, account) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(Error::file("use", data))?,
    };
    // Postgres refuses to start while the number in the file is that of any living process of its user. Once no process
    // uses the data, the file is stale.
    let remove_pid_file = || folder.remove(pid_file::NAME).map_err(Error::file("remove", &data.join(pid_file::NAME)));
    for (signal, timeout) in ESCALATION {
        let pids = processes_in(&folder, data, account);
        if pids.is_empty() {
            return remove_pid_file();
        }
        let postmaster = PidFile::read(&folder).map(|file| file.pid).filter(|pid| pids.contains(pid));
        let targets = match (signal, postmaster) {
            // The postmaster ends its backends itself; a backend takes SIGINT only for a cancel.
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

/// Signals a process if `is_still` holds: its number may have become another process's. It is fine if the process is
/// gone.
fn send(pid: i32, signal: Signal, is_still: impl Fn() -> bool) {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

        let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal as i32)) else { return };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // The descriptor holds the process, so that the one that was checked is the one that is signalled.
            Ok(process) if is_still() => {
                let _ = pidfd_send_signal(process, signal);
                return;
            }
            Ok(_) | Err(rustix::io::Errno::SRCH) => return,
            // Linux before 5.3.
            Err(_) => {}
        }
    }
    if is_still() {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// The account's processes named `postgres` whose working folder is this one: the server and its backends. Zombies have
/// no working folder, and don't count.
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
            // By device and inode: the same folder has many paths.
            is_postgres && is_ours() && folder.is_at(&process.path().join("cwd"))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// The server alone, known by its command line, which names the folder. Here its backends can't be told from another
/// server's; Postgres refuses to start while they hold its shared memory.
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
