//! The file of a lane's marker: its name and its content, which are the same in a folder and in a bucket.

use ring::digest;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{DatabaseId, Error, HiddenFile, Marker, SmallFile};
use cdc_manifest::Lane;
use failpoint::failpoint;

/// A marker has a few hundred bytes.
pub(super) const MARKER_MAX_BYTES: u64 = 4096;

/// The largest place in a lane, far below what the database can count on from.
const MOST_ORDER: i64 = 1 << 53;

/// The content of the file. It repeats consumer and dataset, because the name of the file has only their digest.
#[derive(Serialize, Deserialize)]
struct Content {
    consumer: String,
    dataset: String,
    job: Uuid,
    sha256: String,
    order: i64,
}

#[derive(Clone, Debug)]
pub struct MarkerFile {
    name: String,
    database: DatabaseId,
    consumer: String,
    dataset: String,
}

impl MarkerFile {
    pub fn new(database: &DatabaseId, lane: Lane<'_>) -> MarkerFile {
        let Lane { consumer, dataset } = lane;
        // A consumer's id may have characters that file names can't have. Some disks ignore the case of names.
        let digest = digest::digest(&digest::SHA256, format!("{consumer}\n{dataset}").as_bytes());
        MarkerFile {
            name: format!(".lane-{database}-{}.json", hex::encode(&digest.as_ref()[..16])),
            database: database.clone(),
            consumer: consumer.as_str().to_owned(),
            dataset: dataset.to_owned(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the marker that was read.
    pub(super) fn marker(&self, found: Result<Option<SmallFile>, Error>) -> Result<Option<Marker>, Error> {
        failpoint!("sink.marker", Err(Error::Io(Errno::IO.into())));
        Ok(found?.map(|found| self.parse(&found)))
    }

    /// Parses the content. Returns [`Marker::unreadable`] if the content is damaged or belongs to another lane. The
    /// content is never incomplete, because a destination gives the file its name after writing it.
    pub(super) fn parse(&self, found: &SmallFile) -> Marker {
        let content: Option<Content> = found.text.as_ref().and_then(|text| serde_json::from_slice(text).ok());
        let is_ours = |read: &Content| read.consumer == self.consumer && read.dataset == self.dataset;
        let content = content.filter(|read| is_ours(read) && (0..=MOST_ORDER).contains(&read.order));
        let marker = content.map(|Content { job, sha256, order, .. }| Marker { job: job.into(), sha256, order });
        marker.unwrap_or_else(Marker::unreadable)
    }

    pub(super) fn text(&self, marker: &Marker) -> std::io::Result<String> {
        let (consumer, dataset) = (self.consumer.clone(), self.dataset.clone());
        let (job, sha256, order) = (marker.job.as_uuid(), marker.sha256.clone(), marker.order);
        let content = Content { consumer, dataset, job, sha256, order };
        Ok(serde_json::to_string(&content).map_err(std::io::Error::other)? + "\n")
    }

    /// Returns the hidden file in which a marker is written before it gets its name.
    pub(super) fn draft(&self, marker: &Marker) -> HiddenFile {
        HiddenFile::of_marker(&self.database, marker.job)
    }
}
