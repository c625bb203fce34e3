//! Processes of a server whose supervisor was killed. Who they are is read from the system, never from a pid file alone: its number may belong to anybody by now.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::postgres::embedded::{ESCALATION, Error, PidFile, pid_file};

/// Ends every server process at work in `data`, then removes the pid file they left. Blocks, up to half a minute; only for the holder of the lock.
pub(super) fn clear(data: &Path) -> Result<(), Error> {
    for (signal, patience) in ESCALATION {
        let pids = processes_in(data);
        if pids.is_empty() {
            return remove_pid_file(data);
        }
        let postmaster = PidFile::read(data).map(|file| file.pid).filter(|pid| pids.contains(pid));
        let targets = match (signal, postmaster) {
            // It ends its backends itself, which to a backend alone means no more than "cancel".
            (Signal::SIGINT, Some(postmaster)) => vec![postmaster],
            (Signal::SIGINT, None) => continue,
            _ => pids,
        };
        tracing::warn!(event = "postgres_leftovers", folder = %data.display(), signal = %signal, pids = ?targets, "ending processes of an earlier Postgres");
        for pid in targets {
            // One that is gone meanwhile is what we want.
            let _ = kill(Pid::from_raw(pid), signal);
        }
        let deadline = Instant::now() + patience;
        while !processes_in(data).is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let pids = processes_in(data);
    if !pids.is_empty() {
        return Err(Error::Leftovers { folder: data.to_owned(), pids });
    }
    remove_pid_file(data)
}

/// Postgres refuses to start while the number in the file is any living process of its user. That nobody uses the data was seen above, so the file is nobody's.
fn remove_pid_file(data: &Path) -> Result<(), Error> {
    let path = pid_file::path(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// The processes named `postgres` whose working folder is `data`: the server and its backends. Zombies have no working folder and don't count.
#[cfg(target_os = "linux")]
pub(super) fn processes_in(data: &Path) -> Vec<i32> {
    use std::os::unix::fs::MetadataExt;

    let Ok(data) = fs::metadata(data) else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            let is_postgres =
                fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.trim_end() == "postgres");
            // By device and inode: the same folder has many paths.
            is_postgres
                && fs::metadata(process.path().join("cwd"))
                    .is_ok_and(|cwd| (cwd.dev(), cwd.ino()) == (data.dev(), data.ino()))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// The server alone, known by its command line, which names the folder. Its backends can't be told from another server's here; Postgres refuses to start while they hold its shared memory.
#[cfg(not(target_os = "linux"))]
pub(super) fn processes_in(data: &Path) -> Vec<i32> {
    let Some(file) = PidFile::read(data).filter(|file| file.pid > 0) else {
        return Vec::new();
    };
    let listed = std::process::Command::new("ps").args(["-o", "args=", "-p", &file.pid.to_string()]).output();
    let is_ours = listed.is_ok_and(|output| {
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        line.contains("postgres -D") && line.contains(&*data.to_string_lossy())
    });
    if is_ours { vec![file.pid] } else { Vec::new() }
}
