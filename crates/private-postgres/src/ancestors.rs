//! Checks the path to the data folder.
//!
//! Root resolves the path repeatedly, and runs Postgres as the owner of the data folder. So no other user may be able
//! to replace a part of the path with another folder or a link.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::Error;

/// The largest number of links that the kernel follows.
const MAX_LINKS: u32 = 40;

const STICKY: u32 = 0o1000;

/// Refuses a path if a user other than root can replace a part of it, or if users other than its owner can write to the
/// data folder. Checks nothing unless this process is root.
///
/// # Errors
/// If the path is refused, or the metadata of a part can't be read.
pub(super) fn require_guarded(data_dir: &Path) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match weak_part(data_dir, MAX_LINKS).map_err(Error::file("check the path", data_dir))? {
        None => Ok(()),
        Some((part, why)) => Err(Error::Unguarded { data_dir: data_dir.to_owned(), part, why }),
    }
}

/// Returns the part of an absolute path that another user can replace, and the reason.
fn weak_part(path: &Path, links: u32) -> io::Result<Option<(PathBuf, &'static str)>> {
    let parts: Vec<Component> = path.components().collect();
    let mut at = PathBuf::new();
    let mut above: Option<Metadata> = None;
    for (index, part) in parts.iter().enumerate() {
        let parent = at.clone();
        at.push(part);
        let found = match fs::symlink_metadata(&at) {
            Ok(found) => Some(found),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let is_roots = found.as_ref().is_some_and(|found| found.uid() == 0);
        if let Some(above) = above {
            if above.uid() != 0 {
                return Ok(Some((parent, "belongs to another user than root")));
            }
            // In a sticky folder, other users can't replace an entry that belongs to root.
            if others_may_write(&above) && !(above.mode() & STICKY != 0 && is_roots) {
                return Ok(Some((parent, "is writable by others, who could replace its entries")));
            }
        }
        // The rest does not exist. Root will create it.
        let Some(found) = found else { return Ok(None) };
        if found.is_symlink() {
            if !is_roots {
                return Ok(Some((at, "is a link that belongs to another user than root")));
            }
            if links == 0 {
                return Err(io::Error::other("too many links"));
            }
            let rest: PathBuf = parts[index + 1..].iter().collect();
            return weak_part(&parent.join(fs::read_link(&at)?).join(rest), links - 1);
        }
        above = Some(found);
    }
    // A user with write access to the folder could create a folder in it, and so choose the user that root runs
    // Postgres as.
    Ok(above.filter(others_may_write).map(|_| (at, "is writable by others than its owner")))
}

/// Returns true if users other than the owner may write to a folder. The group of root counts as root.
fn others_may_write(found: &Metadata) -> bool {
    found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && found.gid() != 0)
}
