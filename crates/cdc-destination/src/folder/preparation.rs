//! The preparation of an output folder: creates it, gives it an id, and checks that it can be written.

use std::io;

use uuid::Uuid;

use crate::error::cannot;
use crate::folder::entries::Dir;
use crate::folder::{ANOTHER, Folder, id};
use crate::{DESTINATION_ID_FILE, Error, Prepared};

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

fn probe(dir: &Dir) -> Result<(), Error> {
    let name = format!("{DESTINATION_ID_FILE}.{}", Uuid::new_v4());
    dir.create(&name)?;
    dir.remove(&name)?;
    Ok(())
}
