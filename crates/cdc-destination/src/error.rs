//! The errors of a destination.
//!
//! Clients see the text of an [`Error`] itself, so it has no path. The operation and its path are in the error's
//! source, which only the log and the command line show: `cannot open /output/a.csv: Permission denied`.

use std::fmt::Display;
use std::io;

use rustix::io::Errno;

use crate::DESTINATION_ID_FILE;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk is full, or a quota or size limit is reached.
    #[error("the output folder or bucket has no room left")]
    Full(#[source] io::Error),
    /// No permission, or a read-only file system.
    #[error("the output folder or bucket can't be written")]
    ReadOnly(#[source] io::Error),
    /// The folder or bucket is missing, is not a folder, or is a link where none is allowed.
    #[error("the output folder or bucket is missing")]
    Missing(#[source] io::Error),
    #[error(
        "the output folder or bucket has no `{DESTINATION_ID_FILE}`, so no service has used it: does OUTPUT_DIR or OUTPUT_URL name the right one?"
    )]
    Unused,
    /// The id is gone or is not the one that this process prepared.
    #[error(
        "the `{DESTINATION_ID_FILE}` of the output folder or bucket {0}: bring the right one back, or restart to adopt this one"
    )]
    Replaced(&'static str),
    #[error("the file is in another output folder or bucket")]
    Elsewhere,
    #[error("its variables can't be used")]
    Settings(#[source] io::Error),
    /// The object store doesn't answer, is too busy, or fails in a way that may pass.
    #[error("the object store doesn't take or give files now: {0}")]
    Unavailable(#[source] io::Error),
    /// A call did not return for so many seconds. Its thread may never end.
    #[error("the output folder has not taken a write for {0} seconds")]
    Stalled(u64),
    #[error("the file was removed or replaced")]
    Gone,
    /// The file needs more parts of the configured size than a store takes.
    #[error("a file of more than {0} bytes needs larger parts: raise OUTPUT_PART_SIZE, and have the export done again")]
    TooLarge(u64),
    #[error("the export was stopped")]
    Stopped,
    #[error("the output folder or bucket failed")]
    Io(#[source] io::Error),
}

impl Error {
    /// Returns true if a later try may succeed by itself.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }

    /// Returns true if the error is about the folder or bucket as a whole, and not about one file.
    pub fn is_of_the_place(&self) -> bool {
        matches!(self, Error::Unavailable(_) | Error::Missing(_))
    }

    /// Returns the variant for a cause of this kind. `source` is what the log says.
    fn new(os_error: Option<i32>, source: io::Error) -> Error {
        // No stable `ErrorKind` stands for a loop of links.
        if os_error == Some(Errno::LOOP.raw_os_error()) {
            return Error::Missing(source);
        }
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::Full(source)
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly(source),
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::Missing(source),
            _ => Error::Io(source),
        }
    }
}

/// For errors whose caller names the path: those of an [`Archive`](crate::Archive).
impl From<io::Error> for Error {
    fn from(cause: io::Error) -> Error {
        Error::new(cause.raw_os_error(), cause)
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Error {
        io::Error::from(errno).into()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {path}: {cause}")]
struct FailedOperation {
    verb: &'static str,
    path: String,
    #[source]
    cause: io::Error,
}

/// Returns a function that converts the cause of a failed operation: `file.sync_all().map_err(cannot("sync",
/// path.display()))`.
pub(super) fn cannot<E: Into<io::Error>>(verb: &'static str, path: impl Display) -> impl FnOnce(E) -> Error {
    move |cause| {
        let cause: io::Error = cause.into();
        let (os_error, kind) = (cause.raw_os_error(), cause.kind());
        Error::new(os_error, io::Error::new(kind, FailedOperation { verb, path: path.to_string(), cause }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_session::failure::chain;

    #[test]
    fn the_log_names_operation_and_path_and_the_error_itself_does_not() {
        let error: Error = cannot("open", "/x/y")(Errno::ACCESS);
        assert!(matches!(error, Error::ReadOnly(_)));
        assert_eq!(error.to_string(), "the output folder or bucket can't be written");
        assert_eq!(
            chain(&error),
            "the output folder or bucket can't be written: cannot open /x/y: Permission denied (os error 13)"
        );
        assert!(matches!(cannot("open", "/x")(Errno::LOOP), Error::Missing(_)));
    }
}
