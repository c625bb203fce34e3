//! Writes and removes manifests in a folder, beside the files of their exports.

use std::io::Read;

use rustix::io::Errno;

use crate::database::DatabaseId;
use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::job::JobId;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::open_at;
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
        let draft = HiddenFile::of_marker(database, job);
        dir.write_small(&draft, text, || {
            let written = match dir.rename_without_replacing(&draft.name, name) {
                Err(Errno::EXIST) if self.is_in_the_way(name, text)? => WrittenManifest::Taken,
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
        let (dir, _) = self.open_with_id()?;
        let file = match open_at(&dir.fd, name) {
            Ok(Lookup::File(_, file)) => file,
            Ok(Lookup::Nothing) => return Ok(false),
            // The entry is not a regular file, or the process may not read it.
            Ok(Lookup::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(true),
            Err(errno) => return Err(dir.cannot("open", name)(errno)),
        };
        let mut found = Vec::new();
        let read = file.take(text.len() as u64 + 1).read_to_end(&mut found);
        read.map_err(dir.cannot("read", name))?;
        Ok(found != text.as_bytes())
    }

    /// Removes the manifest if its content is this text.
    pub(super) fn remove_manifest(&self, name: &str, text: &str) -> Result<(), Error> {
        if !self.is_in_the_way(name, text)? {
            self.open_with_id()?.0.remove(name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::folder::tests::folder;

    #[test]
    fn another_text_or_a_link_is_in_the_way() {
        let (dir, folder) = folder();
        let write = |text| {
            let database = "00000000000000ff-1".parse().unwrap();
            folder.write_manifest(&database, JobId::random(), "a.manifest.json", text).unwrap()
        };
        assert_eq!(write("one"), WrittenManifest::Done);
        for other in ["two", "on", "one and more"] {
            assert_eq!(write(other), WrittenManifest::Taken, "{other}");
        }
        folder.remove_manifest("a.manifest.json", "one").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("a.manifest.json")).unwrap();
        assert_eq!(write("one"), WrittenManifest::Taken, "a link");
    }
}
