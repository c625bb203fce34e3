//! Markers: which export of each lane the folder has handed out last, as a witness against a database that was put back. No
//! retention and no sweep removes a marker.

use std::io::{self, Read};

use rustix::io::Errno;

use crate::database::DatabaseId;
use crate::failpoint;
use crate::file::hidden::HiddenFile;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};
use crate::sink::Error;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::{open_at, write_small};
use crate::sink::found::Found;
use crate::sink::marker_file;

/// It has some hundred bytes.
const MARKER_MAX_BYTES: u64 = 4096;

impl Folder {
    /// The marker of a database's lane; `None` if there is none, [`Marker::unreadable`] if something else has its name, or nobody may
    /// read it.
    ///
    /// # Errors
    /// If the folder or the file can't be read.
    pub fn marker(&self, database: &DatabaseId, consumer: &ConsumerId, dataset: &str) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let name = marker_file::name(database, consumer, dataset);
        let file = match open_at(&dir, &name) {
            Ok(Found::File(_, file)) => file,
            Ok(Found::Nothing) => return Ok(None),
            // Nobody's to read.
            Ok(Found::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(Some(Marker::unreadable())),
            Err(errno) => return Err(errno.into()),
        };
        let mut text = Vec::new();
        file.take(MARKER_MAX_BYTES).read_to_end(&mut text)?;
        Ok(Some(marker_file::read(&text, consumer, dataset)))
    }

    /// Makes it durable that this export of a lane is the last one that is handed out, in place of none or of `replaced`. Called before
    /// its file has its name. Returns another marker that stands there, and that it left: what that tells of is perhaps known to nobody
    /// else.
    ///
    /// # Errors
    /// If the folder can't be written. The marker is the one before then, or this one.
    pub fn mark(
        &self,
        database: &DatabaseId,
        consumer: &ConsumerId,
        dataset: &str,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let present = self.marker(database, consumer, dataset)?;
        let other = marker_file::in_the_way(present.as_ref(), marker, replaced);
        if other.is_some() {
            return Ok(other);
        }
        if present.as_ref() == Some(marker) {
            // Who wrote it may have died before this.
            rustix::fs::fsync(&dir)?;
            return Ok(None);
        }
        let text = marker_file::text(consumer, dataset, marker)?;
        let draft = HiddenFile::of_marker(database, marker.job);
        let name = marker_file::name(database, consumer, dataset);
        write_small(&dir, &draft, self.file_mode, &text, || {
            let renamed = rustix::fs::renameat(&dir, &draft.name, &dir, &name);
            renamed.map_err(|errno| io::Error::new(errno.kind(), format!("{name}: {errno}")).into())
        })?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_has_one_marker_of_each_database() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().to_owned());
        folder.prepare().unwrap();
        let [ours, copy] =
            ["1-16384", "1-16385"].map(|id| format!("000000000000000{id}").parse::<DatabaseId>().unwrap());
        let [a, b]: [ConsumerId; 2] = ["a:b".parse().unwrap(), "A:B".parse().unwrap()];
        let marker = |sha256: &str| Marker { job: JobId::new(), sha256: sha256.to_owned() };
        let (first, last, other) = (marker("1"), marker("2"), marker("3"));
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), None);
        for (marker, replaced) in [(&first, None), (&last, Some(first.job)), (&last, None)] {
            assert_eq!(folder.mark(&ours, &a, "users", marker, replaced).unwrap(), None);
            assert_eq!(folder.marker(&ours, &a, "users").unwrap().as_ref(), Some(marker));
        }
        // Of any other one nothing is known here.
        for replaced in [None, Some(other.job)] {
            assert_eq!(folder.mark(&ours, &a, "users", &first, replaced).unwrap().as_ref(), Some(&last));
        }
        folder.mark(&copy, &a, "users", &other, None).unwrap();
        folder.mark(&ours, &b, "users", &other, None).unwrap();
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), Some(last));
        assert_eq!(folder.marker(&ours, &a, "user").unwrap(), None);
        assert!(folder.hidden_files().unwrap().is_empty(), "nothing for the sweeper");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4);

        // What can't be read tells of nothing that is known, and is replaced by whoever saw that.
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.file_name().unwrap().to_str().unwrap().starts_with(".lane-") {
                std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
            }
        }
        let unreadable = Some(Marker::unreadable());
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), unreadable);
        assert_eq!(folder.mark(&ours, &a, "users", &first, Some(other.job)).unwrap(), unreadable);
        let seen = unreadable.as_ref().map(|marker| marker.job);
        assert_eq!(folder.mark(&ours, &a, "users", &first, seen).unwrap(), None);
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), Some(first.clone()));

        // What can't be replaced is named.
        let name = marker_file::name(&ours, &a, "users");
        std::fs::remove_file(dir.path().join(&name)).unwrap();
        std::fs::create_dir(dir.path().join(&name)).unwrap();
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), unreadable);
        let error = folder.mark(&ours, &a, "users", &first, seen).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(&name), "{error:?}");
        assert!(folder.hidden_files().unwrap().is_empty(), "its draft is gone");
        std::fs::remove_dir(dir.path().join(&name)).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(&name)).unwrap();
        assert_eq!(folder.mark(&ours, &a, "users", &first, seen).unwrap(), None);
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), Some(first));
    }
}
