//! Writes and removes manifests in a folder: those of exports beside the files, those of batches in a folder of each
//! consumer.

use std::io::Read;

use rustix::io::Errno;

use crate::database::DatabaseId;
use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::job::{ConsumerId, JobId};
use crate::manifest::batch;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::{Dir, open_at};
use crate::sink::{Error, Lookup, WrittenManifest};

impl Folder {
    /// Writes a manifest under a hidden name and renames it, unless another file has the name. Syncs the file and the
    /// folder.
    ///
    /// # Errors
    /// If the folder can't be written. The manifest may already have its name, but the name may be lost in a crash.
    pub(super) fn write_manifest(
        &self,
        database: &DatabaseId,
        job: JobId,
        name: &str,
        text: &str,
    ) -> Result<WrittenManifest, Error> {
        failpoint!("sink.manifest", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        self.write_into(&dir, (&dir, name), &HiddenFile::of_marker(database, job), text)
    }

    /// Writes the manifest of a batch, as [`write_manifest`](Folder::write_manifest) does. Makes its folder if there is
    /// none.
    pub(super) fn write_batch_manifest(
        &self,
        (database, job): (&DatabaseId, JobId),
        consumer: &ConsumerId,
        batch: JobId,
        text: &str,
    ) -> Result<WrittenManifest, Error> {
        let (dir, _) = self.open_with_id()?;
        let Some(of_batches) = dir.make_folder(batch::FOLDER)? else { return Ok(WrittenManifest::Taken) };
        let Some(folder) = of_batches.make_folder(consumer.as_str())? else { return Ok(WrittenManifest::Taken) };
        let name = batch::file_name(&batch.to_string());
        // The hidden file is in the folder of the exports, where a sweep finds it.
        let written = self.write_into(&dir, (&folder, &name), &HiddenFile::of_marker(database, job), text)?;
        failpoint!("sink.batch_manifest.renamed", Err(Error::Io(Errno::IO.into())));
        folder.sync()?;
        Ok(written)
    }

    fn write_into(
        &self,
        dir: &Dir,
        (folder, name): (&Dir, &str),
        draft: &HiddenFile,
        text: &str,
    ) -> Result<WrittenManifest, Error> {
        dir.write_small(draft, text, || {
            let written = match dir.move_without_replacing(&draft.name, folder, name) {
                Err(Errno::EXIST) if folder.is_in_the_way(name, text)? => WrittenManifest::Taken,
                // An existing manifest is synced too, because its writer may have died before the sync.
                Err(Errno::EXIST) | Ok(()) => WrittenManifest::Done,
                Err(errno) => return Err(dir.cannot("rename", &draft.name)(errno)),
            };
            failpoint!("sink.manifest.renamed", Err(Error::Io(Errno::IO.into())));
            Ok(written)
        })
    }

    /// Returns true if the name belongs to a file with another content, or to an entry that can't be read.
    pub(super) fn is_in_the_way(&self, name: &str, text: &str) -> Result<bool, Error> {
        self.open_with_id()?.0.is_in_the_way(name, text)
    }

    /// Removes the manifest if its content is this text.
    pub(super) fn remove_manifest(&self, name: &str, text: &str) -> Result<(), Error> {
        self.open_with_id()?.0.remove_if(name, text)
    }

    /// Removes the manifest of a batch if its content is this text.
    pub(super) fn remove_batch_manifest(&self, consumer: &ConsumerId, batch: JobId, text: &str) -> Result<(), Error> {
        let (dir, _) = self.open_with_id()?;
        let Some(of_batches) = dir.folder(batch::FOLDER)? else { return Ok(()) };
        let Some(folder) = of_batches.folder(consumer.as_str())? else { return Ok(()) };
        folder.remove_if(&batch::file_name(&batch.to_string()), text)
    }
}

impl Dir {
    /// Returns true if the name belongs to a file with another content, or to an entry that can't be read.
    fn is_in_the_way(&self, name: &str, text: &str) -> Result<bool, Error> {
        let file = match open_at(&self.fd, name) {
            Ok(Lookup::File(_, file)) => file,
            Ok(Lookup::Nothing) => return Ok(false),
            // The entry is not a regular file, or the process may not read it.
            Ok(Lookup::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(true),
            Err(errno) => return Err(self.cannot("open", name)(errno)),
        };
        let mut found = Vec::new();
        let read = file.take(text.len() as u64 + 1).read_to_end(&mut found);
        read.map_err(self.cannot("read", name))?;
        Ok(found != text.as_bytes())
    }

    /// Removes the file with this name if its content is this text.
    fn remove_if(&self, name: &str, text: &str) -> Result<(), Error> {
        if !self.is_in_the_way(name, text)? {
            self.remove(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::folder::tests::folder;

    #[test]
    fn a_manifest_is_never_replaced() {
        let (dir, folder) = folder();
        let write = |text| {
            let database = "00000000000000ff-1".parse().unwrap();
            folder.write_manifest(&database, JobId::random(), "a.manifest.json", text).unwrap()
        };
        assert!(!folder.is_in_the_way("a.manifest.json", "one").unwrap());
        for _ in 0..2 {
            assert_eq!(write("one"), WrittenManifest::Done);
        }
        for other in ["two", "on", "one and more"] {
            assert_eq!(write(other), WrittenManifest::Taken, "{other}");
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("a.manifest.json")).unwrap(), "one");
        assert!(folder.hidden_files().unwrap().is_empty());
        folder.remove_manifest("a.manifest.json", "two").unwrap();
        assert!(dir.path().join("a.manifest.json").exists());
        folder.remove_manifest("a.manifest.json", "one").unwrap();
        assert!(!dir.path().join("a.manifest.json").exists());
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("a.manifest.json")).unwrap();
        assert_eq!(write("one"), WrittenManifest::Taken, "a link");
    }

    #[test]
    fn the_folder_of_batches_is_no_link() {
        let (dir, folder) = folder();
        let (consumer, batch) = ("a:b".parse().unwrap(), JobId::random());
        let database = "00000000000000ff-1".parse().unwrap();
        let write = || folder.write_batch_manifest((&database, batch), &consumer, batch, "one").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("_batches")).unwrap();
        folder.remove_batch_manifest(&consumer, batch, "one").unwrap();
        assert_eq!(write(), WrittenManifest::Taken);
        std::fs::remove_file(dir.path().join("_batches")).unwrap();
        assert_eq!(write(), WrittenManifest::Done);
        let path = dir.path().join(batch::path("a:b", &batch.to_string()));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        assert!(folder.hidden_files().unwrap().is_empty());
        folder.remove_batch_manifest(&consumer, batch, "one").unwrap();
        assert!(!path.exists() && std::fs::read_dir(&elsewhere).unwrap().next().is_none());
    }
}
