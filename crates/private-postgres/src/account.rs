//! The system user that runs Postgres.
//!
//! Postgres refuses to run as root. If this process is root, it runs Postgres as another user. Otherwise Postgres runs
//! as the user of this process.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User};

use crate::Error;

/// The PATH of programs that root runs as another user.
const PATH_OF_OTHER: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user that runs `initdb` and `postgres` and owns their files.
#[derive(Clone, Debug)]
pub(super) enum Account {
    /// The user of this process.
    Own,
    /// Another user, since this process is root.
    Other {
        /// The user's name, for messages.
        name: String,
        uid: Uid,
        gid: Gid,
    },
}

impl Account {
    /// Selects the account: the first owner of the two folders other than root, else `postgres`, else `nobody`.
    ///
    /// Skips folders that don't exist. Does not follow a link at the inner path, because a user who can create a link
    /// there must not choose the account.
    pub(super) fn for_folders(inner: &Path, outer: &Path) -> Result<Account, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Account::Own);
        }
        let found = [fs::symlink_metadata(inner), fs::metadata(outer)];
        let owner = found.into_iter().flatten().find(|metadata| metadata.uid() != 0);
        if let Some(owner) = owner {
            return Ok(Account::other(owner.uid(), owner.gid()));
        }
        // An error of the user database counts as a missing user.
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Account::Other { name: user.name, uid: user.uid, gid: user.gid })
            .ok_or(Error::NoAccount)
    }

    fn other(uid: u32, gid: u32) -> Account {
        let uid = Uid::from_raw(uid);
        match User::from_uid(uid) {
            Ok(Some(user)) => Account::Other { name: user.name, uid, gid: user.gid },
            // A container's volume may belong to a user id without a name.
            _ => Account::Other { name: uid.to_string(), uid, gid: Gid::from_raw(gid) },
        }
    }

    /// Returns a command that the account's user runs in `folder`. That user may not be able to enter this process's
    /// working folder.
    ///
    /// The command runs in its own session. So Ctrl-C stops only this process, and the user can't write to root's
    /// terminal. If this process is root, the command does not inherit its environment. The thread that spawns the
    /// command must wait for it.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null());
        detach(&mut command);
        if let Account::Other { uid, gid, .. } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw()).env_clear().env("PATH", PATH_OF_OTHER);
        }
        command
    }

    /// Returns the id of the user that owns the files.
    pub(super) fn uid(&self) -> u32 {
        match self {
            Account::Own => nix::unistd::geteuid().as_raw(),
            Account::Other { uid, .. } => uid.as_raw(),
        }
    }

    /// Returns the user's name or id, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Account::Own => nix::unistd::geteuid().to_string(),
            Account::Other { name, .. } => name.clone(),
        }
    }

    /// Returns true if the account's user can enter an existing folder. Tests it by entering the folder, because the
    /// mode bits do not include access control lists and mount options.
    pub(super) fn reaches(&self, folder: &Path) -> Result<bool, Error> {
        let shell = Path::new("/bin/sh");
        let mut command = self.command(shell, folder);
        match command.args(["-c", ":"]).stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(_) => Ok(true),
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(error) => Err(Error::file("enter", folder)(error)),
        }
    }
}

/// Makes the child start a session and inherit only the three standard files.
///
/// On Linux, the kernel sends SIGINT to the child when the thread that spawned it ends. So no server remains when this
/// process is killed. On other systems, the next start ends the remaining server.
#[expect(
    unsafe_code,
    reason = "pre_exec is the only way between fork and exec; the closure makes a few system calls and allocates nothing"
)]
fn detach(command: &mut Command) {
    #[cfg(target_os = "linux")]
    let parent = rustix::process::getpid();
    let request = move || {
        rustix::process::setsid()?;
        close_later();
        #[cfg(target_os = "linux")]
        {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::INT))?;
            // If this process died before the request for the signal, the kernel sends none.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        Ok(())
    };
    unsafe {
        command.pre_exec(request);
    }
}

/// Closes every file except the standard three when the child executes its program. The caller of this process may have
/// left root's files open. Must be called in a child process before `exec`.
#[expect(
    unsafe_code,
    reason = "numbers of files, open or not, which only these calls take; none is closed or used here"
)]
fn close_later() {
    use nix::libc;

    const FIRST: libc::c_int = 3;
    #[cfg(target_os = "linux")]
    if unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) } == 0 {
        return;
    }
    // Linux before 5.11 and other systems have no such call.
    let end = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    for file in FIRST..libc::c_int::try_from(end).unwrap_or(libc::c_int::MAX) {
        unsafe { libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
