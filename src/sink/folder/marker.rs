//! Markers: the export of each lane that the folder handed out last, as a witness against a database that was put back. No retention and
//! no sweep removes a marker.

use std::io::{self, Read};

use rustix::io::Errno;

use crate::failpoint;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::Error;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::{open_at, write_small};
use crate::sink::found::Found;
use crate::sink::marker_file::{MarkerFile, to_keep};

/// A marker has some hundred bytes.
const MARKER_MAX_BYTES: u64 = 4096;

impl Folder {
    /// Reads the marker of a lane: see [`Destination::marker`](crate::sink::Destination::marker).
    pub(in crate::sink) fn marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let found = match open_at(&dir, file.name()) {
            Ok(Found::File(_, found)) => found,
            Ok(Found::Nothing) => return Ok(None),
            // A folder or a link has its name, or we have no right to read it.
            Ok(Found::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(Some(Marker::unreadable())),
            Err(errno) => return Err(errno.into()),
        };
        let mut text = Vec::new();
        found.take(MARKER_MAX_BYTES).read_to_end(&mut text)?;
        Ok(Some(file.parse(&text)))
    }

    /// Writes the marker of a lane: see [`Destination::mark`](crate::sink::Destination::mark).
    pub(in crate::sink) fn mark(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let (draft, name) = (file.draft(marker), file.name());
        loop {
            let present = self.marker(file)?;
            let kept = to_keep(present.as_ref(), marker, replaced);
            if kept.is_some() {
                return Ok(kept);
            }
            if present.as_ref() == Some(marker) {
                // The process that wrote it may have died before this.
                rustix::fs::fsync(&dir)?;
                return Ok(None);
            }
            let is_named = write_small(&dir, &draft, self.file_mode, &file.text(marker)?, || {
                // To sync the draft takes as long as the disk lets it, and others publish meanwhile.
                if self.marker(file)? != present {
                    return Ok(false);
                }
                let renamed = rustix::fs::renameat(&dir, &draft.name, &dir, name);
                renamed.map_err(|errno| io::Error::new(errno.kind(), format!("{name}: {errno}")))?;
                Ok(true)
            })?;
            if is_named {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::DatabaseId;
    use crate::job::ConsumerId;
    use crate::job::lane::Lane;
    use crate::sink::folder::tests::folder;

    #[test]
    fn a_lane_has_one_marker_of_each_database() {
        let (dir, folder) = folder();
        let [ours, copy] =
            ["1-16384", "1-16385"].map(|id| format!("000000000000000{id}").parse::<DatabaseId>().unwrap());
        let [a, b]: [ConsumerId; 2] = ["a:b".parse().unwrap(), "A:B".parse().unwrap()];
        let file = |database: &DatabaseId, consumer: &ConsumerId, dataset: &str| {
            MarkerFile::new(database, Lane { consumer, dataset })
        };
        let users = file(&ours, &a, "users");
        let marker = |sha256: &str| Marker { job: JobId::random(), sha256: sha256.to_owned() };
        let (first, last, other) = (marker("1"), marker("2"), marker("3"));
        assert_eq!(folder.marker(&users).unwrap(), None);
        for (marker, replaced) in [(&first, None), (&last, Some(first.job)), (&last, None)] {
            assert_eq!(folder.mark(&users, marker, replaced).unwrap(), None);
            assert_eq!(folder.marker(&users).unwrap().as_ref(), Some(marker));
        }
        // A marker that isn't the one to be replaced stays.
        for replaced in [None, Some(other.job)] {
            assert_eq!(folder.mark(&users, &first, replaced).unwrap().as_ref(), Some(&last));
        }
        folder.mark(&file(&copy, &a, "users"), &other, None).unwrap();
        folder.mark(&file(&ours, &b, "users"), &other, None).unwrap();
        assert_eq!(folder.marker(&users).unwrap(), Some(last));
        assert_eq!(folder.marker(&file(&ours, &a, "user")).unwrap(), None);
        assert!(folder.hidden_files().unwrap().is_empty(), "nothing for the sweeper");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4);

        // A damaged marker is replaced only by a caller that has seen that it is damaged.
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.file_name().unwrap().to_str().unwrap().starts_with(".lane-") {
                std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
            }
        }
        let unreadable = Some(Marker::unreadable());
        assert_eq!(folder.marker(&users).unwrap(), unreadable);
        assert_eq!(folder.mark(&users, &first, Some(other.job)).unwrap(), unreadable);
        let seen = unreadable.as_ref().map(|marker| marker.job);
        assert_eq!(folder.mark(&users, &first, seen).unwrap(), None);
        assert_eq!(folder.marker(&users).unwrap(), Some(first.clone()));

        // The error names a marker that can't be replaced.
        let name = users.name();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        assert_eq!(folder.marker(&users).unwrap(), unreadable);
        let error = folder.mark(&users, &first, seen).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(name), "{error:?}");
        assert!(folder.hidden_files().unwrap().is_empty(), "its draft is gone");
        std::fs::remove_dir(dir.path().join(name)).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(name)).unwrap();
        assert_eq!(folder.mark(&users, &first, seen).unwrap(), None);
        assert_eq!(folder.marker(&users).unwrap(), Some(first));
    }
}
