//! The chains of exports at a destination, built from the digests in their manifests.
//!
//! The manifest of an export names the digest of the previous export. [`Chains`] stores a [`Link`] for each manifest,
//! in about 155 bytes. `verify` finds gaps and forks with [`ChainReport`]. `apply` follows a chain from one export to
//! the next.
//!
//! After a restore of the database, a destination has a branch of exports that the database has forgotten. The restored
//! database numbers its exports from an earlier number on, so a number doesn't tell which branch is the newest one. The
//! time at which an export was requested does: its id begins with that time.
//!
//! This module must not know the source of the manifests, nor check that their files exist.
//!
//! [`ChainReport`]: crate::chain_report::ChainReport

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::AtomicBool;

use uuid::Uuid;

use crate::Manifest;

pub type Digest = [u8; 32];

/// Parses a digest of 64 hexadecimal digits. Returns `None` if the text is not one.
pub fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}

/// The time at which an export was requested: the milliseconds since 1970, with the most significant byte first.
pub type RequestTime = [u8; 6];

/// Returns the time at which the export with this id was requested. Returns the earliest time if the id has none.
pub fn request_time(job: Uuid) -> RequestTime {
    match job.get_version_num() {
        7 => *job.as_bytes().first_chunk().expect("a UUID has 16 bytes"),
        _ => RequestTime::default(),
    }
}

/// The last export that a reader of a lane has.
#[derive(Clone, Copy, Debug)]
pub struct ReaderPosition {
    pub digest: Digest,
    pub number: u64,
    pub requested: RequestTime,
}

/// The identity of a lane: database, dataset and consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneName {
    cluster: String,
    database: String,
    pub(super) dataset: String,
    pub(super) consumer: String,
}

impl LaneName {
    fn from_manifest(manifest: &Manifest) -> LaneName {
        let export = &manifest.export;
        LaneName {
            cluster: export.source.cluster.clone(),
            database: export.source.database.clone(),
            dataset: export.dataset.clone(),
            consumer: export.consumer.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) struct LaneEntry {
    pub(super) name: LaneName,
    /// The largest number of its manifests.
    newest: u64,
}

/// An export and the previous export that its manifest names.
#[derive(Debug)]
pub struct Link {
    pub previous: Option<Digest>,
    /// The number of the export. If copies of the manifest have different numbers, the smallest one.
    pub number: u64,
    pub requested: RequestTime,
    /// Its place in the lane. 0 if its manifest does not say it.
    pub(super) order: u64,
    pub(super) lane: u32,
    /// True if the export has all rows, so that a reader can begin with it.
    pub is_base: bool,
    /// True if it has all rows without being a full export. A lane begins so, or begins anew where its position was
    /// removed.
    pub(super) is_first: bool,
    /// True if at least one manifest states the correct digest of the content.
    pub(super) is_intact: bool,
    /// True if the files are needed. [`ChainReport`](crate::chain_report::ChainReport) sets it.
    pub(super) is_required: bool,
    /// True if the manifest was read again after the chains were followed.
    pub(super) is_seen: AtomicBool,
}

/// The lanes of a destination and the links of their exports. Exports can be added in any order.
#[derive(Debug, Default)]
pub struct Chains {
    pub(super) lanes: Vec<LaneEntry>,
    ids: HashMap<LaneName, u32>,
    /// The links by the digest of their content. A hash map doubles its memory when it is full; a tree does not.
    pub(super) links: BTreeMap<Digest, Link>,
    /// Maps the digest that a changed manifest states to the digest of its content. The next export may name either.
    stated: HashMap<Digest, Digest>,
}

impl Chains {
    /// Returns true if no manifest was added.
    pub fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Adds a manifest. `computed` is the digest of its content. The same export may be added more than once.
    pub fn add(&mut self, manifest: &Manifest, computed: &str) {
        let Manifest { number, export, .. } = manifest;
        let digest = parse_digest(computed).expect("a digest has 32 bytes");
        let is_intact = manifest.digest == computed;
        if let Some(stated) = parse_digest(&manifest.digest).filter(|_| !is_intact) {
            self.stated.insert(stated, digest);
        }
        let lane = *self.ids.entry(LaneName::from_manifest(manifest)).or_insert_with_key(|name| {
            self.lanes.push(LaneEntry { name: name.clone(), newest: 0 });
            self.lanes.len() as u32 - 1
        });
        let newest = &mut self.lanes[lane as usize].newest;
        *newest = (*newest).max(*number);
        let added = Link {
            // An invalid digest becomes zero. No export has the digest zero, so the chain has a gap there.
            previous: export.previous.as_ref().map(|text| parse_digest(text).unwrap_or_default()),
            number: *number,
            requested: Uuid::parse_str(export.job.id()).map(request_time).unwrap_or_default(),
            order: manifest.order().unwrap_or(0),
            lane,
            is_base: export.is_base(),
            is_first: export.is_base() && export.export_type != "full",
            is_intact,
            is_required: false,
            is_seen: AtomicBool::new(false),
        };
        let link = self.links.entry(digest).or_insert(added);
        link.number = link.number.min(*number);
        link.is_intact |= is_intact;
    }

    /// Adds a manifest found by a second listing, unless it is newer than every manifest of its lane in the first one.
    ///
    /// A listing that runs while the service publishes can contain an export and miss the previous one. The service
    /// publishes the exports of a lane in order. So a gap below the newest number is real if the second listing also
    /// has it.
    pub fn add_missed(&mut self, manifest: &Manifest, computed: &str) {
        let known = self.ids.get(&LaneName::from_manifest(manifest));
        if known.is_some_and(|lane| manifest.number <= self.lanes[*lane as usize].newest) {
            self.add(manifest, computed);
        }
    }

    /// Returns true if the exports of one dataset and consumer are of several databases.
    pub fn are_several_databases(&self) -> bool {
        self.lanes.len() > 1
    }

    /// Returns the exports with their digests, in the order of these.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Link)> {
        self.links.iter()
    }

    /// Returns the export whose content has this digest, or whose changed manifest states this digest.
    pub fn get(&self, digest: &Digest) -> Option<&Link> {
        self.links.get(digest).or_else(|| self.links.get(self.stated.get(digest)?))
    }

    /// Maps the digest that a changed manifest states to the digest of its content. Returns any other digest unchanged.
    pub(super) fn content_digest(&self, digest: &Digest) -> Digest {
        if self.links.contains_key(digest) { *digest } else { *self.stated.get(digest).unwrap_or(digest) }
    }

    /// Returns two exports of which a lane can have only one. They have the same number, or follow the same export, or
    /// the one with the larger number was requested earlier and there is a gap before it.
    ///
    /// Then the database was restored to an earlier state, or a copy of it exports to the same place.
    pub fn fork<'c>(&'c self, successors: &Successors<'c>) -> Option<[(&'c Digest, &'c Link); 2]> {
        let mut numbered: Vec<_> = self.iter().collect();
        numbered.sort_unstable_by_key(|(digest, link)| (link.number, *digest));
        let pair = |pair: &[(&'c Digest, &'c Link)]| [pair[0], pair[1]];
        let are_in_disorder = |[(digest, lower), (_, upper)]: &[(&Digest, &Link); 2]| {
            let is_gap = upper.previous.as_ref() != Some(*digest);
            lower.number == upper.number || is_gap && lower.requested > upper.requested
        };
        let follow_the_same =
            |[(_, one), (_, other)]: &[(&Digest, &Link); 2]| one.previous.is_some() && one.previous == other.previous;
        let in_disorder = numbered.windows(2).map(pair).find(are_in_disorder);
        in_disorder.or_else(|| successors.0.windows(2).map(pair).find(follow_the_same))
    }

    /// Returns the full export with which a reader goes on if not exactly one export follows its position. A reader
    /// without a position has no export yet.
    pub fn base_after<'c>(
        &'c self,
        successors: &Successors<'c>,
        position: Option<&ReaderPosition>,
    ) -> Option<(&'c Digest, &'c Link)> {
        // The reader's export may have been removed from the place.
        let is_before = |position: &ReaderPosition| {
            let is_newer = |link: &Link| link.number <= position.number && link.requested > position.requested;
            !self.links.contains_key(&position.digest) && self.links.values().any(is_newer)
        };
        if position.is_some_and(is_before) || self.fork(successors).is_some() {
            return self.base_of_newest_branch(successors, position);
        }
        let newest = self.iter().filter(|(_, link)| link.is_base).max_by_key(|(_, link)| link.number);
        let is_newer = |base: &Link, position: &ReaderPosition| {
            base.number > position.number && base.requested > position.requested
        };
        newest.filter(|(_, base)| position.is_none_or(|position| is_newer(base, position)))
    }

    /// Returns the newest full export after the position on the branch of the export that was requested last.
    ///
    /// The database has forgotten the exports of the other branches. The full export must have been requested after all
    /// of them, and after the position if that is on another branch: then it replaces all of their rows, and an older
    /// place can't take a reader back. A reader without exports could begin with any of several databases, so it gets
    /// `None` then.
    fn base_of_newest_branch<'c>(
        &'c self,
        successors: &Successors<'c>,
        position: Option<&ReaderPosition>,
    ) -> Option<(&'c Digest, &'c Link)> {
        if position.is_none() && self.are_several_databases() {
            return None;
        }
        let last = self.iter().max_by_key(|(_, link)| (link.requested, link.number))?;
        let (mut branch, lane) = (vec![last], last.1.lane);
        // The clocks of two processes differ a little, so an export may follow one that was requested later.
        while let [next] = successors.following(branch[branch.len() - 1].0)
            && next.1.lane == lane
        {
            branch.push(*next);
        }
        branch.reverse();
        while let Some(previous) = branch[branch.len() - 1].1.previous
            && let Some(before) = self.links.get_key_value(&previous)
        {
            branch.push(before);
        }
        let digests: HashSet<&Digest> = branch.iter().map(|(digest, _)| *digest).collect();
        let is_elsewhere = |digest: &Digest| !digests.contains(digest);
        let others = self.iter().filter(|(digest, link)| link.lane == lane && is_elsewhere(digest));
        let reader = position.filter(|position| is_elsewhere(&position.digest)).map(|position| position.requested);
        let forgotten = others.map(|(_, link)| link.requested).chain(reader).max();
        let is_after = |(digest, _): &&(&Digest, &Link)| position.is_none_or(|position| position.digest != **digest);
        let is_base = |(_, link): &&(&Digest, &Link)| link.is_base && Some(link.requested) > forgotten;
        branch.iter().take_while(is_after).find(is_base).copied()
    }

    /// Returns an export that a reader at this position lacks: the one with the largest number of those that were
    /// requested after its export and don't come before it.
    pub fn missed(&self, position: Option<&ReaderPosition>) -> Option<(&Digest, &Link)> {
        let is_later = |link: &Link| position.is_none_or(|position| link.requested > position.requested);
        let mut later: HashMap<&Digest, &Link> = self.iter().filter(|(_, link)| is_later(link)).collect();
        let mut at = position.and_then(|position| self.get(&position.digest));
        while !later.is_empty()
            && let Some(previous) = at.and_then(|link| link.previous)
        {
            later.remove(&previous);
            at = self.get(&previous);
        }
        later.into_iter().max_by_key(|(_, link)| link.number)
    }

    /// Sorts the exports by the export that they follow.
    pub fn successors(&self) -> Successors<'_> {
        let mut links: Vec<_> = self.iter().filter(|(_, link)| link.is_intact).collect();
        links.sort_unstable_by_key(|(digest, link)| (link.previous, link.lane, link.number, *digest));
        Successors(links)
    }
}

/// The exports whose manifests are intact, sorted by the export that they follow, then by lane and number.
#[derive(Debug)]
pub struct Successors<'c>(pub(super) Vec<(&'c Digest, &'c Link)>);

impl<'c> Successors<'c> {
    /// Returns the exports that follow the export with this digest. A forked lane has more than one.
    pub fn following(&self, digest: &Digest) -> &[(&'c Digest, &'c Link)] {
        let begin = self.0.partition_point(|(_, link)| link.previous.as_ref() < Some(digest));
        let end = self.0.partition_point(|(_, link)| link.previous.as_ref() <= Some(digest));
        &self.0[begin..end]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::tests::chained;
    use crate::{Chained, ManifestJob, ManifestSource};

    /// Returns an export that was requested at this millisecond.
    fn export(number: u64, requested: u16, export_type: &str, previous: Option<&Manifest>) -> Manifest {
        let export = Chained {
            job: ManifestJob::One(format!("019a0000-{requested:04x}-7000-8000-000000000001")),
            export_type: export_type.to_owned(),
            watermark_from: Some("2026-11-20T10:14:58.402113Z".to_owned()),
            previous: previous.map(|previous| previous.digest.clone()),
            ..chained()
        };
        Manifest::new(number, export, Vec::new())
    }

    fn position(manifest: &Manifest) -> ReaderPosition {
        let requested = request_time(manifest.export.job.id().parse().unwrap());
        ReaderPosition { digest: parse_digest(&manifest.digest).unwrap(), number: manifest.number, requested }
    }

    /// Returns the digest of the full export with which a reader goes on, and whether it lacks an export.
    fn next(exports: &[&Manifest], reader: Option<&Manifest>) -> (Option<String>, bool) {
        let mut chains = Chains::default();
        exports.iter().for_each(|manifest| chains.add(manifest, &manifest.digest));
        let reader = reader.map(position);
        let base = chains.base_after(&chains.successors(), reader.as_ref());
        (base.map(|(digest, _)| hex::encode(digest)), chains.missed(reader.as_ref()).is_some())
    }

    fn at(base: &Manifest) -> (Option<String>, bool) {
        (Some(base.digest.clone()), true)
    }

    #[test]
    fn a_gap_is_passed_by_the_full_export_with_the_largest_number() {
        let first = export(1, 1, "full", None);
        let second = export(2, 2, "delta", Some(&first));
        let lost = export(3, 3, "delta", Some(&second));
        let fourth = export(4, 4, "full", Some(&lost));
        assert_eq!(next(&[&first, &second, &fourth], Some(&second)), at(&fourth));
        assert_eq!(next(&[&first, &second, &fourth], None), at(&fourth));
        assert_eq!(next(&[&first, &second, &fourth], Some(&fourth)), (None, false));
        // A place that lags behind the reader.
        assert_eq!(next(&[&first, &second], Some(&fourth)), (None, false));
    }

    #[test]
    fn a_fork_is_passed_by_a_full_export_that_is_newer_than_all_of_the_other_branch() {
        let first = export(1, 1, "full", None);
        let second = export(2, 2, "delta", Some(&first));
        let third = export(3, 3, "delta", Some(&second));
        // A full export of the forgotten branch has the largest number of all.
        let fourth = export(4, 4, "full", Some(&third));
        let fifth = export(5, 5, "delta", Some(&fourth));
        let forgotten = [&first, &second, &third, &fourth, &fifth];
        let restored = export(3, 20, "full", Some(&second));
        let after = export(4, 21, "delta", Some(&restored));
        let all = [&forgotten[..], &[&restored, &after]].concat();
        for reader in [None, Some(&second), Some(&fourth), Some(&fifth)] {
            assert_eq!(next(&all, reader), at(&restored), "{reader:?}");
        }
        assert_eq!(next(&all, Some(&after)), (None, false));
        // Nothing takes the reader back, and not the forgotten branch alone.
        assert_eq!(next(&forgotten, Some(&after)), (None, false));
        let seventh = export(7, 7, "full", Some(&fifth));
        assert_eq!(next(&[&forgotten[..], &[&seventh]].concat(), Some(&after)), (None, false));
        // The reader's export, and all before the fork, may have been removed.
        assert_eq!(next(&[&restored, &after], Some(&fifth)), at(&restored));
        assert_eq!(next(&[&fourth, &fifth, &restored], None), at(&restored));
        assert_eq!(next(&[&seventh, &restored, &after], None), at(&restored));

        // In a bucket, the restored database goes on behind the largest number.
        let renumbered = export(6, 20, "full", Some(&second));
        let all = [&forgotten[..], &[&renumbered]].concat();
        assert_eq!(next(&all, Some(&second)), at(&renumbered));

        // Clocks that differ a little don't hide the end of the branch.
        let skewed = export(5, 19, "delta", Some(&after));
        let all = [&forgotten[..], &[&restored, &after, &skewed]].concat();
        assert_eq!(next(&all, Some(&fifth)), at(&restored));
        assert_eq!(next(&all, Some(&skewed)), (None, false));
    }

    #[test]
    fn a_fork_without_such_a_full_export_is_not_passed() {
        let first = export(1, 1, "full", None);
        let second = export(2, 2, "delta", Some(&first));
        let third = export(3, 9, "delta", Some(&second));
        for restored in [export(3, 20, "delta", Some(&second)), export(3, 8, "full", Some(&second))] {
            let after = export(4, 21, "delta", Some(&restored));
            for reader in [None, Some(&second), Some(&third)] {
                assert_eq!(next(&[&first, &second, &third, &restored, &after], reader), (None, true), "{reader:?}");
            }
        }
        // A second restore.
        let restored = export(3, 20, "full", Some(&second));
        let after = export(4, 21, "delta", Some(&restored));
        let again = export(4, 30, "delta", Some(&restored));
        assert_eq!(next(&[&first, &second, &third, &restored, &after, &again], None), (None, true));
    }

    #[test]
    fn a_new_reader_begins_with_no_database_of_several() {
        let first = export(1, 1, "full", None);
        let second = export(2, 2, "delta", Some(&first));
        let copy = export(2, 3, "full", Some(&first));
        let source = ManifestSource { database: "16385".to_owned(), ..copy.export.source.clone() };
        let copy = Manifest::new(2, Chained { source, ..copy.export }, Vec::new());
        assert_eq!(next(&[&first, &second, &copy], None), (None, true));
        assert_eq!(next(&[&first, &second, &copy], Some(&second)), at(&copy));
    }
}
