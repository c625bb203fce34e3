//! The chains of a place: which export follows which, by the digests of their manifests, and where one is missing or stands twice.
//!
//! Keeps a hundred bytes of each manifest. Knows neither the place that they were read from nor whether their files are there.

use std::collections::HashMap;

use crate::manifest::{Manifest, Source};

type Digest = [u8; 32];

/// Whose exports follow one another: those of one database, of one dataset, for one consumer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lane {
    source: (String, String),
    dataset: String,
    consumer: String,
}

/// What is kept of a manifest.
#[derive(Clone, Debug)]
struct Link {
    digest: Digest,
    previous: Option<Digest>,
    number: u64,
    lane: u32,
    /// Whether the digest is that of its content. Of a changed one nothing is believed but its digest, which the next export names.
    is_right: bool,
    is_base: bool,
}

/// What is wrong with an export's place in its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The export that it follows is missing, and the newest one before it that is there has this number.
    GapAfter(u64),
    /// What it builds on isn't there: it is the lane's first one, with this number, and no full export.
    GapBefore(u64),
    /// Another export with this number, or this export itself, follows the same one, or both follow none.
    ForkedAt(u64),
    /// It follows the export of this number, which isn't below its own.
    NotAbove(u64),
}

/// The manifests of a place, in any order.
#[derive(Debug, Default)]
pub struct Chains {
    lanes: HashMap<Lane, u32>,
    links: Vec<Link>,
    /// The digests that changed manifests should have, to the ones that they say.
    aliases: HashMap<Digest, Digest>,
}

/// The number of each lane's newest export.
#[derive(Debug)]
pub struct Newest(HashMap<Lane, u64>);

/// The chains, looked at: each export has an index, in the order of lanes and numbers.
#[derive(Debug)]
pub struct Judged {
    lanes: HashMap<Lane, u32>,
    links: Vec<Link>,
    faults: Vec<(usize, Fault)>,
    required: Vec<bool>,
}

impl Chains {
    /// Adds a manifest, of whose content this is the digest. The same one may come again, from elsewhere in the place.
    pub fn add(&mut self, manifest: &Manifest, computed: &str) {
        let export = &manifest.export;
        let expected = digest_of(computed).expect("a digest has 32 bytes");
        let digest = digest_of(&manifest.digest).unwrap_or(expected);
        let is_right = manifest.digest == computed;
        if !is_right {
            self.aliases.insert(expected, digest);
        }
        let next = self.lanes.len() as u32;
        self.links.push(Link {
            digest,
            // One that is none is nobody's, so it is missing.
            previous: export.previous.as_ref().map(|text| digest_of(text).unwrap_or_default()),
            number: manifest.number,
            lane: *self.lanes.entry(lane_of(manifest)).or_insert(next),
            is_right,
            is_base: export.is_base(),
        });
    }

    /// Leaves those out that are newer than the newest of their lane in an earlier look. What both looks lack was never there: the service
    /// publishes a lane's exports one after the other.
    pub fn forget_newer_than(&mut self, Newest(earlier): &Newest) {
        let of_lane = |(lane, id): (&Lane, &u32)| Some((*id, *earlier.get(lane)?));
        let bounds: HashMap<u32, u64> = self.lanes.iter().filter_map(of_lane).collect();
        self.links.retain(|link| bounds.get(&link.lane).is_some_and(|newest| link.number <= *newest));
    }

    /// Follows the chains.
    pub fn judge(self) -> Judged {
        let Chains { lanes, mut links, aliases } = self;
        // Right ones first: where the same export is there twice, that one counts.
        links.sort_unstable_by_key(|link| (link.lane, link.number, link.digest, !link.is_right));
        links.dedup_by_key(|link| (link.lane, link.number, link.digest));
        let mut by_digest: Vec<u32> = (0..links.len() as u32).collect();
        by_digest.sort_unstable_by_key(|index| links[*index as usize].digest);
        let place = Place { links: &links, by_digest, aliases };
        let mut faults = place.forks();
        faults.extend((0..links.len()).filter_map(|index| Some((index, place.fault(index)?))));
        faults.sort_by_key(|(index, _)| *index);
        let required = place.required();
        Judged { lanes, links, faults, required }
    }
}

/// The links of a place, in the order of lanes and numbers, and their order by digest.
struct Place<'l> {
    links: &'l [Link],
    by_digest: Vec<u32>,
    aliases: HashMap<Digest, Digest>,
}

impl Place<'_> {
    /// Those with this digest: one, or several copies with other numbers.
    fn known(&self, digest: &Digest) -> impl Iterator<Item = usize> {
        let range = |digest: &Digest| {
            let begin = self.by_digest.partition_point(|index| self.links[*index as usize].digest < *digest);
            let end = self.by_digest.partition_point(|index| self.links[*index as usize].digest <= *digest);
            &self.by_digest[begin..end]
        };
        let found = match (range(digest), self.aliases.get(digest)) {
            ([], Some(said)) => range(said),
            (found, _) => found,
        };
        found.iter().map(|index| *index as usize)
    }

    /// The one before in the lane, by its number.
    fn lower(&self, index: usize) -> Option<usize> {
        let Link { lane, number, .. } = self.links[index];
        let end = self.links.partition_point(|link| (link.lane, link.number) < (lane, number));
        end.checked_sub(1).filter(|lower| self.links[*lower].lane == lane)
    }

    fn has_base_above(&self, index: usize) -> bool {
        let Link { lane, number, .. } = self.links[index];
        let begin = self.links.partition_point(|link| (link.lane, link.number) <= (lane, number));
        self.links[begin..].iter().take_while(|link| link.lane == lane).any(|link| link.is_base)
    }

    /// Where exports of one database follow the same one. A copy of the database goes on from there too, in a lane of its own.
    fn forks(&self) -> Vec<(usize, Fault)> {
        let mut order: Vec<u32> =
            (0..self.links.len() as u32).filter(|index| self.links[*index as usize].is_right).collect();
        let link = |index: &u32| &self.links[*index as usize];
        // A copy with another number is no other export.
        order.sort_unstable_by_key(|index| (link(index).lane, link(index).previous, link(index).digest, *index));
        order.dedup_by_key(|index| (link(index).lane, link(index).previous, link(index).digest));
        order.sort_unstable_by_key(|index| (link(index).lane, link(index).previous, *index));
        let mut faults = Vec::new();
        for twins in order.chunk_by(|a, b| (link(a).lane, link(a).previous) == (link(b).lane, link(b).previous)) {
            let first = link(&twins[0]);
            for index in &twins[1..] {
                let Link { number, previous, .. } = link(index);
                faults.push((*index as usize, Fault::ForkedAt(previous.map_or(*number, |_| first.number))));
            }
        }
        faults
    }

    /// What is wrong between an export and the one that it follows.
    fn fault(&self, index: usize) -> Option<Fault> {
        let Link { number, lane, is_right, is_base, previous, .. } = self.links[index];
        if !is_right {
            return None;
        }
        let Some(previous) = previous else {
            // Nothing is missing: the service has begun to chain the lane's exports with this one. But nobody can begin with it.
            return (!is_base && !self.has_base_above(index)).then_some(Fault::GapBefore(number));
        };
        let mut followed = self.known(&previous).map(|index| &self.links[index]).peekable();
        if followed.peek().is_some() {
            // One in another lane, which a copy of the database goes on from, has numbers of its own.
            let is_above = |link: &Link| link.lane == lane && link.number >= number;
            let first = followed.next().map(|link| (link.number, is_above(link)));
            let (above, _) = first.filter(|(_, is_above)| *is_above)?;
            return followed.all(is_above).then_some(Fault::NotAbove(above));
        }
        match self.lower(index) {
            Some(lower) => Some(Fault::GapAfter(self.links[lower].number)),
            // What was before a full export nobody needs.
            None => (!is_base).then_some(Fault::GapBefore(number)),
        }
    }

    /// Of each export whether its files are needed: those from the newest full export of its lane on. Where a database was restored as a
    /// copy, its first export may build on those of the other one.
    fn required(&self) -> Vec<bool> {
        let (mut required, mut walked) = (vec![false; self.links.len()], vec![false; self.links.len()]);
        let mut begin = 0;
        for lane in self.links.chunk_by(|a, b| a.lane == b.lane) {
            let base = lane.iter().rposition(|link| link.is_base).unwrap_or(0);
            let base = lane.partition_point(|link| link.number < lane[base].number);
            required[begin + base..begin + lane.len()].fill(true);
            let mut next = Some(begin + lane.len() - 1);
            while let Some(index) = next.filter(|index| !walked[*index]) {
                (walked[index], required[index]) = (true, true);
                let link = &self.links[index];
                let followed = link.previous.and_then(|previous| self.known(&previous).next());
                next = followed.or_else(|| self.lower(index)).filter(|_| !link.is_base);
            }
            begin += lane.len();
        }
        required
    }
}

impl Judged {
    /// The index of a manifest's export; `None`: it wasn't there.
    pub fn find(&self, manifest: &Manifest) -> Option<usize> {
        let lane = *self.lanes.get(&lane_of(manifest))?;
        let digest = digest_of(&manifest.digest).or_else(|| digest_of(&manifest.export.digest()))?;
        self.links.binary_search_by_key(&(lane, manifest.number, digest), |l| (l.lane, l.number, l.digest)).ok()
    }

    /// How many exports there are.
    pub fn exports(&self) -> usize {
        self.links.len()
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> usize {
        self.links.chunk_by(|a, b| a.lane == b.lane).count()
    }

    /// What is left of a look when another one is taken.
    pub fn into_newest(self) -> Newest {
        let Judged { lanes, links, .. } = self;
        let mut newest: Vec<u64> = vec![0; lanes.len()];
        // They are in the order of their numbers.
        links.iter().for_each(|link| newest[link.lane as usize] = link.number);
        Newest(lanes.into_iter().map(|(lane, id)| (lane, newest[id as usize])).collect())
    }

    /// Whether a chain is broken.
    pub fn is_broken(&self) -> bool {
        !self.faults.is_empty()
    }

    /// What is wrong with the place of an export in its lane.
    pub fn faults(&self, index: usize) -> impl Iterator<Item = Fault> {
        let begin = self.faults.partition_point(|(of, _)| *of < index);
        self.faults[begin..].iter().take_while(move |(of, _)| *of == index).map(|(_, fault)| *fault)
    }

    /// Whether the files of an export are needed.
    pub fn is_required(&self, index: usize) -> bool {
        self.required[index]
    }

    /// Dataset, consumer and number of an export.
    pub fn describe(&self, index: usize) -> (&str, &str, u64) {
        let link = &self.links[index];
        let lane = self.lanes.iter().find(|(_, id)| **id == link.lane).map(|(lane, _)| lane);
        let lane = lane.expect("a link is one of a lane");
        (&lane.dataset, &lane.consumer, link.number)
    }
}

fn lane_of(manifest: &Manifest) -> Lane {
    let Source { cluster, database } = &manifest.export.source;
    Lane {
        source: (cluster.clone(), database.clone()),
        dataset: manifest.export.dataset.clone(),
        consumer: manifest.export.consumer.clone(),
    }
}

/// The bytes of a digest in lower-case hexadecimal.
fn digest_of(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    hex::decode_to_slice(text, &mut digest).ok().map(|()| digest)
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

    fn judged<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> Judged {
        let mut chains = Chains::default();
        manifests.into_iter().for_each(|manifest| chains.add(manifest, &manifest.export.digest()));
        chains.judge()
    }

    /// Consumer, number and fault of each.
    fn faults(judged: &Judged) -> Vec<(String, u64, Fault)> {
        let of = |index: usize| judged.faults(index).map(move |fault| (index, fault));
        let told = |(index, fault)| (judged.describe(index).1.to_owned(), judged.describe(index).2, fault);
        (0..judged.exports()).flat_map(of).map(told).collect()
    }

    /// The numbers of those exports of a consumer whose files are needed.
    fn required(judged: &Judged, consumer: &str) -> Vec<u64> {
        let of_consumer = |index: &usize| judged.is_required(*index) && judged.describe(*index).1 == consumer;
        (0..judged.exports()).filter(of_consumer).map(|index| judged.describe(index).2).collect()
    }

    fn fulls() -> impl Strategy<Value = Vec<bool>> {
        prop::collection::vec(prop::bool::weighted(0.3), 3..12).prop_map(|mut fulls| {
            fulls[0] = true;
            fulls
        })
    }

    proptest! {
        #[test]
        fn one_change_is_one_fault(lanes in prop::collection::vec(fulls(), 1..4), which: Index, at: Index, what in 0..7) {
            let names = ["a", "b", "c"];
            let mut all: Vec<Vec<Manifest>> =
                lanes.iter().zip(names).map(|(fulls, name)| lane("s", name, 1, fulls, None)).collect();
            let whole = judged(all.iter().rev().flat_map(|lane| lane.iter().rev()));
            prop_assert_eq!(faults(&whole), []);
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
        let mut chains = Chains::default();
        // The fourth is published during the second look, and the fifth is seen without it.
        let fifth = &lane("s", "a", 5, &[false], Some("00".repeat(32)))[0];
        [&all[0], &all[1], &all[2], &other[0], fifth].into_iter().for_each(|one| chains.add(one, &one.digest));
        chains.forget_newer_than(&earlier.into_newest());
        let judged = chains.judge();
        assert_eq!((faults(&judged), judged.exports()), (vec![], 3));
        assert!(judged.find(&all[2]).is_some() && judged.find(&all[3]).is_none() && judged.find(&other[0]).is_none());
    }
}
