//! The path to the data folder. Root resolves it again and again, and runs Postgres as the owner of the folder at its
//! end: so no other user may be able to replace any part of the path by another folder or a link.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::Error;

/// How many links the kernel follows.
const MAX_LINKS: u32 = 40;

const STICKY: u32 = 0o1000;

/// Refuses a path of which another user than root can replace a part, and a folder at its end that others than its
/// owner may write to. Checks nothing unless this process is root.
///
/// # Errors
/// If the path is refused, or a part of it can't be looked at.
pub(super) fn require_guarded(data_dir: &Path) -> Result<(), Error> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    match weak_part(data_dir, MAX_LINKS).map_err(Error::file("look at", data_dir))? {
        None => Ok(()),
        Some((part, why)) => Err(Error::Unguarded { data_dir: data_dir.to_owned(), part, why }),
    }
}

/// The part of an absolute path that another user can replace, and why.
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
            // In a sticky folder root's own stays where it is.
            if others_may_write(&above) && !(above.mode() & STICKY != 0 && is_roots) {
                return Ok(Some((parent, "is open to others, who could exchange what is in it")));
            }
        }
        // The rest doesn't exist; root will make it.
        let Some(found) = found else { return Ok(None) };
        if found.is_symlink() {
            if !is_roots {
                return Ok(Some((at, "is a link of another user's than root")));
            }
            if links == 0 {
                return Err(io::Error::other("too many links"));
            }
            let rest: PathBuf = parts[index + 1..].iter().collect();
            return weak_part(&parent.join(fs::read_link(&at)?).join(rest), links - 1);
        }
        above = Some(found);
    }
    // A user who may write to the folder would choose, by a folder of his own in it, the user that root runs Postgres
    // as.
    Ok(above.filter(others_may_write).map(|_| (at, "may be written by others than its owner")))
}

/// Beside the owner, whom the caller looks at. Root's group is root.
fn others_may_write(found: &Metadata) -> bool {
    found.mode() & 0o002 != 0 || (found.mode() & 0o020 != 0 && found.gid() != 0)
}
