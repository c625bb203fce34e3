//! The manifests of a folder or bucket of exports, as one reading finds them. All lanes of a round go by that reading.
//!
//! Keeps in memory the digest and the name of each manifest of these lanes, and of each job of several datasets the
//! number of each export that has a manifest here.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::sync::Arc;

use tokio::runtime::Handle;
use uuid::Uuid;

use crate::{About, Error};
use cdc_destination::{Archive, Settings};
use cdc_manifest::{Chains, ConsumerId, Digest, Manifest, PublicKey, is_dataset_name, parse_digest};
use pg_session::failure::chain;

/// The maximum number of lanes or manifests that a message lists.
pub(super) const MAX_LISTED: usize = 10;

/// The number of times that a place is listed if each time there are more manifests.
const MAX_LISTINGS: usize = 5;

/// The manifests of a place, as far as the lanes of one consumer need them.
pub(super) struct ManifestIndex {
    pub(super) archive: Arc<dyn Archive>,
    consumer: ConsumerId,
    /// If there are any, one of them must have signed each manifest.
    keys: Vec<PublicKey>,
    lanes: BTreeMap<String, LaneManifests>,
    /// The number of each export of a job of several datasets, by dataset. Empty if only one lane is read.
    jobs: HashMap<Uuid, BTreeMap<String, u64>>,
    /// The dataset and consumer of some lanes, of any consumer.
    some_lanes: BTreeSet<String>,
    /// The manifests that can't be read, each with the reason. They may be of any lane.
    unreadable: Vec<(String, String)>,
}

#[derive(Default)]
pub(super) struct LaneManifests {
    /// The chains of the intact manifests. There are several if a copy of the database exported to the same place.
    pub(super) chains: Chains,
    pub(super) names: HashMap<Digest, String>,
    /// The numbers of the other manifests, each with the reason why it can't be used.
    broken: Vec<(u64, String)>,
}

impl ManifestIndex {
    /// Reads all manifests of the place, and of the folders in it that `pull` made for single datasets. Keeps those of
    /// these datasets of the consumer, and counts the others in their jobs.
    ///
    /// # Errors
    /// If the place can't be read. A manifest that can't be used is no error.
    pub(super) fn read(
        place: &Settings,
        consumer: ConsumerId,
        datasets: BTreeSet<String>,
        keys: Vec<PublicKey>,
        runtime: &Handle,
    ) -> Result<ManifestIndex, Error> {
        let archive: Arc<dyn Archive> = Arc::from(place.archive(runtime)?);
        let mut index = ManifestIndex {
            archive: Arc::clone(&archive),
            consumer,
            keys,
            lanes: datasets.iter().map(|dataset| (dataset.clone(), LaneManifests::default())).collect(),
            jobs: HashMap::new(),
            some_lanes: BTreeSet::new(),
            unreadable: Vec::new(),
        };
        let mut read = HashSet::new();
        // Until nothing has come meanwhile: a folder that was listed first may lack an export that another one has.
        for _ in 0..MAX_LISTINGS {
            let before = read.len();
            index.read_all("", &*archive, &mut read)?;
            let entries = place.folder().map(fs::read_dir).transpose().about(|| "the folder of the exports")?;
            for entry in entries.into_iter().flatten() {
                let entry = entry.about(|| "the folder of the exports")?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if is_dataset_name(&name) && entry.file_type().is_ok_and(|found| found.is_dir()) {
                    let own = Settings::Folder(entry.path()).archive(runtime)?;
                    index.read_all(&format!("{name}/"), &*own, &mut read)?;
                }
            }
            if read.len() == before {
                break;
            }
        }
        Ok(index)
    }

    /// Reads the manifests that are listed for a folder within the place, but those that are read already.
    fn read_all(&mut self, folder: &str, listed: &dyn Archive, read: &mut HashSet<String>) -> Result<(), Error> {
        for name in listed.manifests()? {
            let name = format!("{folder}{}", name?);
            if !read.insert(name.clone()) {
                continue;
            }
            match read_manifest(&*self.archive, &name) {
                Ok(Some(manifest)) => self.add(name, &manifest),
                Ok(None) => {}
                Err(error) if is_of_the_place(&error) => return Err(error),
                Err(error) => self.unreadable.push((name, chain(&error))),
            }
        }
        Ok(())
    }

    fn add(&mut self, name: String, manifest: &Manifest) {
        let export = &manifest.export;
        if self.some_lanes.len() <= MAX_LISTED {
            self.some_lanes.insert(shown_lane(&export.dataset, &export.consumer));
        }
        let counts = self.lanes.len() > 1 && export.job.datasets().is_some();
        let is_needed = counts || self.lanes.contains_key(&export.dataset);
        if export.consumer != self.consumer.as_str() || !is_needed {
            return;
        }
        let checked = manifest.check(&name, &self.keys);
        // Only an intact manifest counts. The job may have datasets that are not read.
        if counts
            && checked.is_ok()
            && let Ok(id) = Uuid::try_parse(export.job.id())
        {
            self.jobs.entry(id).or_default().insert(export.dataset.clone(), manifest.number);
        }
        let Some(lane) = self.lanes.get_mut(&export.dataset) else { return };
        match checked {
            Ok(()) => {
                lane.chains.add(manifest, &manifest.digest);
                let digest = parse_digest(&manifest.digest).expect("its check has compared it");
                lane.names.insert(digest, name);
            }
            Err(broken) => lane.broken.push((manifest.number, format!("{name}: {broken}"))),
        }
    }

    pub(super) fn lane(&self, dataset: &str) -> &LaneManifests {
        &self.lanes[dataset]
    }

    /// Returns the number of each export of a job that has a manifest here, by dataset.
    pub(super) fn numbers_of_job(&self, id: Uuid) -> BTreeMap<String, u64> {
        self.jobs.get(&id).cloned().unwrap_or_default()
    }

    /// Returns the reason if fewer exports of a manifest's job have manifests here than the manifest says. Nothing is
    /// missing if only one lane is read.
    pub(super) fn missing_exports(&self, manifest: &Manifest) -> Option<String> {
        let job = &manifest.export.job;
        let stated = job.datasets().filter(|_| self.lanes.len() > 1)?;
        // The signature doesn't cover the number of copied exports.
        let copied = manifest.copied_exports.filter(|_| self.keys.is_empty());
        let all = copied.or_else(|| stated.parse().ok()).unwrap_or(u64::MAX);
        let numbers = Uuid::try_parse(job.id()).ok().and_then(|id| self.jobs.get(&id));
        let found = numbers.map_or(0, BTreeMap::len) as u64;
        let why = || format!("job_incomplete: {found} of the {all} exports of the job {} are there", job.id());
        (found < all).then(why)
    }

    /// Returns the reason for each manifest that can't be read and whose name is that of no lane. If the export was of
    /// a lane, its chain has a gap there, or ends.
    pub(super) fn of_no_lane(&self) -> impl Iterator<Item = &str> {
        self.unreadable.iter().filter(|(name, _)| !Manifest::is_key(name)).map(|(_, why)| &**why)
    }

    /// Returns the reason for each manifest of this dataset that can't be used. `applied` is the number of the export
    /// that the dataset's table has.
    pub(super) fn unusable(&self, dataset: &str, applied: Option<u64>) -> Vec<&str> {
        let folder = Manifest::folder(dataset, &self.consumer);
        let unreadable = self.unreadable.iter().filter(|(name, _)| name.starts_with(&folder)).map(|(_, why)| &**why);
        // If the number isn't above `applied`, the table has the export, or a later one.
        let broken = self.lane(dataset).broken.iter().filter(|(number, _)| Some(*number) > applied);
        unreadable.chain(broken.map(|(_, why)| &**why)).collect()
    }

    /// Returns the dataset and consumer of some lanes other than this dataset's.
    pub(super) fn others(&self, dataset: &str) -> Vec<&str> {
        let own = shown_lane(dataset, self.consumer.as_str());
        self.some_lanes.iter().map(String::as_str).filter(|lane| *lane != own).take(MAX_LISTED).collect()
    }
}

/// Returns the text for a lane in a message. Any user with write access to the place may have chosen its names.
fn shown_lane(dataset: &str, consumer: &str) -> String {
    format!("{} of {}", dataset.escape_debug(), consumer.escape_debug())
}

/// Reads the manifest with this name. Returns `None` if the manifest is missing.
pub(super) fn read_manifest(archive: &dyn Archive, name: &str) -> Result<Option<Manifest>, Error> {
    let Some(text) = archive.text(name).about(|| name)? else { return Ok(None) };
    let manifest = Manifest::read(&text).about(|| name)?;
    Ok(Some(manifest))
}

/// Returns true if an error is that of the place as a whole, or may pass.
fn is_of_the_place(error: &Error) -> bool {
    matches!(error.root(), Error::Archive(error) if error.is_of_the_place() || error.may_pass())
}
