//! The file of a lane's marker, which is the same in every destination.

use ring::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::database::DatabaseId;
use crate::job::marker::Marker;
use crate::job::{ConsumerId, JobId};

/// What stands in it. Consumer and dataset are for people: its name has only a digest of them.
#[derive(Serialize, Deserialize)]
struct Content {
    consumer: String,
    dataset: String,
    job: Uuid,
    sha256: String,
}

/// What the file of a lane's marker says. It is written whole before it has its name: one that isn't whole was damaged, and what it told
/// of is not known.
pub(super) fn read(text: &[u8], consumer: &ConsumerId, dataset: &str) -> Marker {
    let content: Option<Content> = serde_json::from_slice(text).ok();
    let content = content.filter(|read| read.consumer == consumer.as_str() && read.dataset == dataset);
    let marker = content.map(|Content { job, sha256, .. }| Marker { job: job.into(), sha256 });
    marker.unwrap_or_else(Marker::unreadable)
}

/// A marker that stands in place of neither this one nor of that of `replaced`: it is left, since what it tells of is perhaps known to
/// nobody else.
pub(super) fn in_the_way(present: Option<&Marker>, marker: &Marker, replaced: Option<JobId>) -> Option<Marker> {
    present.filter(|present| *present != marker && Some(present.job) != replaced).cloned()
}

/// The text of the file of a lane's marker, with the end of its line.
///
/// # Errors
/// Never, as far as is known.
pub(super) fn text(consumer: &ConsumerId, dataset: &str, marker: &Marker) -> std::io::Result<String> {
    let (consumer, dataset) = (consumer.as_str().to_owned(), dataset.to_owned());
    let content = Content { consumer, dataset, job: marker.job.as_uuid(), sha256: marker.sha256.clone() };
    Ok(serde_json::to_string(&content).map_err(std::io::Error::other)? + "\n")
}

/// The name of the marker of a database's lane. A consumer's id has characters that no name should have, and case that some disks don't
/// keep.
pub fn name(database: &DatabaseId, consumer: &ConsumerId, dataset: &str) -> String {
    let lane = digest::digest(&digest::SHA256, format!("{consumer}\n{dataset}").as_bytes());
    let lane = hex::encode(&lane.as_ref()[..16]);
    format!(".lane-{database}-{lane}.json")
}
