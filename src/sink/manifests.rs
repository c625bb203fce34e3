//! Manifests at a destination: written behind the files of an export, and never replaced.

use crate::file::{FileLocation, FileRecord};
use crate::manifest;
#[cfg(feature = "buckets")]
use crate::manifest::Manifest;
use crate::sink::{Destination, Error, Place};

/// How the writing of a manifest went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WrittenManifest {
    /// It stands there, by this call or an earlier one.
    Done,
    /// Another one stands there.
    Taken,
}

impl Destination {
    /// Makes a manifest durable under its name, unless something else has that name. May be called again after a crash at any point, by any
    /// process that has this destination.
    pub async fn write_manifest(&self, record: &FileRecord, number: u64, text: &str) -> Result<WrittenManifest, Error> {
        let text = text.to_owned();
        match &self.place {
            Place::Folder(folder) => {
                let (database, job) = (record.database.clone(), record.job);
                let name = manifest::name_in_folder(&record.name);
                self.run(folder, move |folder| folder.write_manifest(&database, job, &name, &text)).await
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => {
                let Some(consumer) = &record.consumer else { return Ok(WrittenManifest::Done) };
                let key = manifest::key(&record.dataset, consumer, number);
                self.turns.wait(bucket.write_manifest(&key, text)).await
            }
        }
    }

    /// Whether a manifest's name in a folder is taken by something other than this text. In a bucket no name is known before the manifest
    /// is: its number is its name.
    pub async fn is_manifest_in_the_way(&self, record: &FileRecord, text: &str) -> Result<bool, Error> {
        match &self.place {
            Place::Folder(folder) => {
                let (name, text) = (manifest::name_in_folder(&record.name), text.to_owned());
                self.run(folder, move |folder| folder.is_in_the_way(&name, &text)).await
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(_) => Ok(false),
        }
    }

    /// Removes a manifest, if this is the one that stands there.
    pub(super) async fn remove_manifest(&self, record: &FileRecord, text: &str) -> Result<(), Error> {
        match &self.place {
            Place::Folder(folder) => {
                let (name, text) = (manifest::name_in_folder(&record.name), text.to_owned());
                self.run(folder, move |folder| folder.remove_manifest(&name, &text)).await
            }
            #[cfg(feature = "buckets")]
            Place::Bucket(bucket) => {
                let number = Manifest::read(text.as_bytes()).map_or(0, |manifest| manifest.number);
                let Some(consumer) = &record.consumer else { return Ok(()) };
                let key = manifest::key(&record.dataset, consumer, number);
                self.turns.wait(bucket.remove_manifest(&key, text)).await
            }
        }
    }

    /// The largest number of a manifest of a file's lane that is there; 0 if there is none, or if manifests have no numbers in their names
    /// here.
    pub async fn last_manifest(&self, record: &FileRecord) -> Result<u64, Error> {
        match (&self.place, &record.consumer) {
            #[cfg(feature = "buckets")]
            (Place::Bucket(bucket), Some(consumer)) => {
                self.turns.wait(bucket.last_manifest(&record.dataset, consumer)).await
            }
            _ => Ok(0),
        }
    }
}

/// Where a file is from where its manifest is.
pub fn path_from_manifest(location: &FileLocation, name: &str) -> String {
    match location {
        FileLocation::Folder { .. } => name.to_owned(),
        // The manifests lie in a folder beside the lane's files.
        FileLocation::Upload { key, .. } | FileLocation::Object { key, .. } => {
            format!("../{}", key.rsplit('/').next().unwrap_or(key))
        }
    }
}
