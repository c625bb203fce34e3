//! The preparation of an output folder: creates it, gives it an id, and checks that it can be written.

use std::io;

use uuid::Uuid;

use crate::sink::error::cannot;
use crate::sink::folder::entries::Dir;
use crate::sink::folder::{ANOTHER, Folder, id};
use crate::sink::{DESTINATION_ID_FILE, Error, Prepared};

impl Folder {
    /// Creates the folder if it is missing, gives it an id if it has none, and checks that a file can be created in it.
    ///
    /// # Errors
    /// A full disk is no error if the folder has an id: its jobs wait for room.
    pub(super) fn prepare(&self) -> Result<Prepared, Error> {
        let made = std::fs::DirBuilder::new().recursive(true).create(&self.path);
        made.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => Error::Missing(io::Error::new(
                io::ErrorKind::NotADirectory,
                "there is a file, and a folder is expected",
            )),
            _ => cannot("create", self.path.display())(error),
        })?;
        let dir = Dir::open(&self.path)?;
        let (found, prepared) = match id::read(&dir)? {
            Some(id) => (id, Prepared::Known),
            None => (id::make(&dir)?, Prepared::New),
        };
        if *self.id.get_or_init(|| found) != found {
            return Err(ANOTHER);
        }
        match probe(&dir) {
            Ok(()) | Err(Error::Full(_)) => Ok(prepared),
            Err(error) => Err(error),
        }
    }
}

/// Checks that a file can be created.
fn probe(dir: &Dir) -> Result<(), Error> {
    let name = format!("{DESTINATION_ID_FILE}.{}", Uuid::new_v4());
    dir.create(&name)?;
    dir.remove(&name)?;
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
        std::fs::remove_file(dir.path().join(DESTINATION_ID_FILE)).unwrap();
        let gone = folder.destination_id().unwrap_err().to_string();
        assert_eq!(
            gone,
            "the `.cdc-export-store` of the output folder or bucket is gone: bring the right one back, or restart to adopt this one"
        );
        assert_eq!(Folder::new(dir.path().to_owned()).prepare().unwrap(), Prepared::New, "a restart adopts it");
        assert!(matches!(folder.destination_id(), Err(Error::Replaced("is another folder's"))));
    }
}
