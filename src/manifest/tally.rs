//! A first look at the manifests of a place, in any order. Keeps some sums of each lane, whatever number of manifests it has, which show
//! whether the lane is one unbroken chain.
//!
//! It is, if all digests but the newest are those that all exports but the first say they follow, number by number. Whether two lists are
//! the same, the sums of their hashes tell. The hashes have a key that nobody knows, so lists that differ have the same sum by a chance of
//! 1 in 2^64, whoever made them.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;

use crate::manifest::Manifest;

/// Whose exports follow one another: those of one database, of one dataset, for one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lane {
    source: (String, String),
    pub(super) dataset: String,
    pub(super) consumer: String,
}

impl Lane {
    pub(super) fn of(manifest: &Manifest) -> Lane {
        let export = &manifest.export;
        Lane {
            source: (export.source.cluster.clone(), export.source.database.clone()),
            dataset: export.dataset.clone(),
            consumer: export.consumer.clone(),
        }
    }
}

/// The manifests of a place, counted and summed up.
#[derive(Debug, Default)]
pub struct Tally {
    pub(super) lanes: HashMap<Lane, Sums>,
    pub(super) key: RandomState,
}

/// What is kept of a lane.
#[derive(Debug)]
pub(super) struct Sums {
    pub(super) exports: usize,
    /// Of the hashes of their digests.
    pub(super) digests: u64,
    /// Of the hashes of the digests that they follow.
    followed: u64,
    /// The smallest number, the hash of what that export follows, and whether that may be elsewhere or nowhere.
    first: (u64, u64, bool),
    /// The largest number, and the hash of its digest.
    newest: (u64, u64),
    /// The number of the newest one that builds on nothing.
    pub(super) base: Option<u64>,
    /// Whether each digest is that of its content.
    pub(super) is_right: bool,
}

/// The hash of an export's place in its lane.
pub(super) fn hash(key: &RandomState, number: u64, digest: &str) -> u64 {
    key.hash_one((number, digest))
}

impl Tally {
    /// Adds a manifest, of whose content this is the digest.
    pub fn add(&mut self, manifest: &Manifest, computed: &str) {
        let (number, export) = (manifest.number, &manifest.export);
        let digest = hash(&self.key, number, computed);
        let previous = export.previous.as_ref();
        let followed = previous.map_or(0, |previous| hash(&self.key, number.wrapping_sub(1), previous));
        // One that follows none, and is no base either, a base above it heals.
        let (first, newest) = ((number, followed, export.is_base() || previous.is_none()), (number, digest));
        let none = Sums { exports: 0, digests: 0, followed: 0, first, newest, base: None, is_right: true };
        let sums = self.lanes.entry(Lane::of(manifest)).or_insert(none);
        sums.exports += 1;
        sums.digests = sums.digests.wrapping_add(digest);
        sums.followed = sums.followed.wrapping_add(followed);
        if number < sums.first.0 {
            sums.first = first;
        }
        if number > sums.newest.0 {
            sums.newest = newest;
        }
        sums.base = sums.base.max(Some(number).filter(|_| export.is_base()));
        sums.is_right &= manifest.digest == computed;
    }

    /// Dataset and consumer of the lanes that aren't one unbroken chain. A copy of a database goes on from a lane of the database's, which has
    /// the same ones.
    pub(super) fn doubtful(&self) -> HashSet<(String, String)> {
        let doubtful = self.lanes.iter().filter(|(_, sums)| !sums.are_of_a_chain());
        doubtful.map(|(lane, _)| (lane.dataset.clone(), lane.consumer.clone())).collect()
    }
}

impl Sums {
    /// The numbers, if there is an export of each.
    pub(super) fn numbers(&self) -> RangeInclusive<u64> {
        self.first.0..=self.newest.0
    }

    fn are_of_a_chain(&self) -> bool {
        let (first, follows, may_begin) = self.first;
        let (newest, digest) = self.newest;
        let is_linked = self.digests.wrapping_sub(digest) == self.followed.wrapping_sub(follows);
        // With two of one number, one lacks another.
        self.is_right && may_begin && self.base.is_some() && is_linked && newest - first == self.exports as u64 - 1
    }
}
