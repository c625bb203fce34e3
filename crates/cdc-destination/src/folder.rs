//! A folder as a destination. Files are written there under hidden names, and renamed when they are committed.
//!
//! After `stage` of a draft the bytes are on disk. After [`Folder::give_name`] the name is too. Every path is one name
//! below the folder's own descriptor, and symbolic links are not followed. All functions block; [`destination`] runs
//! them on threads.

pub(super) mod archive;
pub(super) mod destination;
mod draft;
mod entries;
mod id;
mod preparation;
mod small_file;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use rustix::io::Errno;
use uuid::Uuid;

use crate::folder::draft::FolderDraft;
use crate::folder::entries::{Dir, identity, is_own_name, open_at, require_room};
use crate::{Error, FileLocation, HiddenFile, Lookup, Published, StagedFile};
use failpoint::failpoint;

const ANOTHER: Error = Error::Replaced("is another folder's");

/// A folder for files, on a disk of this host. Each function does what the [`Destination`](super::Destination)'s
/// function does.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    id: OnceLock<Uuid>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Folder {
        Folder { path, id: OnceLock::new() }
    }

    fn destination_id(&self) -> Result<Uuid, Error> {
        Ok(self.open_with_id()?.1)
    }

    /// Opens the folder and reads the id from the same descriptor. After a disk is unmounted, the path leads to
    /// another, empty folder, which says nothing about this one's files.
    fn open_with_id(&self) -> Result<(Dir, Uuid), Error> {
        let dir = Dir::open(&self.path)?;
        let found = match (id::read(&dir)?, self.id.get()) {
            (Some(id), _) => id,
            (None, None) => return Err(Error::Unused),
            (None, Some(_)) => return Err(Error::Replaced("is gone")),
        };
        if *self.id.get_or_init(|| found) != found {
            return Err(ANOTHER);
        }
        Ok((dir, found))
    }

    /// Opens the folder if it is the one that has this file.
    fn open_for(&self, file: &StagedFile) -> Result<Dir, Error> {
        let (dir, id) = self.open_with_id()?;
        if id == file.destination { Ok(dir) } else { Err(Error::Elsewhere) }
    }

    fn create(&self, hidden: &HiddenFile) -> Result<FolderDraft, Error> {
        failpoint!("sink.create", Err(Error::Full(Errno::NOSPC.into())));
        let (dir, id) = self.open_with_id()?;
        require_room(&dir.fd)?;
        let file = dir.create(&hidden.name)?;
        Ok(FolderDraft::new(id, dir, hidden.name.clone(), file))
    }

    /// Renames a staged file and puts the name on disk. `moves` allows to take the file from another final name.
    fn give_name(&self, file: &StagedFile, name: &str, moves: bool) -> Result<Published, Error> {
        failpoint!("sink.publish", Err(Error::Io(Errno::IO.into())));
        let (staged, recorded) = (file.name.as_str(), &file.identity);
        // The names are the database's. A person who may write there must not move other files.
        if !is_own_name(name) || HiddenFile::read(staged).is_none() {
            return Err(Error::Io(io::Error::other(format!("{name:?} or {staged:?} is no name of ours"))));
        }
        let dir = self.open_for(file)?;
        let renamed = match dir.rename_without_replacing(staged, name) {
            Err(Errno::NOENT) if dir.identity(name)?.as_ref() != Some(recorded) => match dir.locate(recorded)? {
                // A client may have seen the file under that name, and this caller was held up meanwhile.
                Some(found) if !moves && !found.starts_with('.') => return Ok(Published::Misnamed),
                // The process that gave the file that name was overtaken or died, and never recorded the name.
                Some(found) => dir.rename_without_replacing(&found, name),
                None => Err(Errno::NOENT),
            },
            renamed => renamed,
        };
        let published = match renamed {
            Ok(()) => Published::Done(recorded.location.clone()),
            Err(Errno::EXIST | Errno::NOENT) if dir.identity(name)?.as_ref() == Some(recorded) => {
                // The hidden name is left if a process died between `link` and `unlink`.
                dir.remove(staged)?;
                Published::Done(recorded.location.clone())
            }
            Err(Errno::EXIST) => Published::Taken,
            Err(Errno::NOENT) => Published::Gone,
            Err(errno) => return Err(dir.cannot("rename", staged)(errno)),
        };
        failpoint!("sink.publish.renamed", Err(Error::Io(Errno::IO.into())));
        dir.sync()?;
        Ok(published)
    }

    /// Returns the URL of the file with this name, or `None` if the current folder is unknown.
    fn location(&self, name: &str) -> Option<String> {
        let path = std::path::absolute(&self.path).ok()?.join(name);
        Some(url::Url::from_file_path(path).ok()?.into())
    }

    fn open(&self, file: &StagedFile, name: &str) -> Result<Option<File>, Error> {
        let dir = self.open_for(file)?;
        if !is_own_name(name) {
            return Ok(None);
        }
        match open_at(&dir.fd, name).map_err(dir.cannot("open", name))? {
            Lookup::File(_, found) if identity(&found).map_err(dir.cannot("look up", name))? == file.identity => {
                Ok(Some(found))
            }
            _ => Ok(None),
        }
    }

    /// Removes files, with one sync of the folder for all that were published.
    fn remove(&self, files: &[(String, StagedFile)]) -> Result<(), Error> {
        let (mut removed_from, mut outcome) = (None, Ok(()));
        for (name, file) in files {
            match self.remove_file(file, name) {
                Ok(dir) => removed_from = dir.or(removed_from),
                Err(error) if error.is_of_the_place() => return Err(error),
                Err(error) => outcome = Err(error),
            }
        }
        removed_from.map_or(Ok(()), |dir| dir.sync()).and(outcome)
    }

    /// Removes a file under its hidden name, and under its final one. Returns the folder if the file had its final
    /// name.
    fn remove_file(&self, file: &StagedFile, name: &str) -> Result<Option<Dir>, Error> {
        let dir = self.open_for(file)?;
        if HiddenFile::read(&file.name).is_some() {
            dir.remove(&file.name)?;
        }
        if !is_own_name(name) || dir.identity(name)?.as_ref() != Some(&file.identity) {
            return Ok(None);
        }
        dir.remove(name)?;
        Ok(Some(dir))
    }

    fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        let mut found = Vec::new();
        failpoint!("sink.sweep", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        for name in dir.names()? {
            found.extend(HiddenFile::read(&name?.to_string_lossy()));
        }
        Ok(found)
    }

    /// Compares `unwritten_for` with the clock of this host.
    fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let (dir, _) = self.open_with_id()?;
        if let Some(time) = unwritten_for {
            let Some(found) = dir.identity(&hidden.name)? else { return Ok(false) };
            let FileLocation::Folder { modified_ns, .. } = found.location else { return Ok(false) };
            let modified = UNIX_EPOCH + Duration::from_nanos(modified_ns.unsigned_abs());
            if !modified.elapsed().is_ok_and(|elapsed| elapsed >= time) {
                return Ok(false);
            }
        }
        dir.remove(&hidden.name)
    }

    fn require_room(&self) -> Result<(), Error> {
        self.open_with_id()?.0.require_room()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::DatabaseId;
    use crate::FileIdentity;
    use crate::{DESTINATION_ID_FILE, Draft};
    use cdc_manifest::JobId;

    pub(super) fn hidden() -> HiddenFile {
        let database: DatabaseId = "00000000000000ff-1".parse().unwrap();
        HiddenFile::of_attempt(&database, JobId::random(), Uuid::new_v4(), 1)
    }

    pub(super) fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        folder.prepare().unwrap();
        (dir, folder)
    }

    fn staged(folder: &Folder, content: &str) -> StagedFile {
        let mut draft = Box::new(folder.create(&hidden()).unwrap());
        draft.write(content.as_bytes()).unwrap();
        draft.stage().unwrap()
    }

    #[test]
    fn a_name_that_leads_out_of_the_folder_is_none_of_ours() {
        let outer = tempfile::tempdir().unwrap();
        let folder = Folder::new(outer.path().join("inner"));
        folder.prepare().unwrap();
        let file = staged(&folder, "abc");
        for name in [
            "../out",
            "..",
            ".",
            "",
            "/tmp/out",
            "a/../../out",
            ".hidden",
            DESTINATION_ID_FILE,
            "a\0b",
            "a\nb",
            "a\"b",
            "a\\b",
            "\u{e9}",
        ] {
            assert!(folder.give_name(&file, name, false).is_err(), "{name:?}");
        }
        std::fs::write(outer.path().join("out"), "theirs").unwrap();
        let identity = identity(&File::open(outer.path().join("out")).unwrap()).unwrap();
        let out = StagedFile { name: "../out".to_owned(), identity, ..file.clone() };
        assert!(folder.give_name(&out, "a.csv", false).is_err());
        assert!(folder.open(&out, "../out").unwrap().is_none());
        folder.remove(&[("../out".to_owned(), out)]).unwrap();
        assert!(outer.path().join("out").exists());
        assert_eq!(folder.give_name(&file, "a.csv", false).unwrap(), Published::Done(file.identity.location.clone()));
    }

    #[test]
    fn the_file_of_the_id_is_short_and_has_the_same_id() {
        let (dir, folder) = folder();
        let id = folder.destination_id().unwrap();
        let id_file = dir.path().join(DESTINATION_ID_FILE);
        std::fs::write(&id_file, format!("{id}{}", " ".repeat(1 << 20))).unwrap();
        assert!(folder.destination_id().is_err(), "a large file");
        std::fs::write(&id_file, format!("{id}\n")).unwrap();
        assert_eq!(folder.destination_id().unwrap(), id);
        std::fs::remove_file(&id_file).unwrap();
        Folder::new(dir.path().to_owned()).prepare().unwrap();
        assert!(matches!(folder.destination_id(), Err(Error::Replaced("is another folder's"))));
    }

    #[test]
    fn a_lost_file_is_looked_for_among_exports_alone() {
        let (dir, folder) = folder();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        std::fs::write(dir.path().join(".theirs"), "theirs").unwrap();
        for name in [".theirs", "link"] {
            let found = std::fs::symlink_metadata(dir.path().join(name)).unwrap();
            let modified_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
            let location = FileLocation::Folder { inode: found.ino(), modified_ns };
            let identity = FileIdentity { bytes: found.size(), location };
            let destination = folder.destination_id().unwrap();
            let file = StagedFile { destination, name: hidden().name, sha256: String::new(), identity };
            assert_eq!(folder.give_name(&file, "a.csv", false).unwrap(), Published::Gone, "{name}");
            folder.remove(&[("link".to_owned(), file)]).unwrap();
            assert!(dir.path().join(name).symlink_metadata().is_ok(), "{name}");
        }
    }
}
