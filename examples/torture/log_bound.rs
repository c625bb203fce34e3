//! Computes which positions the bound of the change log may have cost, from the recorder's own count of the writes.
//!
//! The service gives up positions if all tables together hold more than twice the bound. It does so in the table that
//! holds most. So each other table counts for at most as much as that table holds. Here a table holds all changes that
//! its oldest position hasn't seen. The estimate is too high, so a log within the bound here was never over it.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::era::{Export, ExportId};
use crate::lanes::LANES;
use crate::recorder::{History, Snapshot, Written};

/// `CHANGE_LOG_MAX_BYTES`. A backfill exceeds it; other changes between two exports of a lane mostly don't.
pub(crate) const MAX_BYTES: u64 = 150 << 10;

/// Bytes of a change in the log: 56 and the key, and a fifth more, since the service only estimates.
const ROW: u64 = 85;

/// Reasons of a refusal after the log has lost changes.
pub(crate) const LOG_LOST: [&str; 2] = ["log_expired", "deletes_expired"];

#[derive(Default)]
struct Log {
    xids: Vec<i64>,
    /// For each transaction, the bytes of all transactions up to it.
    sums: Vec<u64>,
}

impl Log {
    fn add(&mut self, written: &Written) {
        let sum = self.sums.last().copied().unwrap_or_default();
        self.xids.push(written.xid);
        self.sums.push(sum + ROW * written.rows.cast_unsigned());
    }

    fn before(&self, xid: i64) -> u64 {
        let many = self.xids.partition_point(|other| *other < xid);
        many.checked_sub(1).map_or(0, |last| self.sums[last])
    }

    fn seen(&self, by: &Snapshot) -> u64 {
        let in_progress: u64 = by.open.iter().map(|xid| self.before(xid + 1) - self.before(*xid)).sum();
        self.before(by.xmax) - in_progress
    }
}

#[derive(Clone, Copy)]
struct Mark {
    seen: u64,
    may_be_given_up: bool,
}

/// The position of a lane after its last committed export.
#[derive(Clone, Copy)]
struct Position {
    table: &'static str,
    live: Mark,
    /// State after the last export that included deletions.
    deletions: Mark,
}

/// Returns the exports refused because of the log, if the bound may have been the reason to give up their position.
pub(crate) fn given_up(exports: &[Export], history: &History, written: &[Written]) -> HashSet<ExportId> {
    let mut logs = BTreeMap::<&str, Log>::new();
    for written in written {
        logs.entry(&written.tbl).or_default().add(written);
    }
    let exports: HashMap<ExportId, &Export> = exports.iter().map(|export| (export.id(), export)).collect();
    let mut positions = BTreeMap::<&str, Position>::new();
    let mut explained = HashSet::new();
    for (at, step) in history.steps.iter().enumerate() {
        let Some(export) = exports.get(&step.export()) else { continue };
        let Some(lane) = LANES.iter().find(|lane| lane.name == step.lane) else { continue };
        let moves = ["completed", "skipped"].contains(&step.became.as_str());
        let lost = export.continuity.as_deref().filter(|word| step.became == "failed" && LOG_LOST.contains(word));
        if !moves && lost.is_none() {
            continue;
        }
        // A commit's own snapshot is that of its export; the snapshots of later steps show the changes after it. A
        // position holds more and more until a commit replaces it. So a check just before each such step is enough.
        let is_of_now = |became: &str| ["pending", "processing", "failed"].contains(&became);
        let now = history.steps[at..].iter().find(|step| is_of_now(&step.became));
        look(&mut positions, &logs, now.map(|step| &step.snapshot));
        if moves {
            let attempt = step.token_was.and_then(|token| history.attempts.get(&token));
            let seen = attempt.map_or(0, |attempt| logs.get(lane.dataset).map_or(0, |log| log.seen(&attempt.saw)));
            let new = Mark { seen, may_be_given_up: false };
            let position = positions.entry(lane.name);
            let position = position.or_insert(Position { table: lane.dataset, live: new, deletions: new });
            position.live = new;
            if export.export_type != "incremental" {
                position.deletions = new;
            }
        } else if let Some(position) = positions.get(lane.name) {
            let lost = if lost == Some("deletes_expired") { position.deletions } else { position.live };
            if lost.may_be_given_up {
                explained.insert(step.export());
            }
        }
    }
    explained
}

/// Marks the positions that may be given up if the log has all changes that `now` sees, or all changes ever.
fn look(positions: &mut BTreeMap<&str, Position>, logs: &BTreeMap<&str, Log>, now: Option<&Snapshot>) {
    let whole = |log: &Log| now.map_or_else(|| log.sums.last().copied().unwrap_or_default(), |now| log.seen(now));
    let sizes: BTreeMap<&str, u64> = logs.iter().map(|(table, log)| (*table, whole(log))).collect();
    let unseen = |table: &str, mark: &Mark| sizes.get(table).map_or(0, |size| size.saturating_sub(mark.seen));
    let mut held = BTreeMap::<&str, u64>::new();
    for position in positions.values() {
        let bytes = unseen(position.table, &position.live).max(unseen(position.table, &position.deletions));
        let held = held.entry(position.table).or_default();
        *held = bytes.max(*held);
    }
    for position in positions.values_mut() {
        let table = position.table;
        let others: u64 =
            held.iter().filter(|(other, _)| **other != table).map(|(_, bytes)| bytes.min(&held[table])).sum();
        for mark in [&mut position.live, &mut position.deletions] {
            mark.may_be_given_up |= unseen(table, mark) + others > 2 * MAX_BYTES;
        }
    }
}
