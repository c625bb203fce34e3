//! The id of a folder, in a small file of the folder. By the id a process with another disk knows that a job's files
//! are elsewhere.

use std::io;

use uuid::Uuid;

use crate::folder::entries::Dir;
use crate::{DESTINATION_ID_FILE, Error};

/// The file has 36 characters and the end of the line.
const ID_MAX_BYTES: u64 = 64;

pub(super) fn read(dir: &Dir) -> Result<Option<Uuid>, Error> {
    let Some(found) = dir.read_small(DESTINATION_ID_FILE, ID_MAX_BYTES)? else { return Ok(None) };
    found.id().map(Some).ok_or_else(|| cannot_read(dir, "it holds no id"))
}

/// Gives the folder an id. Writes it whole before naming it, so a replica that starts at the same time reads all of it
/// or nothing.
pub(super) fn make(dir: &Dir) -> Result<Uuid, Error> {
    let id = Uuid::new_v4();
    let draft = format!("{DESTINATION_ID_FILE}.{id}");
    if dir.write_small(&draft, &format!("{id}\n"), || dir.name_draft(&draft, DESTINATION_ID_FILE))? {
        return Ok(id);
    }
    read(dir)?.ok_or_else(|| cannot_read(dir, "it was removed meanwhile"))
}

fn cannot_read(dir: &Dir, why: &'static str) -> Error {
    dir.cannot("read", DESTINATION_ID_FILE)(io::Error::other(why))
}
