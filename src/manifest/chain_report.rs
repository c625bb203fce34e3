//! Reports on the chains of a destination: gaps, forks, and the exports whose files are needed.
//!
//! `verify` follows the chains and then reads each manifest again. The report records the manifests of this second
//! reading, so that `verify` can list the ones that disappeared.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use crate::manifest::chain::{Chains, Digest, Link, parse_digest};

/// A defect in the chain of a lane, at one export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// The previous export is missing. The number is that of the newest existing export with a lower number.
    #[error("gap after {0}")]
    GapAfter(u64),
    /// The export is the first of its lane, neither it nor a later one is full, and so exports that it builds on are
    /// missing. The number is its own.
    #[error("gap before {0}")]
    GapBefore(u64),
    /// Another export of the lane follows the same one: the number is the smallest of those that follow it. Or the
    /// export follows none and is not the lane's first: the number is its own.
    #[error("forked at {0}")]
    ForkedAt(u64),
    /// The previous export has this number, which is not below the export's own number.
    #[error("changed (its number is not above {0}, which it follows)")]
    NotAbove(u64),
}

/// The chains of a destination and their faults.
#[derive(Debug)]
pub struct ChainReport {
    chains: Chains,
    faults: HashMap<Digest, Vec<ChainFault>>,
}

/// An export whose manifest was read again.
#[derive(Debug)]
pub struct Seen {
    pub is_required: bool,
    /// The faults of the export. Empty if its manifest was already seen.
    pub faults: Vec<ChainFault>,
}

impl ChainReport {
    /// Follows the chains and records their faults.
    pub fn new(mut chains: Chains) -> ChainReport {
        let numbers = numbers_of_lanes(&chains);
        let faults = faults(&chains, &numbers);
        mark_required(&mut chains, &numbers);
        ChainReport { chains, faults }
    }

    /// Returns true if no lane has a gap or a fork.
    pub fn is_whole(&self) -> bool {
        self.faults.is_empty()
    }

    /// Returns the chains, so that the caller can add more manifests.
    pub fn into_chains(self) -> Chains {
        self.chains
    }

    /// Marks the export whose content has this digest as seen. Returns `None` if the chains do not contain it.
    pub fn see(&self, digest: &str) -> Option<Seen> {
        let digest = parse_digest(digest)?;
        let link = self.chains.links.get(&digest)?;
        let faults = if link.is_seen.swap(true, Ordering::Relaxed) { None } else { self.faults.get(&digest) };
        Some(Seen { is_required: link.is_required, faults: faults.cloned().unwrap_or_default() })
    }

    /// Returns dataset, consumer and number of the exports that were not seen.
    pub fn not_seen(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        let links = self.chains.links.values().filter(|link| !link.is_seen.load(Ordering::Relaxed));
        links.map(|link| {
            let name = &self.chains.lanes[link.lane as usize].name;
            (&*name.dataset, &*name.consumer, link.number)
        })
    }

    pub fn exports(&self) -> usize {
        self.chains.links.len()
    }

    pub fn lanes(&self) -> usize {
        self.chains.lanes.len()
    }
}

/// The numbers of a lane's exports.
#[derive(Default)]
struct Numbers {
    sorted: Vec<u64>,
    /// The number of the newest full export.
    newest_base: Option<u64>,
}

/// Returns the numbers of each lane, in the order of the lanes.
fn numbers_of_lanes(chains: &Chains) -> Vec<Numbers> {
    let mut lanes: Vec<Numbers> = chains.lanes.iter().map(|_| Numbers::default()).collect();
    for link in chains.links.values() {
        let lane = &mut lanes[link.lane as usize];
        lane.sorted.push(link.number);
        lane.newest_base = lane.newest_base.max(Some(link.number).filter(|_| link.is_base));
    }
    lanes.iter_mut().for_each(|lane| lane.sorted.sort_unstable());
    lanes
}

/// Returns the faults of each export that has one. Ignores changed manifests, whose statements can't be trusted.
fn faults(chains: &Chains, numbers: &[Numbers]) -> HashMap<Digest, Vec<ChainFault>> {
    let mut faults = HashMap::<Digest, Vec<ChainFault>>::new();
    let successors = chains.successors().0;
    // The first export of a copied database follows an export of the original, in another lane. That is not a fork.
    for siblings in successors.chunk_by(|(_, a), (_, b)| (a.previous, a.lane) == (b.previous, b.lane)) {
        let (_, first) = siblings[0];
        let forked = match siblings {
            [_] => &[][..],
            // The first one is the beginning of the lane.
            [_, others @ ..] if first.previous.is_none() => others,
            all => all,
        };
        for (digest, link) in forked.iter().filter(|(_, link)| !link.is_first) {
            let at = if link.previous.is_some() { first.number } else { link.number };
            faults.entry(**digest).or_default().push(ChainFault::ForkedAt(at));
        }
    }
    for (digest, link) in successors {
        if let Some(fault) = gap(chains, link, &numbers[link.lane as usize]) {
            faults.entry(*digest).or_default().push(fault);
        }
    }
    faults
}

/// Returns the fault between an export and the previous one, if there is any.
fn gap(chains: &Chains, link: &Link, lane: &Numbers) -> Option<ChainFault> {
    let number = link.number;
    // A lane may begin with any export: the service had no manifests before it, or retention has removed them. A reader
    // needs a full export.
    let is_no_beginning = lane.newest_base < Some(number);
    let Some(previous) = link.previous else {
        return is_no_beginning.then_some(ChainFault::GapBefore(number));
    };
    if let Some(before) = chains.get(&previous) {
        // The numbers of different lanes can't be compared.
        let is_above = before.lane == link.lane && before.number >= number;
        return is_above.then_some(ChainFault::NotAbove(before.number));
    }
    let lower = &lane.sorted[..lane.sorted.partition_point(|other| *other < number)];
    match lower.last() {
        Some(lower) => Some(ChainFault::GapAfter(*lower)),
        None => is_no_beginning.then_some(ChainFault::GapBefore(number)),
    }
}

/// Marks the exports whose files are needed.
///
/// Those are the newest full export of each lane, all exports after it, and the exports that these build on. An export
/// builds on an older one or on another lane if the lane was forked, or if a copy of the database continued it.
fn mark_required(chains: &mut Chains, numbers: &[Numbers]) {
    for link in chains.links.values_mut() {
        link.is_required = Some(link.number) >= numbers[link.lane as usize].newest_base;
    }
    let is_open = |digest: &Digest| chains.get(digest).is_some_and(|link| !link.is_required);
    let deltas = chains.links.values().filter(|link| link.is_required && !link.is_base);
    let mut open: Vec<Digest> = deltas.filter_map(|link| link.previous).filter(is_open).collect();
    while let Some(digest) = open.pop() {
        let digest = chains.content_digest(&digest);
        let Some(link) = chains.links.get_mut(&digest).filter(|link| !link.is_required) else { continue };
        link.is_required = true;
        open.extend(link.previous.filter(|_| !link.is_base));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;
    use crate::manifest::{Chained, Manifest, ManifestJob, VERSION};

    /// Builds the exports of a lane, numbered from `first`. `fulls` has one element for each: true for a full export.
    fn lane(source: &str, consumer: &str, first: u64, fulls: &[bool], previous: Option<String>) -> Vec<Manifest> {
        let mut previous = previous;
        let export = |(full, number): (&bool, u64)| {
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
        fulls.iter().zip(first..).map(export).collect()
    }

    fn chains<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> Chains {
        let mut chains = Chains::default();
        manifests.into_iter().for_each(|manifest| chains.add(manifest, &manifest.export.digest()));
        chains
    }

    fn report<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> ChainReport {
        ChainReport::new(chains(manifests))
    }

    fn see(report: &ChainReport, manifest: &Manifest) -> Option<Seen> {
        report.see(&manifest.export.digest())
    }

    /// Returns the consumer, number and fault of each faulty export.
    fn faults(report: &ChainReport) -> Vec<(String, u64, ChainFault)> {
        let faults = report.faults.iter().flat_map(|(digest, faults)| faults.iter().map(move |fault| (digest, *fault)));
        let mut faults: Vec<_> = faults
            .map(|(digest, fault)| {
                let link = &report.chains.links[digest];
                (report.chains.lanes[link.lane as usize].name.consumer.clone(), link.number, fault)
            })
            .collect();
        faults.sort_by_key(|(consumer, number, _)| (consumer.clone(), *number));
        faults
    }

    /// Returns the numbers of a consumer's exports whose files are needed.
    fn required(report: &ChainReport, consumer: &str) -> Vec<u64> {
        let is_its = |link: &Link| report.chains.lanes[link.lane as usize].name.consumer == consumer;
        let links = report.chains.links.values().filter(|link| link.is_required && is_its(link));
        let mut numbers: Vec<_> = links.map(|link| link.number).collect();
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
        fn one_change_causes_at_most_one_fault(lanes in prop::collection::vec(fulls(), 1..4), which: Index, at: Index, what in 0..8) {
            let names = ["a", "b", "c"];
            let mut all: Vec<Vec<Manifest>> =
                lanes.iter().zip(names).map(|(fulls, name)| lane("s", name, 1, fulls, None)).collect();
            let whole = report(all.iter().rev().flat_map(|lane| lane.iter().rev()));
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
                    vec![(name, number + 1, ChainFault::GapAfter(number - 1))]
                }
                // A lane may begin with any export before a full one.
                1 => {
                    lane.remove(0);
                    if lane.iter().any(|manifest| manifest.export.is_base()) { vec![] } else { vec![(name, 2, ChainFault::GapBefore(2))] }
                }
                // No other manifest names the last one, so its absence can't be detected.
                2 => {
                    lane.pop();
                    vec![]
                }
                3 => {
                    let export = Chained { rows: "1".to_owned(), ..lane[middle].export.clone() };
                    lane.push(Manifest::new(number, export, Vec::new()));
                    vec![(name, number, ChainFault::ForkedAt(number)); 2]
                }
                // The digest reveals the change of a manifest. The chain continues through the changed manifest.
                4 => {
                    lane[middle].export.previous = None;
                    vec![]
                }
                5 => {
                    lane[middle].digest = "00".repeat(32);
                    vec![]
                }
                // Another export with the same number: the count is unchanged, and each number occurs once.
                6 => {
                    let export = Chained { rows: "1".to_owned(), ..lane[middle].export.clone() };
                    lane[middle] = Manifest::new(number, export, Vec::new());
                    vec![(name, number + 1, ChainFault::GapAfter(number))]
                }
                _ => {
                    lane[middle].number = 99;
                    vec![(name, number + 1, ChainFault::NotAbove(99))]
                }
            };
            prop_assert_eq!(faults(&report(all.iter().flatten())), expected);
        }
    }

    #[test]
    fn numbers_are_a_copys_own_and_a_copy_is_no_fork() {
        let mut renumbered = lane("s", "a", 1, &[true, false, false], None);
        let originals = renumbered.clone();
        renumbered.iter_mut().for_each(|manifest| manifest.number = manifest.number * 10 + 3);
        assert_eq!(faults(&report(&renumbered)), []);
        assert_eq!(faults(&report(renumbered.iter().chain(&originals))), []);
        assert_eq!(report(originals.iter().chain(&originals)).exports(), 3);
    }

    #[test]
    fn copy_of_the_database_continues_in_a_separate_lane() {
        let original = lane("s", "a", 1, &[true, true, false, false], None);
        let copy = lane("t", "a", 4, &[false, false], Some(original[2].digest.clone()));
        let both = report(original.iter().chain(&copy));
        assert_eq!(faults(&both), []);
        assert_eq!((both.lanes(), required(&both, "a")), (2, vec![2, 3, 4, 4, 5]));
        // The copy's lane has a gap if the export that it follows is missing.
        let alone = report(&copy);
        assert_eq!(faults(&alone), [("a".to_owned(), 4, ChainFault::GapBefore(4))]);
        // The copy builds on exports before the newest full one of the original.
        let full = lane("s", "a", 5, &[true], Some(original[3].digest.clone()));
        let more = report(original.iter().chain(&full).chain(&copy));
        assert_eq!((faults(&more), required(&more, "a")), (vec![], vec![2, 3, 4, 5, 5]));
        // A restored database reuses the numbers or continues to count.
        for first in [4, 5] {
            let mut again = lane("s", "a", first, &[false], Some(original[2].digest.clone()));
            again[0] = Manifest::new(
                first,
                Chained { job: ManifestJob::One("x".to_owned()), ..again[0].export.clone() },
                Vec::new(),
            );
            let found = faults(&report(original.iter().chain(&again)));
            // Both are named.
            assert_eq!(found, [4, first].map(|number| ("a".to_owned(), number, ChainFault::ForkedAt(4))));
        }
    }

    #[test]
    fn lane_without_a_full_export_at_its_start_is_whole_from_its_first_full_export() {
        // The service exported before it wrote manifests.
        let begun = lane("s", "a", 5, &[false, false], None);
        assert_eq!(faults(&report(&begun)), [("a".to_owned(), 5, ChainFault::GapBefore(5))]);
        let healed = lane("s", "a", 5, &[false, true, false], None);
        assert_eq!(faults(&report(&healed)), []);
        assert_eq!(required(&report(&healed), "a"), [6, 7]);
        // A lane that was restarted and names no previous export.
        let again = lane("s", "a", 8, &[true], None);
        assert_eq!(faults(&report(healed.iter().chain(&again))), [("a".to_owned(), 8, ChainFault::ForkedAt(8))]);
    }

    #[test]
    fn exports_newer_than_the_first_listing_are_left_out() {
        let all = lane("s", "a", 1, &[true, false, false, false], None);
        let other = lane("s", "b", 1, &[true], None);
        let first = report([&all[0], &all[2]]);
        assert_eq!(faults(&first), [("a".to_owned(), 3, ChainFault::GapAfter(1))]);
        assert!(!first.is_whole());
        // The service publishes the fourth export during the second listing, which contains the fifth and misses the
        // fourth.
        let fifth = &lane("s", "a", 5, &[false], Some("00".repeat(32)))[0];
        let mut chains = first.into_chains();
        [&all[0], &all[1], &all[2], &other[0], fifth].into_iter().for_each(|one| chains.add_missed(one, &one.digest));
        let report = ChainReport::new(chains);
        assert_eq!((faults(&report), report.exports()), (vec![], 3));
        assert!(
            see(&report, &all[2]).is_some() && see(&report, &all[3]).is_none() && see(&report, &other[0]).is_none()
        );
    }

    #[test]
    fn export_missing_from_the_second_reading_is_listed() {
        let all = lane("s", "a", 4, &[true, false, false], None);
        let broken = lane("s", "b", 1, &[true, false], None).split_off(1);
        let not_seen_of = |all: &[Manifest], seen: &[&Manifest]| {
            let report = report(all.iter().chain(&broken));
            let seen = seen.iter().filter(|manifest| see(&report, manifest).is_some()).count();
            let mut not_seen: Vec<_> =
                report.not_seen().map(|(_, consumer, number)| format!("{consumer} {number}")).collect();
            not_seen.sort();
            (seen, not_seen)
        };
        let not_seen = |seen: &[&Manifest]| not_seen_of(&all, seen);
        assert_eq!(not_seen(&[&all[0], &all[1], &all[2], &all[1], &broken[0]]), (5, vec![]));
        assert_eq!(not_seen(&[&all[0], &all[2]]), (2, vec!["a 5".to_owned(), "b 2".to_owned()]));
        // Another export with the same number and another digest.
        let export = Chained { rows: "1".to_owned(), ..all[1].export.clone() };
        let other = Manifest::new(5, export, Vec::new());
        assert_eq!(not_seen(&[&all[0], &other, &all[2], &broken[0]]), (3, vec!["a 5".to_owned()]));
        // A manifest that was changed before the chains were followed is seen like the others.
        let mut changed = all.clone();
        changed[2].digest = "00".repeat(32);
        assert_eq!(not_seen_of(&changed, &[&changed[0], &changed[1], &changed[2], &broken[0]]), (4, vec![]));
    }
}
