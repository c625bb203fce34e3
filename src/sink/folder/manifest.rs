//! Manifests in a folder, beside the files.

use std::io::Read;

use rustix::io::Errno;

use crate::database::DatabaseId;
use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::job::JobId;
use crate::sink::Error;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::{open_at, remove_at, rename_without_replacing, write_small};
use crate::sink::found::Found;
use crate::sink::manifests::WrittenManifest;

impl Folder {
    /// Writes a manifest under a hidden name, gives it its own unless that is taken, and puts both on disk.
    ///
    /// # Errors
    /// If the folder can't be written. The manifest may have its name then, which perhaps doesn't survive a crash.
    pub fn write_manifest(
        &self,
        database: &DatabaseId,
        job: JobId,
        name: &str,
        text: &str,
    ) -> Result<WrittenManifest, Error> {
        failpoint!("sink.manifest", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let draft = HiddenFile::of_marker(database, job);
        write_small(&dir, &draft, self.file_mode, text, || {
            let written = match rename_without_replacing(&dir, &draft.name, name) {
                Err(Errno::EXIST) if self.is_in_the_way(name, text)? => WrittenManifest::Taken,
                // Also one that is there: who wrote it may have died before it was safe.
                Err(Errno::EXIST) | Ok(()) => WrittenManifest::Done,
                Err(errno) => return Err(errno.into()),
            };
            failpoint!("sink.manifest.renamed", Err(Error::Io(Errno::IO.into())));
            Ok(written)
        })
    }

    /// Whether something has this name, and isn't this text.
    pub fn is_in_the_way(&self, name: &str, text: &str) -> Result<bool, Error> {
        let (dir, _) = self.open_with_id()?;
        let file = match open_at(&dir, name) {
            Ok(Found::File(_, file)) => file,
            Ok(Found::Nothing) => return Ok(false),
            // Nobody's to read.
            Ok(Found::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        };
        let mut found = Vec::new();
        file.take(text.len() as u64 + 1).read_to_end(&mut found)?;
        Ok(found != text.as_bytes())
    }

    /// Removes a manifest, if this is the one that stands there.
    pub fn remove_manifest(&self, name: &str, text: &str) -> Result<(), Error> {
        if !self.is_in_the_way(name, text)? {
            remove_at(&self.open_with_id()?.0, name)?;
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
}
