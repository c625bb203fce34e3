//! Markers of lanes in a folder. A marker names the last export of its lane, so that a restored database can tell which
//! exports it has forgotten. No retention and no sweep removes a marker.

use std::io::Read;

use rustix::io::Errno;

use crate::failpoint;
use crate::job::JobId;
use crate::job::marker::Marker;
use crate::sink::folder::Folder;
use crate::sink::folder::entries::open_at;
use crate::sink::marker_file::to_keep;
use crate::sink::{Error, Lookup, MarkerFile};

/// A marker has a few hundred bytes.
const MARKER_MAX_BYTES: u64 = 4096;

impl Folder {
    /// Reads the marker of a lane: see [`Destination::lane_marker`](crate::sink::Destination::lane_marker).
    pub(super) fn lane_marker(&self, file: &MarkerFile) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let found = match open_at(&dir.fd, file.name()) {
            Ok(Lookup::File(_, found)) => found,
            Ok(Lookup::Nothing) => return Ok(None),
            // A folder or a link has its name, or we have no right to read it.
            Ok(Lookup::NoFile) | Err(Errno::ACCESS | Errno::PERM) => return Ok(Some(Marker::unreadable())),
            Err(errno) => return Err(dir.cannot("open", file.name())(errno)),
        };
        let mut text = Vec::new();
        let read = found.take(MARKER_MAX_BYTES).read_to_end(&mut text);
        read.map_err(dir.cannot("read", file.name()))?;
        Ok(Some(file.parse(&text)))
    }

    /// Writes the marker of a lane: see
    /// [`Destination::write_lane_marker`](crate::sink::Destination::write_lane_marker).
    pub(super) fn write_lane_marker(
        &self,
        file: &MarkerFile,
        marker: &Marker,
        replaced: Option<JobId>,
    ) -> Result<Option<Marker>, Error> {
        failpoint!("sink.mark", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_with_id()?;
        let (draft, name) = (file.draft(marker), file.name());
        loop {
            let present = self.lane_marker(file)?;
            let kept = to_keep(present.as_ref(), marker, replaced);
            if kept.is_some() {
                return Ok(kept);
            }
            if present.as_ref() == Some(marker) {
                // The process that wrote it may have died before this.
                dir.sync()?;
                return Ok(None);
            }
            let is_named = dir.write_small(&draft, &file.text(marker)?, || {
                // Another process may have published while the disk synced the draft.
                if self.lane_marker(file)? != present {
                    return Ok(false);
                }
                let renamed = rustix::fs::renameat(&dir.fd, &draft.name, &dir.fd, name);
                renamed.map_err(dir.cannot("replace", name))?;
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
        let marker = |sha256: &str| Marker { job: JobId::random(), sha256: sha256.to_owned(), order: 7 };
        let (first, other) = (marker("1"), marker("2"));
        folder.write_lane_marker(&users, &first, None).unwrap();
        folder.write_lane_marker(&file(&copy, &a, "users"), &other, None).unwrap();
        folder.write_lane_marker(&file(&ours, &b, "users"), &other, None).unwrap();
        assert_eq!(folder.lane_marker(&users).unwrap().as_ref(), Some(&first));
        assert_eq!(folder.lane_marker(&file(&ours, &a, "user")).unwrap(), None);
        assert!(folder.hidden_files().unwrap().is_empty(), "nothing for the sweeper");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4);

        // A damaged marker is replaced only by a caller that has seen that it is damaged.
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.file_name().unwrap().to_str().unwrap().starts_with(".lane-") {
                std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
            }
        }
        let unreadable = Some(Marker::unreadable());
        assert_eq!(folder.lane_marker(&users).unwrap(), unreadable);
        assert_eq!(folder.write_lane_marker(&users, &first, Some(other.job)).unwrap(), unreadable);
        let seen = unreadable.as_ref().map(|marker| marker.job);
        assert_eq!(folder.write_lane_marker(&users, &first, seen).unwrap(), None);
        assert_eq!(folder.lane_marker(&users).unwrap(), Some(first.clone()));

        // The error names a marker that can't be replaced.
        let name = users.name();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        assert_eq!(folder.lane_marker(&users).unwrap(), unreadable);
        let error = folder.write_lane_marker(&users, &first, seen).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(name), "{error:?}");
        assert!(folder.hidden_files().unwrap().is_empty(), "its draft is gone");
        std::fs::remove_dir(dir.path().join(name)).unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join(name)).unwrap();
        assert_eq!(folder.write_lane_marker(&users, &first, seen).unwrap(), None);
        assert_eq!(folder.lane_marker(&users).unwrap(), Some(first));
    }
}
