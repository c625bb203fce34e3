//! The system user that runs Postgres. Postgres refuses to run as root, so root lends it another user; anybody else runs it as himself.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User};
use rustix::fs::OFlags;

use crate::postgres::embedded::Error;

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
    /// The first owner in `folders` that isn't root, else `postgres`, else `nobody`. Folders that don't exist are skipped.
    pub(super) fn for_folders(folders: &[&Path]) -> Result<Account, Error> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(Account::Own);
        }
        let owner = folders.iter().filter_map(|folder| fs::metadata(folder).ok()).find(|metadata| metadata.uid() != 0);
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

    /// A command run by this account in `folder` (the one we were started in may be closed to it), in a process group of its own: a terminal's Ctrl-C goes to us only. It must be waited for by the thread that spawns it.
    pub(super) fn command(&self, program: &Path, folder: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(folder).stdin(Stdio::null()).process_group(0);
        #[cfg(target_os = "linux")]
        die_with_this_thread(&mut command);
        if let Account::Lent { uid, gid, .. } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Makes a folder that only the account may enter.
    pub(super) fn make_folder(&self, path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        match self {
            Account::Own => Ok(()),
            Account::Lent { uid, gid, .. } => lchown(path, Some(uid.as_raw()), Some(gid.as_raw())),
        }
    }

    /// Opens a file that only the account may read, to append to it; makes it where there is none. A symbolic link is refused, or the account's user could plant one that points root at any file.
    pub(super) fn open_file(&self, path: &Path) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(0o600).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        match options.clone().create_new(true).open(path) {
            Err(exists) if exists.kind() == io::ErrorKind::AlreadyExists => options.open(path),
            Err(error) => Err(error),
            Ok(file) => {
                if let Account::Lent { uid, gid, .. } = self {
                    fchown(&file, Some(uid.as_raw()), Some(gid.as_raw()))?;
                }
                Ok(file)
            }
        }
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
        match self.command(shell, folder).args(["-c", ":"]).status() {
            Ok(_) => Ok(true),
            Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => Ok(false),
            Err(error) => Err(Error::file("enter", folder)(error)),
        }
    }
}

/// Lets the kernel send SIGINT to the child when the thread that spawns it ends, so that not even our SIGKILL leaves a server behind. Only Linux can; elsewhere the next start clears up.
#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "pre_exec is the only way between fork and exec; the closure makes two system calls and allocates nothing"
)]
fn die_with_this_thread(command: &mut Command) {
    let parent = rustix::process::getpid();
    let request = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::INT))?;
        // We may have died before the request was made, and then no signal comes.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    };
    unsafe {
        command.pre_exec(request);
    }
}
