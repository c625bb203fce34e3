//! What a process does to its output folder before it exports or serves: makes it, marks it, and tries whether it can be written.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::Mode;
use uuid::Uuid;

use crate::sink::folder::entries::{create, remove_at};
use crate::sink::folder::{ANOTHER, Folder, id};
use crate::sink::{Error, MARK, Prepared};

impl Folder {
    /// Makes the folder where there is none, gives it its mark, and requires that a file can be made in it. For a process that
    /// exports or serves: those that only look make nothing.
    ///
    /// # Errors
    /// If it can't be made or written. A full disk is no error where the folder has its mark: its jobs wait for room.
    pub fn prepare(&self) -> Result<Prepared, Error> {
        let made = std::fs::DirBuilder::new().recursive(true).create(&self.path);
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::Missing(io::Error::new(
                io::ErrorKind::NotADirectory,
                "there is a file, and a folder is expected",
            )),
            _ => error.into(),
        })?;
        let dir = self.open_dir()?;
        let (found, prepared) = match id::read(&dir)? {
            Some(id) => (id, Prepared::Known),
            None => (id::make(&dir, self.file_mode)?, Prepared::New),
        };
        if *self.id.get_or_init(|| found) != found {
            return Err(ANOTHER);
        }
        match probe(&dir, self.file_mode) {
            Ok(()) | Err(Error::Full(_)) => Ok(prepared),
            Err(error) => Err(error),
        }
    }
}

/// Requires that a file can be made.
fn probe(dir: &OwnedFd, mode: Option<Mode>) -> Result<(), Error> {
    let name = format!("{MARK}.{}", Uuid::new_v4());
    create(dir, &name, mode)?;
    remove_at(dir, &name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_prepared_folder_gets_a_mark_and_a_lost_mark_is_not_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        assert!(matches!(folder.destination_id(), Err(Error::Unused)));
        assert!(std::fs::read_dir(&dir).unwrap().next().is_none());
        assert_eq!(folder.prepare().unwrap(), Prepared::New);
        std::fs::remove_file(dir.path().join(MARK)).unwrap();
        let gone = folder.destination_id().unwrap_err().to_string();
        assert_eq!(
            gone,
            "the `.cdc-export-store` of the output folder or bucket is gone: bring the right one back, or restart to adopt this one"
        );
        assert_eq!(Folder::new(dir.path().to_owned()).prepare().unwrap(), Prepared::New, "a restart adopts it");
        assert!(matches!(folder.destination_id(), Err(Error::Replaced("is another folder's"))));
    }
}
