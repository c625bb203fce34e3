//! What goes wrong with a destination.

use std::io;

use rustix::io::Errno;

use crate::sink::MARK;

/// What went wrong with a destination. No text here has a path: callers show it to clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or a quota or size limit is reached.
    #[error("the output folder or bucket has no room left")]
    Full(#[source] io::Error),
    /// No permission, or a read-only file system.
    #[error("the output folder or bucket can't be written")]
    ReadOnly(#[source] io::Error),
    /// Not there, not a folder, or a link where none may be.
    #[error("the output folder or bucket is missing")]
    Missing(#[source] io::Error),
    /// No process has prepared the folder, which has no mark: it may be another one than the exports'.
    #[error(
        "the output folder or bucket has no `{MARK}`, so no service has used it: does OUTPUT_DIR or OUTPUT_URL name the right one?"
    )]
    Unused,
    /// Another folder is in the place of the one that this process prepared.
    #[error("the `{MARK}` of the output folder or bucket {0}: bring the right one back, or restart to adopt this one")]
    Replaced(&'static str),
    /// The file is in another destination than this one.
    #[error("the file is in another output folder or bucket")]
    Elsewhere,
    /// The variables that reach a bucket are wrong.
    #[error("its variables can't be used")]
    Settings(#[source] io::Error),
    /// A store that doesn't answer, or is too busy, or fails in a way that may pass.
    #[error("the object store doesn't take or give files now: {0}")]
    Unavailable(io::Error),
    /// The file was removed or replaced since it was opened.
    #[error("the file was removed or replaced")]
    Gone,
    /// More bytes than a store takes in parts of the size that was set.
    #[error("a file of more than {0} bytes needs larger parts: raise OUTPUT_PART_SIZE, and have the export done again")]
    TooLarge(u64),
    /// Nobody waits for the file any more.
    #[error("the export was stopped")]
    Stopped,
    /// Anything else that the system reports.
    #[error("the output folder or bucket failed")]
    Io(#[source] io::Error),
}

impl Error {
    /// Whether a later try may succeed by itself.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }

    /// Whether it tells of the folder or the bucket as a whole, and not of one file.
    pub fn is_of_the_place(&self) -> bool {
        matches!(self, Error::Unavailable(_) | Error::Missing(_))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        // No stable `ErrorKind` has this one.
        if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
            return Error::Missing(error);
        }
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::Full(error)
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly(error),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing(error),
            _ => Error::Io(error),
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        io::Error::from(errno).into()
    }
}
