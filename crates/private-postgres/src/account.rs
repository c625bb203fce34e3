//! The system user that runs Postgres. Postgres refuses to run as root, so root runs it as another user; any other user
//! runs it himself.

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

/// Who runs `initdb` and `postgres` and owns their files.
#[derive(Clone, Debug)]
pub(super) enum Account {
    /// The user of this process.
    Own,
    /// Another user, since this process is root.
    Other {
        /// For messages.
        name: String,
        uid: Uid,
        gid: Gid,
    },
}

impl Account {
    /// The first owner of the two folders who isn't root, else `postgres`, else `nobody`. Folders that don't exist are
    /// skipped. A link in the inner one's place isn't followed: whoever may put a link there must not choose the user.
    pub(super) fn for_folders(inner: &Path, outer: &Path) -> Result<Account, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Account::Own);
        }
        let found = [fs::symlink_metadata(inner), fs::metadata(outer)];
        let owner = found.into_iter().flatten().find(|metadata| metadata.uid() != 0);
        if let Some(owner) = owner {
            return Ok(Account::other(owner.uid(), owner.gid()));
        }
        // A list of users that can't be read counts as empty.
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
            // A container's volume may belong to a number without a name.
            _ => Account::Other { name: uid.to_string(), uid, gid: Gid::from_raw(gid) },
        }
    }

    /// A command that the account's user runs in `folder`; our own working folder may be closed to that user. The
    /// command has a session of its own: Ctrl-C reaches only this process, and the user can't type into root's
    /// terminal. It doesn't see root's environment. The thread that spawns the command must wait for it.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null());
        detach(&mut command);
        if let Account::Other { uid, gid, .. } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw()).env_clear().env("PATH", PATH_OF_OTHER);
        }
        command
    }

    /// The number of the user who will own the files.
    pub(super) fn uid(&self) -> u32 {
        match self {
            Account::Own => nix::unistd::geteuid().as_raw(),
            Account::Other { uid, .. } => uid.as_raw(),
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match self {
            Account::Own => nix::unistd::geteuid().to_string(),
            Account::Other { name, .. } => name.clone(),
        }
    }

    /// Whether the account's user can enter an existing folder. Found out by entering it: mode bits don't show access
    /// lists and mounts.
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

/// Makes the child begin a session and inherit only the three standard files. On Linux the kernel sends the child
/// SIGINT when the thread that spawned it ends, so that no server stays behind when this process is killed; elsewhere
/// the next start ends it.
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
            // This process may have died before the request for the signal; then no signal comes.
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

/// Closes every file but the standard three when the program begins: our caller may have left root's files open. Only
/// for a process that is about to execute a program.
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
    // Linux before 5.11, and other systems.
    let end = unsafe { libc::sysconf(libc::_SC_OPEN_MAX) };
    for file in FIRST..libc::c_int::try_from(end).unwrap_or(libc::c_int::MAX) {
        unsafe { libc::fcntl(file, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
