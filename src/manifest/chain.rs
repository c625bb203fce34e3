//! The chains of a place: which export follows which, by the digests of their manifests, and where one is missing or stands twice.
//!
//! Keeps a byte of each manifest, and of those in lanes that a [`Tally`] finds broken a hundred. Knows neither the place that they were read
//! from nor whether their files are there.

use std::collections::HashMap;
use std::hash::RandomState;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::manifest::Manifest;
use crate::manifest::links::{Digest, Fault, Link, Place, digest_of};
use crate::manifest::tally::{Lane, Tally, hash};

/// What is known of a lane.
#[derive(Debug)]
enum Known {
    /// It is one unbroken chain of these numbers, whose first export has the index `begin`.
    Whole { begin: usize, numbers: RangeInclusive<u64>, base: u64, unmet: AtomicU64 },
    /// It is looked at link by link, up to the newest one of the tally.
    Links { id: u32, newest: u64 },
}

/// The lanes of a place, and the links of those that are doubtful, in any order.
#[derive(Debug)]
pub struct Chains {
    lanes: HashMap<Lane, Known>,
    key: RandomState,
    /// How many exports whole lanes have.
    in_whole: usize,
    links: Vec<Link>,
    /// The digests that changed manifests should have, to the ones that they say.
    aliases: HashMap<Digest, Digest>,
}

/// The chains, looked at: each export has an index, those of whole lanes first, and then those of links in the order of lanes and numbers.
#[derive(Debug)]
pub struct Judged {
    lanes: HashMap<Lane, Known>,
    key: RandomState,
    in_whole: usize,
    links: Vec<Link>,
    faults: Vec<(usize, Fault)>,
    required: Vec<bool>,
    met: Vec<AtomicBool>,
}

/// An export that was met again.
#[derive(Debug)]
pub struct Met {
    /// Whether its files are needed.
    pub is_required: bool,
    /// What is wrong with its place in its lane, when it is met for the first time.
    pub faults: Vec<Fault>,
}

impl Chains {
    /// After a first look at all manifests.
    pub fn new(tally: Tally) -> Chains {
        let (doubtful, Tally { lanes: tallied, key }) = (tally.doubtful(), tally);
        let (mut lanes, mut in_whole, mut in_links) = (HashMap::with_capacity(tallied.len()), 0, 0);
        for (id, (lane, sums)) in (0..).zip(tallied) {
            let is_doubtful = doubtful.contains(&(lane.dataset.clone(), lane.consumer.clone()));
            let (numbers, count) = (sums.numbers(), if is_doubtful { &mut in_links } else { &mut in_whole });
            let known = match sums.base.filter(|_| !is_doubtful) {
                Some(base) => Known::Whole { begin: *count, numbers, base, unmet: AtomicU64::new(sums.digests) },
                None => Known::Links { id, newest: *numbers.end() },
            };
            *count += sums.exports;
            lanes.insert(lane, known);
        }
        Chains { lanes, key, in_whole, links: Vec::with_capacity(in_links), aliases: HashMap::new() }
    }

    /// Whether no manifest has to be looked at again.
    pub fn are_whole(&self) -> bool {
        self.lanes.values().all(|known| matches!(known, Known::Whole { .. }))
    }

    /// Adds a manifest in a second look, of whose content this is the digest. The same one may come again, from elsewhere in the place.
    ///
    /// One that is newer than the newest of its lane in the first look is left out. What both looks lack was never there: the service publishes a
    /// lane's exports one after the other.
    pub fn add(&mut self, manifest: &Manifest, computed: &str) {
        let Some(Known::Links { id, newest }) = self.lanes.get(&Lane::of(manifest)) else { return };
        if manifest.number > *newest {
            return;
        }
        let export = &manifest.export;
        let expected = digest_of(computed).expect("a digest has 32 bytes");
        let digest = digest_of(&manifest.digest).unwrap_or(expected);
        let is_right = manifest.digest == computed;
        if !is_right {
            self.aliases.insert(expected, digest);
        }
        self.links.push(Link {
            digest,
            // One that is none is nobody's, so it is missing.
            previous: export.previous.as_ref().map(|text| digest_of(text).unwrap_or_default()),
            number: manifest.number,
            lane: *id,
            is_right,
            is_base: export.is_base(),
        });
    }

    /// Follows the chains.
    pub fn judge(self) -> Judged {
        let Chains { lanes, key, in_whole, mut links, aliases } = self;
        // Right ones first: where the same export is there twice, that one counts.
        links.sort_unstable_by_key(|link| (link.lane, link.number, link.digest, !link.is_right));
        links.dedup_by_key(|link| (link.lane, link.number, link.digest));
        let place = Place::new(&links, aliases);
        let (faults, required) = (place.faults(), place.required());
        let met = (0..in_whole + links.len()).map(|_| AtomicBool::new(false)).collect();
        Judged { lanes, key, in_whole, links, faults, required, met }
    }
}

impl Judged {
    /// Meets a manifest again; `None`: it wasn't there.
    pub fn meet(&self, manifest: &Manifest) -> Option<Met> {
        let is_first = |index: usize| !self.met[index].swap(true, Ordering::Relaxed);
        match self.lanes.get(&Lane::of(manifest))? {
            Known::Whole { begin, numbers, base, unmet } => {
                let number = Some(manifest.number).filter(|number| numbers.contains(number))?;
                if is_first(begin + (number - numbers.start()) as usize) {
                    unmet.fetch_sub(hash(&self.key, number, &manifest.digest), Ordering::Relaxed);
                }
                Some(Met { is_required: number >= *base, faults: Vec::new() })
            }
            Known::Links { id, .. } => {
                let digest = digest_of(&manifest.digest).or_else(|| digest_of(&manifest.export.digest()))?;
                let link = (*id, manifest.number, digest);
                let index = self.links.binary_search_by_key(&link, |l| (l.lane, l.number, l.digest)).ok()?;
                let faults = if is_first(self.in_whole + index) { self.faults(index).collect() } else { Vec::new() };
                Some(Met { is_required: self.required[index], faults })
            }
        }
    }

    /// Dataset, consumer and number of what wasn't met. Where all numbers of a whole lane were, but one with another digest, it is the newest.
    pub fn unmet(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let is_unmet = |index: usize| !self.met[index].load(Ordering::Relaxed);
        self.lanes.iter().flat_map(move |(lane, known)| {
            let mut unmet: Vec<u64> = match known {
                Known::Whole { begin, numbers, .. } => (*begin..)
                    .zip(numbers.clone())
                    .filter(|(index, _)| is_unmet(*index))
                    .map(|(_, number)| number)
                    .collect(),
                Known::Links { id, .. } => {
                    let first = self.links.partition_point(|link| link.lane < *id);
                    let links = self.links[first..].iter().take_while(|link| link.lane == *id);
                    (self.in_whole + first..)
                        .zip(links)
                        .filter(|(index, _)| is_unmet(*index))
                        .map(|(_, link)| link.number)
                        .collect()
                }
            };
            if let Known::Whole { numbers, unmet: sum, .. } = known
                && unmet.is_empty()
                && sum.load(Ordering::Relaxed) != 0
            {
                unmet.push(*numbers.end());
            }
            unmet.into_iter().map(|number| (&*lane.dataset, &*lane.consumer, number))
        })
    }

    /// How many exports there are.
    pub fn exports(&self) -> usize {
        self.met.len()
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        let is_whole = |known: &&Known| matches!(known, Known::Whole { .. });
        self.lanes.values().filter(is_whole).count() + self.links.chunk_by(|a, b| a.lane == b.lane).count()
    }

    fn faults(&self, index: usize) -> impl Iterator<Item = Fault> {
        let begin = self.faults.partition_point(|(of, _)| *of < index);
        self.faults[begin..].iter().take_while(move |(of, _)| *of == index).map(|(_, fault)| *fault)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::manifest::{Chained, VERSION};

    /// A lane's exports from `first` on, of which these are full ones.
    fn lane(source: &str, consumer: &str, first: u64, fulls: &[bool], previous: Option<String>) -> Vec<Manifest> {
        let mut previous = previous;
        let of = |(full, number): (&bool, u64)| {
            let export = serde_json::json!({
                "version": VERSION, "job": format!("job {number} of {source}"), "consumer": consumer, "dataset": "orders", "table": null,
                "source": {"cluster": source, "database": "1"}, "type": if *full { "full" } else { "delta" }, "key": [], "columns": [],
                "format": "csv", "compression": "none", "snapshot": null, "continuity": null, "watermarkFrom": "2026-11-20T10:14:58Z",
                "watermarkTo": null, "rows": "0", "files": [], "previous": previous,
            });
            let export: Chained = serde_json::from_value(export).unwrap();
            let manifest = Manifest::new(number, export, Vec::new());
            previous = Some(manifest.digest.clone());
            manifest
        };
        fulls.iter().zip(first..).map(of).collect()
    }

    fn tally<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> Tally {
        let mut tally = Tally::default();
        manifests.into_iter().for_each(|manifest| tally.add(manifest, &manifest.export.digest()));
        tally
    }

    fn judged<'m>(manifests: impl IntoIterator<Item = &'m Manifest, IntoIter: Clone>) -> Judged {
        let manifests = manifests.into_iter();
        let judged = |tally: Tally| {
            let mut chains = Chains::new(tally);
            manifests.clone().for_each(|manifest| chains.add(manifest, &manifest.export.digest()));
            chains.judge()
        };
        // The links of a whole lane would say the same of it.
        let mut distrusted = tally(manifests.clone());
        distrusted.lanes.values_mut().for_each(|sums| sums.is_right = false);
        let (found, by_links) = (judged(tally(manifests.clone())), judged(distrusted));
        assert_eq!((found.exports(), found.lanes()), (by_links.exports(), by_links.lanes()));
        let sorted = |judged: &Judged| {
            let mut faults = faults(judged);
            faults.sort_by_key(|fault| format!("{fault:?}"));
            faults
        };
        assert_eq!(sorted(&found), sorted(&by_links));
        ["a", "b", "c"]
            .iter()
            .for_each(|consumer| assert_eq!(required(&found, consumer), required(&by_links, consumer)));
        found
    }

    /// Consumer, number and fault of each.
    fn faults(judged: &Judged) -> Vec<(String, u64, Fault)> {
        let lane = |link: &Link| {
            let is_its = |known: &Known| matches!(known, Known::Links { id, .. } if *id == link.lane);
            judged.lanes.iter().find(|(_, known)| is_its(known)).unwrap().0.consumer.clone()
        };
        let of = |(index, fault): &(usize, Fault)| (lane(&judged.links[*index]), judged.links[*index].number, *fault);
        judged.faults.iter().map(of).collect()
    }

    /// The numbers of those exports of a consumer whose files are needed.
    fn required(judged: &Judged, consumer: &str) -> Vec<u64> {
        let of_lane = |(_, known): (_, &Known)| match known {
            Known::Whole { numbers, base, .. } => (*base..=*numbers.end()).collect::<Vec<_>>(),
            Known::Links { id, .. } => {
                let links = judged.links.iter().zip(&judged.required);
                links.filter(|(link, required)| link.lane == *id && **required).map(|(link, _)| link.number).collect()
            }
        };
        let mut numbers: Vec<_> =
            judged.lanes.iter().filter(|(lane, _)| lane.consumer == consumer).flat_map(of_lane).collect();
        numbers.sort_unstable();
        numbers
    }

    fn fulls() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec(prop::bool::weighted(0.3), 3..12).prop_map(|mut fulls| {
            fulls[0] = true;
            fulls
        })
    }

    proptest! {
        #[test]
        fn one_change_is_one_fault(lanes in prop::collection::vec(fulls(), 1..4), which: Index, at: Index, what in 0..8) {
            let names = ["a", "b", "c"];
            let mut all: Vec<Vec<Manifest>> =
                lanes.iter().zip(names).map(|(fulls, name)| lane("s", name, 1, fulls, None)).collect();
            let whole = judged(all.iter().rev().flat_map(|lane| lane.iter().rev()));
            prop_assert_eq!(faults(&whole), []);
            prop_assert_eq!((whole.in_whole, whole.links.capacity()), (whole.exports(), 0), "nothing is kept of a manifest");
            for (fulls, name) in lanes.iter().zip(names) {
                let base = fulls.iter().rposition(|full| *full).unwrap();
                prop_assert_eq!(required(&whole, name), (base as u64 + 1..=fulls.len() as u64).collect::<Vec<_>>());
            }

            let which = which.index(all.len());
            let (name, lane) = (names[which].to_owned(), &mut all[which]);
            let middle = 1 + at.index(lane.len() - 2);
            let number = middle as u64 + 1;
            let expected = match what {
                0 => {
                    lane.remove(middle);
                    vec![(name, number + 1, Fault::GapAfter(number - 1))]
                }
                // Nothing is built on what was before a full export.
                1 => {
                    lane.remove(0);
                    if lane[0].export.is_base() { vec![] } else { vec![(name, 2, Fault::GapBefore(2))] }
                }
                // Nobody can see that the newest one is missing.
                2 => {
                    lane.pop();
                    vec![]
                }
                3 => {
                    let export = Chained { rows: "1".to_owned(), ..lane[middle].export.clone() };
                    lane.push(Manifest::new(number, export, Vec::new()));
                    vec![(name, number, Fault::ForkedAt(number))]
                }
                // Of those that were changed the digest tells, and the chain goes through them.
                4 => {
                    lane[middle].export.previous = None;
                    vec![]
                }
                5 => {
                    lane[middle].digest = "00".repeat(32);
                    vec![]
                }
                // Another one in its place: as many as before, and each number once.
                6 => {
                    let export = Chained { rows: "1".to_owned(), ..lane[middle].export.clone() };
                    lane[middle] = Manifest::new(number, export, Vec::new());
                    vec![(name, number + 1, Fault::GapAfter(number))]
                }
                _ => {
                    lane[middle].number = 99;
                    vec![(name, number + 1, Fault::NotAbove(99))]
                }
            };
            prop_assert_eq!(faults(&judged(all.iter().flatten())), expected);
        }
    }

    #[test]
    fn numbers_are_a_copys_own_and_a_copy_is_no_fork() {
        let mut renumbered = lane("s", "a", 1, &[true, false, false], None);
        let originals = renumbered.clone();
        renumbered.iter_mut().for_each(|manifest| manifest.number = manifest.number * 10 + 3);
        assert_eq!(faults(&judged(&renumbered)), []);
        assert_eq!(faults(&judged(renumbered.iter().chain(&originals))), []);
        assert_eq!(judged(originals.iter().chain(&originals)).exports(), 3);
    }

    #[test]
    fn a_copy_of_the_database_goes_on_in_a_lane_of_its_own() {
        let original = lane("s", "a", 1, &[true, true, false, false], None);
        let copy = lane("t", "a", 4, &[false, false], Some(original[2].digest.clone()));
        let both = judged(original.iter().chain(&copy));
        assert_eq!(faults(&both), []);
        assert_eq!((both.lanes(), required(&both, "a")), (2, vec![2, 3, 4, 4, 5]));
        // Without what it goes on from, the copy has no beginning.
        let alone = judged(&copy);
        assert_eq!(faults(&alone), [("a".to_owned(), 4, Fault::GapBefore(4))]);
        // The same database, restored to an earlier time, takes the numbers again or goes on counting.
        for first in [4, 5] {
            let again = lane("s", "a", first, &[false], Some(original[2].digest.clone()));
            let mut again = again;
            again[0] = Manifest::new(first, Chained { job: "x".to_owned(), ..again[0].export.clone() }, Vec::new());
            let found = faults(&judged(original.iter().chain(&again)));
            assert!(
                matches!(&*found, [(_, number, Fault::ForkedAt(4))] if *number == first || first == 4),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_lane_that_begins_without_a_full_export_is_whole_from_its_first_one_on() {
        // The service had exported before it wrote manifests.
        let begun = lane("s", "a", 5, &[false, false], None);
        assert_eq!(faults(&judged(&begun)), [("a".to_owned(), 5, Fault::GapBefore(5))]);
        let healed = lane("s", "a", 5, &[false, true, false], None);
        assert_eq!(faults(&judged(&healed)), []);
        assert_eq!(required(&judged(&healed), "a"), [6, 7]);
        // One that was begun anew, as if nothing had been before.
        let again = lane("s", "a", 8, &[true], None);
        assert_eq!(faults(&judged(healed.iter().chain(&again))), [("a".to_owned(), 8, Fault::ForkedAt(8))]);
    }

    #[test]
    fn what_is_newer_than_an_earlier_look_is_left_out() {
        let all = lane("s", "a", 1, &[true, false, false, false], None);
        let other = lane("s", "b", 1, &[true], None);
        let earlier = judged([&all[0], &all[2]]);
        assert_eq!(faults(&earlier), [("a".to_owned(), 3, Fault::GapAfter(1))]);
        // The fourth is published during the second look, and the fifth is seen without it.
        let fifth = &lane("s", "a", 5, &[false], Some("00".repeat(32)))[0];
        let mut chains = Chains::new(tally([&all[0], &all[2]]));
        assert!(!chains.are_whole());
        [&all[0], &all[1], &all[2], &other[0], fifth].into_iter().for_each(|one| chains.add(one, &one.digest));
        let judged = chains.judge();
        assert_eq!((faults(&judged), judged.exports()), (vec![], 3));
        assert!(judged.meet(&all[2]).is_some() && judged.meet(&all[3]).is_none() && judged.meet(&other[0]).is_none());
    }

    #[test]
    fn what_was_there_a_moment_ago_is_met_again() {
        let all = lane("s", "a", 4, &[true, false, false], None);
        let broken = lane("s", "b", 1, &[true, false], None).split_off(1);
        let unmet_of = |all: &[Manifest], met: &[&Manifest]| {
            let judged = judged(all.iter().chain(&broken));
            let met = met.iter().filter(|manifest| judged.meet(manifest).is_some()).count();
            let mut unmet: Vec<_> =
                judged.unmet().map(|(_, consumer, number)| format!("{consumer} {number}")).collect();
            unmet.sort();
            (met, unmet)
        };
        let unmet = |met: &[&Manifest]| unmet_of(&all, met);
        assert_eq!(unmet(&[&all[0], &all[1], &all[2], &all[1], &broken[0]]), (5, vec![]));
        assert_eq!(unmet(&[&all[0], &all[2]]), (2, vec!["a 5".to_owned(), "b 2".to_owned()]));
        // Another one in its place, with a digest of its own.
        let export = Chained { rows: "1".to_owned(), ..all[1].export.clone() };
        let other = Manifest::new(5, export, Vec::new());
        assert_eq!(unmet(&[&all[0], &other, &all[2], &broken[0]]), (4, vec!["a 6".to_owned()]));
        // One that was changed before is met as what it says it is.
        let mut changed = all.clone();
        changed[2].digest = "00".repeat(32);
        assert_eq!(unmet_of(&changed, &[&changed[0], &changed[1], &changed[2], &broken[0]]), (4, vec![]));
    }
}
