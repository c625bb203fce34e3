//! Reports on the chains of a destination: gaps, forks, and the exports whose files are needed.
//!
//! `verify` follows the chains and then reads each manifest again. The report records the manifests of this second
//! reading, so that `verify` can list the ones that disappeared.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use crate::chain::{Chains, Digest, Link, parse_digest};

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
    /// Another export of the lane that was requested earlier has this order, which is not below the export's own.
    #[error("order goes back (an export that was requested earlier has the order {0})")]
    OrderNotAbove(u64),
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
    for (digest, had) in order_faults(chains) {
        faults.entry(digest).or_default().push(ChainFault::OrderNotAbove(had));
    }
    faults
}

/// Returns each export whose order is not above that of an export that was requested before it, with this order.
///
/// A reader that goes by the order would load the exports that a restored database has forgotten last. A clock that was
/// set back is no fault: the export with the next order follows the one before it.
fn order_faults(chains: &Chains) -> Vec<(Digest, u64)> {
    let mut links: Vec<_> = chains.links.iter().filter(|(_, link)| link.is_intact && link.order > 0).collect();
    links.sort_unstable_by_key(|(digest, link)| (link.lane, link.order, *digest));
    let mut faults = Vec::new();
    for pair in links.windows(2) {
        let [(digest, lower), (other, upper)] = [pair[0], pair[1]];
        if lower.lane != upper.lane || upper.previous == Some(*digest) {
            continue;
        }
        if lower.requested > upper.requested {
            faults.push((*digest, upper.order));
        } else if lower.order == upper.order {
            faults.push((*other, lower.order));
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
    use super::*;
    use crate::manifest::tests::chained;
    use crate::{Chained, Manifest, ManifestJob, ManifestSource};

    /// Builds the exports of a lane, numbered from `first`. `fulls` has one element for each: true for a full export.
    fn lane(source: &str, consumer: &str, first: u64, fulls: &[bool], previous: Option<String>) -> Vec<Manifest> {
        let mut previous = previous;
        let export = |(full, number): (&bool, u64)| {
            let export = Chained {
                job: ManifestJob::One(format!("job {number} of {source}")),
                source: ManifestSource { cluster: source.to_owned(), database: "1".to_owned() },
                consumer: consumer.to_owned(),
                export_type: if *full { "full" } else { "delta" }.to_owned(),
                watermark_from: Some("2026-11-20T10:14:58Z".to_owned()),
                previous: previous.clone(),
                ..chained()
            };
            let manifest = Manifest::new(number, export, Vec::new());
            previous = Some(manifest.digest.clone());
            manifest
        };
        fulls.iter().zip(first..).map(export).collect()
    }

    /// Returns another export with the same number.
    fn another(manifest: &Manifest) -> Manifest {
        let export = Chained { rows: "1".to_owned(), ..manifest.export.clone() };
        Manifest::new(manifest.number, export, Vec::new())
    }

    fn report<'m>(manifests: impl IntoIterator<Item = &'m Manifest>) -> ChainReport {
        let mut chains = Chains::default();
        manifests.into_iter().for_each(|manifest| chains.add(manifest, &manifest.export.digest()));
        ChainReport::new(chains)
    }

    fn see(report: &ChainReport, manifest: &Manifest) -> Option<Seen> {
        report.see(&manifest.export.digest())
    }

    /// Returns the number and the fault of each faulty export.
    fn faults(report: &ChainReport) -> Vec<String> {
        let number = |digest| report.chains.links[digest].number;
        let faults = report.faults.iter().flat_map(|(digest, faults)| faults.iter().map(move |fault| (digest, fault)));
        let mut faults: Vec<_> = faults.map(|(digest, fault)| format!("{}: {fault}", number(digest))).collect();
        faults.sort();
        faults
    }

    /// Returns the numbers of the exports whose files are needed.
    fn required(report: &ChainReport) -> Vec<u64> {
        let links = report.chains.links.values().filter(|link| link.is_required);
        let mut numbers: Vec<_> = links.map(|link| link.number).collect();
        numbers.sort_unstable();
        numbers
    }

    #[test]
    fn one_change_causes_at_most_one_fault() {
        let whole = lane("s", "a", 1, &[true, false, true, false, false], None);
        assert_eq!(faults(&report(whole.iter().rev())), [""; 0]);
        assert_eq!(required(&report(&whole)), [3, 4, 5]);
        let other = lane("s", "b", 1, &[true, false], None);
        type Change = fn(&mut Vec<Manifest>);
        let changes: [(Change, &[&str]); 9] = [
            (|it| _ = it.remove(1), &["3: gap after 1"]),
            // A lane may begin with any export before a full one.
            (|it| _ = it.remove(0), &[]),
            (|it| _ = it.drain(..3), &["4: gap before 4"]),
            // No other manifest names the last one, so its absence can't be detected.
            (|it| _ = it.pop(), &[]),
            (|it| it.push(another(&it[1])), &["2: forked at 2"; 2]),
            // The digest reveals the change of a manifest. The chain continues through the changed manifest.
            (|it| it[1].export.previous = None, &[]),
            (|it| it[1].digest = "00".repeat(32), &[]),
            // The count is unchanged, and each number occurs once.
            (|it| it[1] = another(&it[1]), &["3: gap after 2"]),
            (|it| it[1].number = 99, &["3: changed (its number is not above 99, which it follows)"]),
        ];
        for (at, (change, expected)) in changes.into_iter().enumerate() {
            let mut changed = whole.clone();
            change(&mut changed);
            assert_eq!(faults(&report(changed.iter().chain(&other))), expected, "{at}");
        }
    }

    #[test]
    fn numbers_are_a_copys_own_and_a_copy_is_no_fork() {
        let mut renumbered = lane("s", "a", 1, &[true, false, false], None);
        let originals = renumbered.clone();
        renumbered.iter_mut().for_each(|manifest| manifest.number = manifest.number * 10 + 3);
        assert_eq!(faults(&report(&renumbered)), [""; 0]);
        assert_eq!(faults(&report(renumbered.iter().chain(&originals))), [""; 0]);
        assert_eq!(report(originals.iter().chain(&originals)).exports(), 3);
    }

    #[test]
    fn copy_of_the_database_continues_in_a_separate_lane() {
        let original = lane("s", "a", 1, &[true, true, false, false], None);
        let copy = lane("t", "a", 4, &[false, false], Some(original[2].digest.clone()));
        let both = report(original.iter().chain(&copy));
        assert_eq!(faults(&both), [""; 0]);
        assert_eq!((both.lanes(), required(&both)), (2, vec![2, 3, 4, 4, 5]));
        // The copy's lane has a gap if the export that it follows is missing.
        assert_eq!(faults(&report(&copy)), ["4: gap before 4"]);
        // The copy builds on exports before the newest full one of the original.
        let full = lane("s", "a", 5, &[true], Some(original[3].digest.clone()));
        let more = report(original.iter().chain(&full).chain(&copy));
        assert_eq!((faults(&more), required(&more)), (vec![], vec![2, 3, 4, 5, 5]));
        // A restored database reuses the numbers or continues to count. Both exports are named.
        for first in [4, 5] {
            let again = lane("s", "a", first, &[false], Some(original[2].digest.clone()));
            let found = faults(&report(original.iter().chain([&another(&again[0])])));
            assert_eq!(found, [4, first].map(|number| format!("{number}: forked at 4")));
        }
    }

    #[test]
    fn lane_without_a_full_export_at_its_start_is_whole_from_its_first_full_export() {
        // The service exported before it wrote manifests.
        assert_eq!(faults(&report(&lane("s", "a", 5, &[false, false], None))), ["5: gap before 5"]);
        let healed = lane("s", "a", 5, &[false, true, false], None);
        assert_eq!(faults(&report(&healed)), [""; 0]);
        assert_eq!(required(&report(&healed)), [6, 7]);
        // A lane that was restarted and names no previous export.
        let again = lane("s", "a", 8, &[true], None);
        assert_eq!(faults(&report(healed.iter().chain(&again))), ["8: forked at 8"]);
    }

    #[test]
    fn order_that_goes_back_is_a_fault_of_the_later_export() {
        // The orders, the hour of each request, and whether each follows the one before it.
        let exports = |orders: &[(u64, u8, bool)]| {
            let mut previous = Some("00".repeat(32));
            let export = |(order, hour, follows): &(u64, u8, bool)| {
                let export = Chained {
                    job: ManifestJob::One(format!("019a0000-00{hour:02}-7000-8000-{order:012}")),
                    export_type: if *follows { "delta" } else { "full" }.to_owned(),
                    previous: if *follows { previous.clone() } else { Some("00".repeat(32)) },
                    order: Some(order.to_string()),
                    ..chained()
                };
                let manifest = Manifest::new(*order, export, Vec::new());
                previous = Some(manifest.digest.clone());
                manifest
            };
            orders.iter().map(export).collect::<Vec<_>>()
        };
        let found = |orders| {
            let all = faults(&report(&exports(orders)));
            all.into_iter().filter(|fault| fault.contains("order goes back")).collect::<Vec<_>>()
        };
        let back = |number: u64, had: u64| {
            format!("{number}: order goes back (an export that was requested earlier has the order {had})")
        };
        assert_eq!(found(&[(1, 1, false), (2, 2, true), (4, 3, true), (7, 9, false)]), [""; 0]);
        // The clock was set back.
        assert_eq!(found(&[(1, 5, false), (2, 2, true), (4, 3, true)]), [""; 0]);
        // A restored database begins anew below what it has forgotten.
        assert_eq!(found(&[(5, 1, false), (6, 2, true), (7, 3, true), (4, 9, false)]), [back(4, 5)]);
        assert_eq!(found(&[(5, 1, false), (6, 2, true), (6, 9, false)]), [back(6, 6)]);
    }

    #[test]
    fn exports_newer_than_the_first_listing_are_left_out() {
        let all = lane("s", "a", 1, &[true, false, false, false], None);
        let other = lane("s", "b", 1, &[true], None);
        let first = report([&all[0], &all[2]]);
        assert_eq!((faults(&first), first.is_whole()), (vec!["3: gap after 1".to_owned()], false));
        // The service publishes the fourth export during the second listing, which contains the fifth and misses the
        // fourth.
        let fifth = &lane("s", "a", 5, &[false], Some("00".repeat(32)))[0];
        let mut chains = first.into_chains();
        [&all[0], &all[1], &all[2], &other[0], fifth].into_iter().for_each(|one| chains.add_missed(one, &one.digest));
        let report = ChainReport::new(chains);
        assert_eq!((faults(&report), report.exports()), (vec![], 3));
        assert_eq!([&all[2], &all[3], &other[0]].map(|one| see(&report, one).is_some()), [true, false, false]);
    }

    #[test]
    fn export_missing_from_the_second_reading_is_listed() {
        let all = lane("s", "a", 4, &[true, false, false], None);
        let broken = lane("s", "b", 1, &[true, false], None).remove(1);
        let mut changed = all.clone();
        changed[2].digest = "00".repeat(32);
        for (first, second, count, missing) in [
            (&all, &[&all[0], &all[1], &all[2], &all[1], &broken][..], 5, &[][..]),
            (&all, &[&all[0], &all[2]], 2, &["a 5", "b 2"]),
            // Another export with the same number and another digest.
            (&all, &[&all[0], &another(&all[1]), &all[2], &broken], 3, &["a 5"]),
            // A manifest that was changed before the chains were followed is seen like the others.
            (&changed, &[&changed[0], &changed[1], &changed[2], &broken], 4, &[]),
        ] {
            let report = report(first.iter().chain([&broken]));
            assert_eq!(second.iter().filter(|manifest| see(&report, manifest).is_some()).count(), count);
            let not_seen = report.not_seen().map(|(_, consumer, number)| format!("{consumer} {number}"));
            let mut not_seen: Vec<_> = not_seen.collect();
            not_seen.sort();
            assert_eq!(not_seen, missing);
        }
    }
}
