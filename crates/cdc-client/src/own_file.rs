//! Opens this user's own files in a folder that other users may write to.
//!
//! Another user may put a link, a pipe or another file under the name of such a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The longest text that is read from a file, in bytes.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// Opens a regular file of this user that has one name. Doesn't follow a link, and doesn't wait for the other end of a
/// pipe.
pub(super) fn open(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.clone().custom_flags(flags).open(path).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::LOOP.raw_os_error() => io::Error::other("it is a symbolic link: remove it"),
        // A socket, or a pipe that nobody reads.
        Some(code) if code == Errno::NXIO.raw_os_error() => not_own(),
        _ => error,
    })?;
    let found = file.metadata()?;
    let own = rustix::process::geteuid().as_raw();
    if !found.is_file() || found.uid() != own || found.nlink() != 1 {
        return Err(not_own());
    }
    Ok(file)
}

fn not_own() -> io::Error {
    io::Error::other("it is not a regular file of yours with a single hard link: remove it")
}

/// Reads the whole of a short file, opened as [`open`] does.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open(path, OpenOptions::new().read(true))?.take(MAX_TEXT_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_TEXT_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_TEXT_BYTES} bytes: another process wrote it")));
    }
    Ok(text)
}
