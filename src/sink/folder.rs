//! A folder as a destination: files are written there under hidden names and get their final ones when they are committed.
//!
//! Durability: after `stage` of a draft the bytes are on disk, after [`Folder::publish`] the name is too. Every path is one name below the
//! folder's own descriptor, and symbolic links are not followed. Blocking throughout.

pub(super) mod archive;
mod draft;
mod entries;
pub(super) mod id;
mod manifest;
mod marker;
mod preparation;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use uuid::Uuid;

use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::file::{FileLocation, StagedFile};
use crate::sink::folder::draft::FolderDraft;
use crate::sink::folder::entries::{
    create, find, identity, identity_at, is_own_name, open_at, remove_at, rename_without_replacing, require_room,
};
use crate::sink::found::Found;
use crate::sink::{Error, Published};

const ANOTHER: Error = Error::Replaced("is another folder's");

/// A folder for files, on a disk of this host. What a call does and returns is said at the [`Destination`](super::Destination)'s.
///
/// # Errors
/// Every call fails if the folder can't be read or written, or has no mark or another one than before.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    file_mode: Option<Mode>,
    id: OnceLock<Uuid>,
}

impl Folder {
    /// The folder at `path`; touches nothing yet.
    pub fn new(path: PathBuf) -> Folder {
        Folder { path, file_mode: None, id: OnceLock::new() }
    }

    /// With this mode for its files, whatever the umask is; `None`: what the umask leaves of 0666. The folder itself, where it
    /// is made, gets what the umask leaves of 0777.
    pub fn with_file_mode(self, mode: Option<u32>) -> Folder {
        Folder { file_mode: mode.map(Mode::from_raw_mode), ..self }
    }

    /// The folder's id, which is kept in a small file of the folder, its mark.
    pub fn destination_id(&self) -> Result<Uuid, Error> {
        Ok(self.open_with_id()?.1)
    }

    /// The folder, and its id as it reads this very one: where a disk was unmounted, an empty folder answers to the same path,
    /// and its emptiness says nothing of our files.
    fn open_with_id(&self) -> Result<(OwnedFd, Uuid), Error> {
        let dir = self.open_dir()?;
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

    /// The folder, if it is the one that has this file.
    fn open_for(&self, file: &StagedFile) -> Result<OwnedFd, Error> {
        let (dir, id) = self.open_with_id()?;
        if id == file.destination { Ok(dir) } else { Err(Error::Elsewhere) }
    }

    /// Begins the hidden file of an attempt.
    pub(super) fn create(&self, hidden: &HiddenFile) -> Result<FolderDraft, Error> {
        failpoint!("sink.create", Err(Error::Full(Errno::NOSPC.into())));
        let (dir, id) = self.open_with_id()?;
        require_room(&dir)?;
        let file = create(&dir, &hidden.name, self.file_mode)?;
        Ok(FolderDraft::new(id, dir, hidden.name.clone(), file))
    }

    /// Gives a staged file its final name and puts the name on disk.
    pub fn publish(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.give_name(file, name, false)
    }

    /// As [`publish`](Folder::publish), of a file that may have another final name.
    pub fn rename(&self, file: &StagedFile, name: &str) -> Result<Published, Error> {
        self.give_name(file, name, true)
    }

    fn give_name(&self, file: &StagedFile, name: &str, moves: bool) -> Result<Published, Error> {
        failpoint!("sink.publish", Err(Error::Io(Errno::IO.into())));
        let (staged, recorded) = (file.name.as_str(), &file.identity);
        // The database says so, and who may write there must not move files elsewhere.
        if !is_own_name(name) || HiddenFile::read(staged).is_none() {
            return Err(Error::Io(io::Error::other(format!("{name:?} or {staged:?} is no name of ours"))));
        }
        let dir = self.open_for(file)?;
        let renamed = match rename_without_replacing(&dir, staged, name) {
            Err(Errno::NOENT) if identity_at(&dir, name)?.as_ref() != Some(recorded) => match find(&dir, recorded)? {
                // Perhaps it was handed out under that name, and this caller was held up meanwhile.
                Some(found) if !moves && !found.starts_with('.') => return Ok(Published::Misnamed),
                // Who gave it that name was overtaken or died, and it was never recorded.
                Some(found) => rename_without_replacing(&dir, &found, name),
                None => Err(Errno::NOENT),
            },
            renamed => renamed,
        };
        let published = match renamed {
            Ok(()) => Published::Done(recorded.location.clone()),
            Err(Errno::EXIST | Errno::NOENT) if identity_at(&dir, name)?.as_ref() == Some(recorded) => {
                // Left by a `link` without its `unlink`, or not there.
                remove_at(&dir, staged)?;
                Published::Done(recorded.location.clone())
            }
            Err(Errno::EXIST) => Published::Taken,
            Err(Errno::NOENT) => Published::Gone,
            Err(errno) => return Err(errno.into()),
        };
        failpoint!("sink.publish.renamed", Err(Error::Io(Errno::IO.into())));
        rustix::fs::fsync(&dir)?;
        Ok(published)
    }

    /// Where a file of this name is, as a URL. `None`: the current folder can't be found out.
    pub fn location(&self, name: &str) -> Option<String> {
        let path = std::path::absolute(&self.path).ok()?.join(name);
        Some(url::Url::from_file_path(path).ok()?.into())
    }

    /// Opens a published file if it is still the one that was recorded.
    pub fn open(&self, file: &StagedFile, name: &str) -> Result<Option<File>, Error> {
        let dir = self.open_for(file)?;
        if !is_own_name(name) {
            return Ok(None);
        }
        match open_at(&dir, name)? {
            Found::File(_, found) if identity(&found)? == file.identity => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// Removes a published file if it is still the one that was recorded.
    pub fn remove(&self, file: &StagedFile, name: &str) -> Result<(), Error> {
        let dir = self.open_for(file)?;
        if is_own_name(name) && identity_at(&dir, name)?.as_ref() == Some(&file.identity) {
            remove_at(&dir, name)?;
            rustix::fs::fsync(&dir)?;
        }
        Ok(())
    }

    /// Removes a staged file that nobody may publish any more, wherever it is.
    pub fn discard(&self, file: &StagedFile, name: &str) -> Result<(), Error> {
        let dir = self.open_for(file)?;
        if HiddenFile::read(&file.name).is_some() {
            remove_at(&dir, &file.name)?;
        }
        self.remove(file, name)
    }

    /// The hidden files that there are.
    pub fn hidden_files(&self) -> Result<Vec<HiddenFile>, Error> {
        let mut found = Vec::new();
        failpoint!("sink.sweep", Err(Error::Io(Errno::IO.into())));
        for entry in rustix::fs::Dir::new(self.open_with_id()?.0)? {
            found.extend(HiddenFile::read(&entry?.file_name().to_string_lossy()));
        }
        Ok(found)
    }

    /// Removes a hidden file, or only one that was last written at least so long ago by the clock of this host, where that is said.
    /// True: it did.
    pub fn sweep(&self, hidden: &HiddenFile, unwritten_for: Option<Duration>) -> Result<bool, Error> {
        let (dir, _) = self.open_with_id()?;
        if let Some(time) = unwritten_for {
            let Some(found) = identity_at(&dir, &hidden.name)? else { return Ok(false) };
            let FileLocation::Folder { modified_ns, .. } = found.location else { return Ok(false) };
            let modified = UNIX_EPOCH + Duration::from_nanos(modified_ns.unsigned_abs());
            if !modified.elapsed().is_ok_and(|elapsed| elapsed >= time) {
                return Ok(false);
            }
        }
        Ok(remove_at(&dir, &hidden.name)?)
    }

    /// Requires that the folder can take a file now.
    pub fn require_room(&self) -> Result<(), Error> {
        let (dir, _) = self.open_with_id()?;
        rustix::fs::accessat(&dir, ".", rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK, AtFlags::empty())?;
        require_room(&dir)
    }

    fn open_dir(&self) -> Result<OwnedFd, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.path, flags, Mode::empty())?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::database::DatabaseId;
    use crate::file::FileIdentity;
    use crate::job::{JobId, LeaseToken};
    use crate::sink::{Draft, MARK};

    pub(super) fn hidden() -> HiddenFile {
        let database: DatabaseId = "00000000000000ff-1".parse().unwrap();
        HiddenFile::of_attempt(&database, JobId::random(), LeaseToken::random())
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

    fn visible(dir: &tempfile::TempDir) -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name != MARK).collect()
    }

    #[test]
    fn a_dropped_draft_leaves_nothing() {
        let (dir, folder) = folder();
        let mut draft = folder.create(&hidden()).unwrap();
        draft.write(b"half").unwrap();
        assert_eq!(folder.hidden_files().unwrap().len(), 1);
        drop(draft);
        assert!(visible(&dir).is_empty());
    }

    #[test]
    fn publishing_twice_is_publishing_once() {
        let (dir, folder) = folder();
        let file = staged(&folder, "abc");
        assert_eq!(file.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        for _ in 0..2 {
            assert_eq!(folder.publish(&file, "a.csv").unwrap(), Published::Done(file.identity.location.clone()));
        }
        assert_eq!(visible(&dir), ["a.csv"]);
        assert!(folder.open(&file, "a.csv").unwrap().is_some());
    }

    #[test]
    fn a_file_is_taken_from_another_final_name_by_those_alone_who_know_that_it_is_none() {
        let (dir, folder) = folder();
        let file = staged(&folder, "abc");
        folder.publish(&file, "a-2.csv").unwrap();
        assert_eq!(folder.publish(&file, "a.csv").unwrap(), Published::Misnamed);
        assert_eq!(visible(&dir), ["a-2.csv"]);
        assert_eq!(folder.rename(&file, "a.csv").unwrap(), Published::Done(file.identity.location.clone()));
        assert_eq!(visible(&dir), ["a.csv"]);
    }

    #[test]
    fn only_the_recorded_file_is_removed() {
        let (dir, folder) = folder();
        let file = staged(&folder, "abc");
        folder.publish(&file, "a.csv").unwrap();
        let location = FileLocation::Folder { inode: 0, modified_ns: 0 };
        let identity = FileIdentity { location, ..file.identity };
        folder.remove(&StagedFile { identity, ..file.clone() }, "a.csv").unwrap();
        assert_eq!(visible(&dir), ["a.csv"]);
        for _ in 0..2 {
            folder.remove(&file, "a.csv").unwrap();
            assert!(visible(&dir).is_empty());
        }
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
            MARK,
            "a\0b",
            "a\nb",
            "a\"b",
            "a\\b",
            "\u{e9}",
        ] {
            assert!(folder.publish(&file, name).is_err(), "{name:?}");
        }
        std::fs::write(outer.path().join("out"), "theirs").unwrap();
        let identity = identity(&File::open(outer.path().join("out")).unwrap()).unwrap();
        let out = StagedFile { name: "../out".to_owned(), identity, ..file.clone() };
        assert!(folder.publish(&out, "a.csv").is_err());
        assert!(folder.open(&out, "../out").unwrap().is_none());
        folder.remove(&out, "../out").unwrap();
        assert!(outer.path().join("out").exists());
        assert_eq!(folder.publish(&file, "a.csv").unwrap(), Published::Done(file.identity.location.clone()));
    }

    #[test]
    fn a_mark_is_a_short_file() {
        let (dir, folder) = folder();
        let id = folder.destination_id().unwrap();
        let mark = dir.path().join(MARK);
        std::fs::write(&mark, format!("{id}{}", " ".repeat(1 << 20))).unwrap();
        assert!(folder.destination_id().is_err(), "a large file");
        std::fs::write(&mark, format!("{id}\n")).unwrap();
        assert_eq!(folder.destination_id().unwrap(), id);
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
            assert_eq!(folder.publish(&file, "a.csv").unwrap(), Published::Gone, "{name}");
            folder.remove(&file, "link").unwrap();
            assert!(dir.path().join(name).symlink_metadata().is_ok(), "{name}");
        }
    }
}
