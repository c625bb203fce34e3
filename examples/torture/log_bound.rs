//! The bound of the change log, by the recorder's own count of what was written: which positions it may have cost.
//!
//! A position is given up where all tables together hold more than twice the bound, in the table that holds most. So of
//! every other table no more counts than that one holds. Here a table holds what its position that is furthest behind
//! hasn't seen, estimated too high: what isn't over the bound by this count, was never over it.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::era::{Export, ExportId};
use crate::lanes::LANES;
use crate::recorder::{History, Snapshot, Written};

/// `CHANGE_LOG_MAX_BYTES`: a backfill is over it, and what else is written between two exports of a lane mostly isn't.
pub(crate) const MAX_BYTES: u64 = 150 << 10;

/// A change has 56 bytes and its key in the log. With a fifth more, since the service estimates.
const ROW: u64 = 85;

/// The words of a refusal by what the log has lost.
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

/// A lane's position, from its last export that was committed.
#[derive(Clone, Copy)]
struct Position {
    table: &'static str,
    live: Mark,
    /// As the last export that told of deletions left it.
    deletions: Mark,
}

/// The exports that were refused because of the log, and whose position may have been given up because of the bound.
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
        // A commit's own snapshot is its export's, and others know of what came after it. A position that no commit
        // replaces holds more and more: it is enough to look just before each.
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

/// Notes which positions may be given up, if the log has what `now` sees of it, or all that was ever written.
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
