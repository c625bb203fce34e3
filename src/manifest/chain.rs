//! The chains of exports at a destination, built from the digests in their manifests.
//!
//! The manifest of an export names the digest of the previous export. [`Chains`] stores a [`Link`] for each manifest,
//! in about 145 bytes. `verify` finds gaps and forks with [`ChainReport`]. `apply` follows a chain from one export to
//! the next.
//!
//! This module must not know the source of the manifests, nor check that their files exist.
//!
//! [`ChainReport`]: crate::manifest::chain_report::ChainReport

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;

use crate::manifest::Manifest;

/// The bytes of a manifest's digest.
pub type Digest = [u8; 32];

/// Parses a digest of 64 hexadecimal digits. Returns `None` if the text is not one.
pub fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
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

/// A lane at the destination.
#[derive(Debug)]
pub(super) struct LaneEntry {
    pub(super) name: LaneName,
    /// The largest number of its manifests.
    newest: u64,
}

/// An export and the previous export that its manifest names.
#[derive(Debug)]
pub struct Link {
    /// The digest of the previous export of the lane.
    pub previous: Option<Digest>,
    /// The number of the export. If copies of the manifest have different numbers, the smallest one.
    pub number: u64,
    /// The index of the export's lane.
    pub(super) lane: u32,
    /// True if the export has all rows, so that a reader can begin with it.
    pub is_base: bool,
    /// True if it has all rows without being a full export. A lane begins so, or begins anew where its position was
    /// removed.
    pub(super) is_first: bool,
    /// True if at least one manifest states the correct digest of the content.
    pub(super) is_intact: bool,
    /// True if the files are needed. [`ChainReport`](crate::manifest::chain_report::ChainReport) sets it.
    pub(super) is_required: bool,
    /// True if the manifest was read again after the chains were followed.
    pub(super) is_seen: AtomicBool,
}

/// The lanes of a destination and the links of their exports. Exports can be added in any order.
#[derive(Debug, Default)]
pub struct Chains {
    pub(super) lanes: Vec<LaneEntry>,
    /// The index of each lane.
    ids: HashMap<LaneName, u32>,
    /// The links by the digest of their content. A hash map doubles its memory when it is full; a tree does not.
    pub(super) links: BTreeMap<Digest, Link>,
    /// Maps the digest that a changed manifest states to the digest of its content. The next export may name either.
    stated: HashMap<Digest, Digest>,
}

impl Chains {
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

    /// Returns the exports with their digests, in an arbitrary order.
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

    /// Returns the full export with the largest number.
    pub fn newest_base(&self) -> Option<(&Digest, &Link)> {
        self.iter().filter(|(_, link)| link.is_base).max_by_key(|(_, link)| link.number)
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
