//! Small files in a folder: manifests beside the files of their exports, and the markers of lanes.
//!
//! A marker names the last export of its lane, so that a restored database can tell which exports it has forgotten. No
//! retention and no sweep removes a marker.

use rustix::io::Errno;

use crate::folder::Folder;
use crate::folder::entries::Dir;
use crate::marker_file::MARKER_MAX_BYTES;
use crate::{Error, SmallFile};
use failpoint::failpoint;

impl Folder {
    pub(super) fn read_small(&self, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
        read_small(&self.open_with_id()?.0, name, most)
    }

    /// Writes the text under a hidden name and renames it. Syncs the file and the folder.
    ///
    /// # Errors
    /// If the folder can't be written. The text may already have its name, but the name may be lost in a crash.
    pub(super) fn put_small(
        &self,
        draft: &str,
        name: &str,
        text: &str,
        before: Option<&SmallFile>,
    ) -> Result<bool, Error> {
        let (dir, _) = self.open_with_id()?;
        if before.is_some_and(|before| before.has(text)) {
            // The process that wrote it may have died before this.
            dir.sync()?;
            return Ok(true);
        }
        dir.write_small(draft, text, || {
            failpoint!("sink.drafted", Err(Error::Io(Errno::IO.into())));
            // Another process may have published meanwhile, and the sweep may have removed the draft. Only a marker is
            // replaced, and this is its limit.
            if read_small(&dir, name, MARKER_MAX_BYTES)?.as_ref() != before {
                return Ok(false);
            }
            if before.is_none() {
                return dir.name_draft(draft, name);
            }
            let renamed = rustix::fs::renameat(&dir.fd, draft, &dir.fd, name);
            renamed.map(|()| true).map_err(dir.cannot("replace", name))
        })
    }

    pub(super) fn remove_small(&self, name: &str) -> Result<(), Error> {
        self.open_with_id()?.0.remove(name).map(drop)
    }
}

fn read_small(dir: &Dir, name: &str, most: u64) -> Result<Option<SmallFile>, Error> {
    match dir.read_small(name, most) {
        // The process has no right to read it.
        Err(Error::ReadOnly(_)) => Ok(Some(SmallFile::default())),
        found => found,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DatabaseId;
    use crate::Marker;
    use crate::folder::destination::FolderDestination;
    use crate::folder::tests::folder;
    use crate::{Destination, MarkerFile};
    use cdc_manifest::ConsumerId;
    use cdc_manifest::JobId;
    use cdc_manifest::Lane;

    #[test]
    fn another_text_or_a_link_is_never_replaced() {
        let (dir, folder) = folder();
        assert!(folder.put_small(".draft", "a.json", "one", None).unwrap());
        assert!(!folder.put_small(".draft", "a.json", "two", None).unwrap());
        let found = |most| folder.read_small("a.json", most).unwrap().unwrap();
        assert!(found(3).has("one") && !found(3).has("on") && !found(2).has("on"));
        folder.remove_small("a.json").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("a.json")).unwrap();
        assert!(!folder.put_small(".draft", "a.json", "one", None).unwrap());
        assert_eq!(found(1 << 10), SmallFile::default());
    }

    #[tokio::test]
    async fn a_lane_has_one_marker_of_each_database() {
        let (dir, folder) = folder();
        let folder = FolderDestination::new(folder);
        let [ours, copy] = ["1-16384", "1-16385"].map(|id| format!("000000000000000{id}").parse().unwrap());
        let [a, b]: [ConsumerId; 2] = ["a:b".parse().unwrap(), "A:B".parse().unwrap()];
        let file = |database: &DatabaseId, consumer| MarkerFile::new(database, Lane { consumer, dataset: "users" });
        let marker = |sha256: &str| Marker { job: JobId::random(), sha256: sha256.to_owned(), order: 7 };
        let (users, first, other) = (file(&ours, &a), marker("1"), marker("2"));
        for (file, marker) in [(&users, &first), (&file(&copy, &a), &other), (&file(&ours, &b), &other)] {
            assert_eq!(folder.write_lane_marker(file, marker, None).await.unwrap(), None);
        }
        assert_eq!(folder.lane_marker(&users).await.unwrap().as_ref(), Some(&first));
        assert!(folder.hidden_files().await.unwrap().is_empty(), "nothing for the sweeper");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4);

        // A damaged marker is replaced only by a caller that has seen that it is damaged.
        let path = dir.path().join(users.name());
        std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
        let unreadable = Some(Marker::unreadable());
        assert_eq!(folder.lane_marker(&users).await.unwrap(), unreadable);
        assert_eq!(folder.write_lane_marker(&users, &first, Some(other.job)).await.unwrap(), unreadable);
        let seen = Some(Marker::unreadable().job);
        assert_eq!(folder.write_lane_marker(&users, &first, seen).await.unwrap(), None);
        assert_eq!(folder.lane_marker(&users).await.unwrap(), Some(first.clone()));

        // The error names a marker that can't be replaced.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(folder.lane_marker(&users).await.unwrap(), unreadable);
        let error = folder.write_lane_marker(&users, &first, seen).await.unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains(users.name()), "{error:?}");
        assert!(folder.hidden_files().await.unwrap().is_empty(), "its draft is gone");
        std::fs::remove_dir(&path).unwrap();
        std::os::unix::fs::symlink("elsewhere", &path).unwrap();
        assert_eq!(folder.write_lane_marker(&users, &first, seen).await.unwrap(), None);
        assert_eq!(folder.lane_marker(&users).await.unwrap(), Some(first));
    }
}
