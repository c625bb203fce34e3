//! A folder or bucket of exports, from which `apply` reads each export after the one that it follows.

use std::collections::{BTreeSet, HashSet};
use std::future::ready;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::spawn_blocking;

use crate::apply::input::{Input, unpacked};
use crate::lane_reader::{ExportSink, SinkOutcome};
use crate::manifest_index::{LaneManifests, MAX_LISTED, ManifestIndex, read_manifest};
use crate::table_mirror::TableMirror;
use crate::{About, Error};
use cdc_destination::{Archive, Lookup, Settings};
use cdc_manifest::{
    self, ConsumerId, Digest, Link, Manifest, PublicKey, ReaderPosition, Successors, parse_digest, request_time,
};
use pg_session::failure::chain;

/// The place, and the lane whose exports are read.
pub struct ManifestFolder {
    place: Settings,
    consumer: ConsumerId,
    dataset: String,
    /// If there are any, one of them must have signed each manifest.
    keys: Vec<PublicKey>,
}

impl ManifestFolder {
    pub fn new(place: Settings, consumer: ConsumerId, dataset: String, keys: Vec<PublicKey>) -> ManifestFolder {
        ManifestFolder { place, consumer, dataset, keys }
    }

    /// Applies the exports that the table doesn't have yet, one after the other. Goes on if a manifest can't be used.
    ///
    /// # Errors
    /// Also if all exports are applied, and there is a manifest that can't be used.
    pub async fn round(&self, mirror: &mut TableMirror) -> Result<(), Error> {
        let group = mirror.group();
        let index = group.manifests(self.index(group.datasets())).await?;
        for why in index.of_no_lane().take(MAX_LISTED) {
            mirror.observer().notice(&format!("warning: {why}: an export is left out if this is its manifest"));
        }
        let unusable = index.unusable(&self.dataset, mirror.last().map(|last| last.number));
        unusable.iter().take(MAX_LISTED).for_each(|why| mirror.observer().notice(why));
        self.apply_all(&index, mirror).await?;
        match unusable.len() {
            0 => Ok(()),
            count => Err(Error::Refused(format!(
                "unusable: {count} of the manifests of {} can't be used: remove them, or put them back as they were",
                self.place
            ))),
        }
    }

    async fn index(&self, datasets: &BTreeSet<String>) -> Result<ManifestIndex, Error> {
        let (place, consumer, keys) = (self.place.clone(), self.consumer.clone(), self.keys.clone());
        let (datasets, runtime) = (datasets.clone(), Handle::current());
        let read = move || ManifestIndex::read(&place, consumer, datasets, keys, &runtime);
        spawn_blocking(read).await?.about(|| &self.place)
    }

    async fn apply_all(&self, index: &ManifestIndex, mirror: &mut TableMirror) -> Result<(), Error> {
        let lane = index.lane(&self.dataset);
        if lane.names.is_empty() && mirror.last().is_none() {
            return Err(self.no_exports(index));
        }
        let position = mirror.last().map(|last| ReaderPosition {
            // An invalid digest becomes the zero digest, which no export has.
            digest: parse_digest(&last.digest).unwrap_or_default(),
            number: last.number,
            requested: request_time(last.job_id),
        });
        let successors = lane.chains.successors();
        let mut next = self.next(lane, &successors, position.as_ref())?;
        while let Some((digest, link)) = next {
            let position = ReaderPosition { digest: *digest, number: link.number, requested: link.requested };
            let obstacle = match self.apply(index, &lane.names[digest], mirror).await {
                Ok(SinkOutcome::Written) => None,
                Ok(SinkOutcome::NeedsFullExport(why)) => {
                    Some((why.clone(), Error::Refused(format!("{why}; a newer full export goes on"))))
                }
                // Only a newer full export can go past a row that the target refuses.
                Err(error) if error.is_of_target() => Some((chain(&error), error)),
                Err(error) => return Err(error),
            };
            if let Some((why, error)) = obstacle {
                next = lane.chains.base_after(&successors, Some(&position));
                if mirror.last().is_some() {
                    mirror.group().leave_out(link.requested, next.map(|(_, base)| base.requested)).await;
                }
                let Some((_, base)) = next else { return Err(error) };
                mirror.observer().notice(&format!("{why}; going on with the full export {}", base.number));
                continue;
            }
            if mirror.last().is_none_or(|last| last.digest != hex::encode(digest)) {
                // Another process has applied other exports, and continues with the next ones.
                return Ok(());
            }
            next = self.next(lane, &successors, Some(&position))?;
        }
        Ok(())
    }

    /// Returns the export with which the table goes on from this position. Returns `None` if it has all exports.
    fn next<'c>(
        &self,
        lane: &'c LaneManifests,
        successors: &Successors<'c>,
        position: Option<&ReaderPosition>,
    ) -> Result<Option<(&'c Digest, &'c Link)>, Error> {
        let number = position.map_or(0, |position| position.number);
        let siblings = position.map_or(&[][..], |position| successors.following(&position.digest));
        if let [next] = siblings {
            // The digest doesn't cover the number.
            if next.1.number <= number {
                return Err(Error::Refused(format!(
                    "changed: {} has an export with the number {}, which is not above {number}, the one it follows: put back the manifest \
                     whose number was changed. If it is the one that the table has, remove the table and its row of cdc_apply.positions",
                    self.place, next.1.number
                )));
            }
            return Ok(Some(*next));
        }
        // If the lane forked or has a gap here, a full export comes next.
        if let Some(base) = lane.chains.base_after(successors, position) {
            return Ok(Some(base));
        }
        let Some((digest, missed)) = lane.chains.missed(position) else { return Ok(None) };
        let place = &self.place;
        let shown = |digest: &Digest, link: &Link| format!("{} (number {})", lane.names[digest], link.number);
        Err(Error::Refused(match lane.chains.fork(successors) {
            _ if position.is_none() && lane.chains.are_several_databases() => format!(
                "forked: {place} has exports of several databases, as after --adopt, with any of which a new table could begin: take away \
                 the manifests of all but one, or let `pull` fill another folder"
            ),
            Some([(one, first), (other, second)]) => format!(
                "forked: {place} has {} and {}, of which the lane can have only one, as after a restore of the source: ask the service for \
                 a full export, or take away the manifests that are not of the source as it is now",
                shown(one, first),
                shown(other, second)
            ),
            None if missed.number > number => format!(
                "full_export_needed: {place} has exports up to number {}, none of which follows the position of the table",
                missed.number
            ),
            None => format!(
                "forked: {place} has {}, which is newer than number {number} that the table has, as after a restore of the source: ask the \
                 service for a full export",
                shown(digest, missed)
            ),
        }))
    }

    fn no_exports(&self, index: &ManifestIndex) -> Error {
        let others = index.others(&self.dataset).join(", ");
        let others = if others.is_empty() { "no manifests at all".to_owned() } else { format!("those of {others}") };
        Error::Refused(format!(
            "no_exports: {} has no manifest of an export of {} of the consumer {}, but {others}",
            self.place, self.dataset, self.consumer
        ))
    }

    async fn apply(&self, index: &ManifestIndex, name: &str, mirror: &mut TableMirror) -> Result<SinkOutcome, Error> {
        let archive = &index.archive;
        let (read_from, name, keys) = (Arc::clone(archive), name.to_owned(), self.keys.clone());
        let checked = spawn_blocking(move || CheckedExport::read(&*read_from, &name, &keys)).await??;
        let CheckedExport { manifest, paths, missing } = checked;
        if let Some(why) = missing.or_else(|| index.missing_exports(&manifest)) {
            return Ok(SinkOutcome::NeedsFullExport(why));
        }
        let numbers = |id| ready(Ok(index.numbers_of_job(id)));
        let job = mirror.group().job(&manifest.export.job, mirror.observer(), numbers).await?.map(|(id, _)| id);
        let (archive, manifest) = (Arc::clone(archive), Arc::new(manifest));
        let of = Arc::clone(&manifest);
        mirror.apply(manifest, job, move || files(&archive, &of, &paths)).await
    }
}

/// An export at the place, whose manifest is checked.
struct CheckedExport {
    manifest: Manifest,
    /// The paths of its files at the place, up to the first one that is missing.
    paths: Vec<String>,
    /// The reason if a file is missing. Retention removes files and keeps the manifest.
    missing: Option<String>,
}

impl CheckedExport {
    fn read(archive: &dyn Archive, name: &str, keys: &[PublicKey]) -> Result<CheckedExport, Error> {
        let manifest = read_manifest(archive, name)?.ok_or_else(|| Error::Refused(format!("{name} is gone")))?;
        manifest.check(name, keys).about(|| name)?;
        let (mut paths, mut named) = (Vec::new(), HashSet::new());
        for file in &manifest.export.files {
            let outside = || Error::Refused(format!("{name} names a file outside of its place"));
            let path = archive.name_of(name, file.path.as_deref().unwrap_or_default()).ok_or_else(outside)?;
            if !named.insert(path.clone()) {
                return Err(Error::Refused(format!("changed: {name} names {path} more than once")));
            }
            if !matches!(archive.open_file(&path).about(|| &path)?, Lookup::File(..)) {
                let missing = Some(format!("gap: {path}, which {name} names, is missing"));
                return Ok(CheckedExport { manifest, paths, missing });
            }
            paths.push(path);
        }
        Ok(CheckedExport { manifest, paths, missing: None })
    }
}

/// Returns the files of an export, in their order. Each is opened when it is read.
fn files(archive: &Arc<dyn Archive>, manifest: &Manifest, paths: &[String]) -> Vec<Input> {
    let input = |(path, file): (&String, &cdc_manifest::ManifestFile)| {
        let (archive, path) = (Arc::clone(archive), path.clone());
        let open = move || match archive.open_file(&path) {
            Ok(Lookup::File(_, found)) => Ok(found),
            Ok(Lookup::Nothing | Lookup::NoFile) => Err(io::Error::other(format!("{path} is missing"))),
            Err(error) => Err(io::Error::other(format!("{path}: {}", chain(&error)))),
        };
        unpacked(open, &manifest.export.compression, file)
    };
    paths.iter().zip(&manifest.export.files).map(input).collect()
}
