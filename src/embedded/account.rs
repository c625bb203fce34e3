//! The system user that runs Postgres. Postgres refuses to run as root, so root lends it another user; anybody else runs it as himself.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User};

use crate::embedded::Error;

/// Where programs are looked for that root has run by another user.
const PATH_OF_LENT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Who runs `initdb` and `postgres` and owns their files.
#[derive(Clone, Debug)]
pub(super) enum Account {
    /// The user of this process.
    Own,
    /// Another one, since this process is root.
    Lent {
        /// For messages.
        name: String,
        uid: Uid,
        gid: Gid,
    },
}

impl Account {
    /// The owner of `folders`, the first who isn't root, else `postgres`, else `nobody`. Folders that don't exist are skipped,
    /// and so is what a link in the inner one's place leads to: whoever may put a link there doesn't choose whom root lends.
    pub(super) fn for_folders(inner: &Path, outer: &Path) -> Result<Account, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Account::Own);
        }
        let found = [fs::symlink_metadata(inner), fs::metadata(outer)];
        let owner = found.into_iter().flatten().find(|metadata| metadata.uid() != 0);
        if let Some(owner) = owner {
            return Ok(Account::lend(owner.uid(), owner.gid()));
        }
        // A user list that can't be read is as good as an empty one.
        ["postgres", "nobody"]
            .iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Account::Lent { name: user.name, uid: user.uid, gid: user.gid })
            .ok_or(Error::NoAccount)
    }

    fn lend(uid: u32, gid: u32) -> Account {
        let uid = Uid::from_raw(uid);
        match User::from_uid(uid) {
            Ok(Some(user)) => Account::Lent { name: user.name, uid, gid: user.gid },
            // A container's volume may belong to a number without a name.
            _ => Account::Lent { name: uid.to_string(), uid, gid: Gid::from_raw(gid) },
        }
    }

    /// A command run by this account in `folder` (the one we were started in may be closed to it), in a session of its own: a terminal's Ctrl-C goes to us only, and the account's user can't type into root's terminal. Nor does it get to see root's environment. It must be waited for by the thread that spawns it.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null());
        detach(&mut command);
        if let Account::Lent { uid, gid, .. } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw()).env_clear().env("PATH", PATH_OF_LENT);
        }
        command
    }

    /// The number of the user who will own the files.
    pub(super) fn uid(&self) -> u32 {
        match self {
            Account::Own => nix::unistd::geteuid().as_raw(),
            Account::Lent { uid, .. } => uid.as_raw(),
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match self {
            Account::Own => nix::unistd::geteuid().to_string(),
            Account::Lent { name, .. } => name.clone(),
        }
    }

    /// Whether the account can enter an existing folder. The kernel is asked by entering it, since mode bits alone know nothing of access lists and mounts.
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

/// Begins a session, passes on no file but the standard three, and on Linux lets the kernel send SIGINT to the child when the thread that spawns it ends, so that not even our SIGKILL leaves a server behind; elsewhere the next start clears up.
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
            // We may have died before the request was made, and then no signal comes.
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

/// Has every file but the standard three closed where a program begins: whoever started us may have left root's files open. Only
/// for a process that is just to begin one.
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
