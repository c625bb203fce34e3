//! Markers: which export of each lane the folder has handed out last, as a witness against a database that was put back. No
//! retention takes one, and no sweep.

use std::fs::File;
use std::io::{self, Read, Write};

use ring::digest;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failpoint;
use crate::job::ConsumerId;
use crate::job::marker::{DatabaseId, HiddenFile, Marker};
use crate::sink::{Error, Folder, create, remove_at};

/// It has some hundred bytes.
const MARKER_MAX_BYTES: u64 = 4096;

/// A marker's file. Consumer and dataset are for people: its name has only a digest of them.
#[derive(Serialize, Deserialize)]
struct Content {
    consumer: String,
    dataset: String,
    job: Uuid,
    sha256: String,
}

impl Folder {
    /// The marker of a database's lane; `None` if there is none that can be read as one.
    ///
    /// # Errors
    /// If the folder or the file can't be read.
    pub fn marker(&self, database: &DatabaseId, consumer: &ConsumerId, dataset: &str) -> Result<Option<Marker>, Error> {
        let (dir, _) = self.open_store()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&dir, name(database, consumer, dataset), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::LOOP) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut text = Vec::new();
        file.take(MARKER_MAX_BYTES).read_to_end(&mut text)?;
        // It is written whole before it has its name: what isn't one is somebody else's.
        let content: Option<Content> = serde_json::from_slice(&text).ok();
        let content = content.filter(|read| read.consumer == consumer.as_str() && read.dataset == dataset);
        Ok(content.map(|Content { job, sha256, .. }| Marker { job: job.into(), sha256 }))
    }

    /// Makes it durable that this export of a lane is the last one that is handed out. Called before its file has its name.
    ///
    /// # Errors
    /// If the folder can't be written. The marker is the one before then, or this one.
    pub fn mark(
        &self,
        database: &DatabaseId,
        consumer: &ConsumerId,
        dataset: &str,
        marker: &Marker,
    ) -> Result<(), Error> {
        failpoint!("sink.mark", Err(Error::Io(Errno::IO.into())));
        let (dir, _) = self.open_store()?;
        if self.marker(database, consumer, dataset)?.as_ref() != Some(marker) {
            let (consumer_text, dataset_text) = (consumer.as_str().to_owned(), dataset.to_owned());
            let content = Content {
                consumer: consumer_text,
                dataset: dataset_text,
                job: marker.job.as_uuid(),
                sha256: marker.sha256.clone(),
            };
            let text = serde_json::to_string(&content).map_err(io::Error::other)?;
            let draft = HiddenFile::of_marker(database, marker.job).name;
            let mut file = create(&dir, &draft, self.file_mode)?;
            let written = writeln!(file, "{text}").and_then(|()| file.sync_all()).map_err(Error::from);
            let named =
                written.and_then(|()| Ok(rustix::fs::renameat(&dir, &draft, &dir, name(database, consumer, dataset))?));
            if let Err(error) = named {
                remove_at(&dir, &draft)?;
                return Err(error);
            }
        }
        // Also of one that is there: who wrote it may have died before this.
        Ok(rustix::fs::fsync(&dir)?)
    }
}

/// How a lane's marker is called. A consumer's id has characters that no name should have, and case that some disks don't keep.
fn name(database: &DatabaseId, consumer: &ConsumerId, dataset: &str) -> String {
    let lane = digest::digest(&digest::SHA256, format!("{consumer}\n{dataset}").as_bytes());
    let lane: String = lane.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!(".lane-{database}-{lane}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::JobId;

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
        for marker in [&first, &last, &last] {
            folder.mark(&ours, &a, "users", marker).unwrap();
            assert_eq!(folder.marker(&ours, &a, "users").unwrap().as_ref(), Some(marker));
        }
        folder.mark(&copy, &a, "users", &other).unwrap();
        folder.mark(&ours, &b, "users", &other).unwrap();
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), Some(last));
        assert_eq!(folder.marker(&ours, &a, "user").unwrap(), None);
        assert!(folder.hidden_files().unwrap().is_empty(), "nothing for the sweeper");
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 4);

        // What isn't one is none.
        for path in std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.file_name().unwrap().to_str().unwrap().starts_with(".lane-") {
                std::fs::write(&path, "x".repeat(1 << 20)).unwrap();
            }
        }
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), None);
        folder.mark(&ours, &a, "users", &first).unwrap();
        assert_eq!(folder.marker(&ours, &a, "users").unwrap(), Some(first));
    }
}
