//! The chains of a place: which export follows which, by the digests in their manifests.
//!
//! The manifest of an export names the digest of the export before it. [`Chains`] keeps a [`Link`] of each manifest, in
//! about 145 bytes. `verify` looks for gaps and forks in them with [`ChainReport`]; `apply` walks from one export to
//! the next. Knows neither where the manifests were read nor whether their files are there.
//!
//! [`ChainReport`]: crate::manifest::chain_report::ChainReport

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;

use crate::manifest::Manifest;

/// The bytes of a manifest's digest.
pub type Digest = [u8; 32];

/// Reads a digest of 64 hexadecimal digits.
pub fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
}

/// The name of a lane: its exports follow one another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct LaneName {
    cluster: String,
    database: String,
    pub(super) dataset: String,
    pub(super) consumer: String,
}

impl LaneName {
    fn of(manifest: &Manifest) -> LaneName {
        let export = &manifest.export;
        LaneName {
            cluster: export.source.cluster.clone(),
            database: export.source.database.clone(),
            dataset: export.dataset.clone(),
            consumer: export.consumer.clone(),
        }
    }
}

/// A lane of the place.
#[derive(Debug)]
pub(super) struct LaneEntry {
    pub(super) name: LaneName,
    /// The largest number of its manifests.
    newest: u64,
}

/// An export, as its manifest links it to the one before.
#[derive(Debug)]
pub struct Link {
    /// The digest of the export before it in its lane.
    pub previous: Option<Digest>,
    /// Its number: the smallest one if copies of the manifest have other numbers.
    pub number: u64,
    /// The index of its lane.
    pub(super) lane: u32,
    /// True if a reader can begin with it: it has all rows.
    pub is_base: bool,
    /// True if a manifest states the digest of its content.
    pub(super) is_intact: bool,
    /// True if its files are needed. [`ChainReport`](crate::manifest::chain_report::ChainReport) sets it.
    pub(super) is_required: bool,
    /// True if its manifest was read again after the chains were followed.
    pub(super) is_seen: AtomicBool,
}

/// The lanes of a place and the links of their exports, added in any order.
#[derive(Debug, Default)]
pub struct Chains {
    pub(super) lanes: Vec<LaneEntry>,
    /// The index of each lane.
    ids: HashMap<LaneName, u32>,
    /// The links by the digest of their content. A tree needs less memory than a hash map, which doubles when it is
    /// full.
    pub(super) links: BTreeMap<Digest, Link>,
    /// The digests that changed manifests state, to those of their content. The next export may name either.
    stated: HashMap<Digest, Digest>,
}

impl Chains {
    /// Adds a manifest whose content has the digest `computed`. The same export may be added more than once.
    pub fn add(&mut self, manifest: &Manifest, computed: &str) {
        let Manifest { number, export, .. } = manifest;
        let digest = parse_digest(computed).expect("a digest has 32 bytes");
        let is_intact = manifest.digest == computed;
        if let Some(stated) = parse_digest(&manifest.digest).filter(|_| !is_intact) {
            self.stated.insert(stated, digest);
        }
        let lane = *self.ids.entry(LaneName::of(manifest)).or_insert_with_key(|name| {
            self.lanes.push(LaneEntry { name: name.clone(), newest: 0 });
            self.lanes.len() as u32 - 1
        });
        let newest = &mut self.lanes[lane as usize].newest;
        *newest = (*newest).max(*number);
        let added = Link {
            // No export has the digest zero. A text that is no digest is a gap.
            previous: export.previous.as_ref().map(|text| parse_digest(text).unwrap_or_default()),
            number: *number,
            lane,
            is_base: export.is_base(),
            is_intact,
            is_required: false,
            is_seen: AtomicBool::new(false),
        };
        let link = self.links.entry(digest).or_insert(added);
        link.number = link.number.min(*number);
        link.is_intact |= is_intact;
    }

    /// Adds a manifest in a second reading, unless it is newer than all of its lane in the first one.
    ///
    /// A list of files that is read while the service publishes may have an export and not the one before. The service
    /// publishes the exports of a lane one after the other, so after the second reading a gap below the newest number
    /// is real.
    pub fn add_missed(&mut self, manifest: &Manifest, computed: &str) {
        let known = self.ids.get(&LaneName::of(manifest));
        if known.is_some_and(|lane| manifest.number <= self.lanes[*lane as usize].newest) {
            self.add(manifest, computed);
        }
    }

    /// The exports with their digests, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (&Digest, &Link)> {
        self.links.iter()
    }

    /// Returns the export whose content has this digest, or whose manifest states it.
    pub fn get(&self, digest: &Digest) -> Option<&Link> {
        self.links.get(digest).or_else(|| self.links.get(self.stated.get(digest)?))
    }

    /// Returns the digest of the content for which a changed manifest states this one; itself if there is no such
    /// manifest.
    pub(super) fn content_digest(&self, digest: &Digest) -> Digest {
        if self.links.contains_key(digest) { *digest } else { *self.stated.get(digest).unwrap_or(digest) }
    }

    /// Returns the full export with the largest number.
    pub fn newest_base(&self) -> Option<(&Digest, &Link)> {
        self.iter().filter(|(_, link)| link.is_base).max_by_key(|(_, link)| link.number)
    }

    /// Sorts the exports by the one that they follow.
    pub fn followers(&self) -> Followers<'_> {
        let mut links: Vec<_> = self.iter().filter(|(_, link)| link.is_intact).collect();
        links.sort_unstable_by_key(|(digest, link)| (link.previous, link.lane, link.number, *digest));
        Followers(links)
    }
}

/// The exports whose manifests are intact, sorted by the export that they follow, then by lane and number.
#[derive(Debug)]
pub struct Followers<'c>(pub(super) Vec<(&'c Digest, &'c Link)>);

impl<'c> Followers<'c> {
    /// Returns the exports that follow the one with this digest: more than one if the lane was forked.
    pub fn of(&self, digest: &Digest) -> &[(&'c Digest, &'c Link)] {
        let begin = self.0.partition_point(|(_, link)| link.previous.as_ref() < Some(digest));
        let end = self.0.partition_point(|(_, link)| link.previous.as_ref() <= Some(digest));
        &self.0[begin..end]
    }
}
