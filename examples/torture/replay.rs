//! Replays files like a consumer, and compares the result with the table's recorded versions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::era::Export;
use crate::recorder::{Row, Snapshot, Version, Versions};

/// From a job's claim to its commit. The export sees at least what `from` sees, and at most what `to` sees.
pub(crate) struct Window {
    pub(crate) from: Snapshot,
    pub(crate) to: Snapshot,
}

impl Window {
    /// Returns the states that a row may have had. A visible version makes all versions before it visible.
    fn possible<'v>(&self, versions: &'v [Version]) -> impl Iterator<Item = Option<&'v Arc<Row>>> + Clone {
        let seen = |snapshot: &Snapshot| versions.partition_point(|version| snapshot.sees(version.xid));
        let (first, last) = (seen(&self.from), seen(&self.to));
        (first..=last.max(first)).map(|seen| seen.checked_sub(1).and_then(|at| versions[at].row.as_ref()))
    }
}

#[derive(Default)]
pub(crate) struct Replica {
    pub(crate) rows: BTreeMap<i64, Arc<Row>>,
    /// The live rows that the consumer received since its last full export, and how often.
    sent: HashMap<(i64, Arc<Row>), usize>,
    header: Option<Vec<String>>,
}

impl Replica {
    /// Replays a file. Returns the mistakes in the file itself, and the keys of its rows. Mistakes are rows that are
    /// sent again, deletions with more than the key, a wrong count, and changed columns without notice.
    pub(crate) fn load(
        &mut self,
        file: &Path,
        export: &Export,
        versions: &Versions,
    ) -> Result<(Vec<String>, BTreeSet<i64>)> {
        let mut reader = csv::Reader::from_path(file)?;
        let mut header: Vec<String> = reader.headers()?.iter().map(str::to_owned).collect();
        if export.export_type == "delta" {
            ensure!(header.first().is_some_and(|first| first == "operation"), "its header is {header:?}");
            header.remove(0);
        }
        let key = header.iter().position(|column| column == "id").context("it has no column `id`")?;
        let is_full = export.export_type == "full";
        let mut wrong = Vec::new();
        if !is_full
            && export.schema_changed != Some(true)
            && self.header.as_ref().is_some_and(|before| *before != header)
        {
            wrong.push(format!("its columns are {header:?}, before {:?}, and it doesn't say so", self.header));
        }
        if is_full {
            self.rows.clear();
            self.sent.clear();
        }
        let (mut count, mut brought) = (0, BTreeSet::new());
        for record in reader.records() {
            let record = record?;
            count += 1;
            let mut fields = record.iter();
            let deletes = export.export_type == "delta" && fields.next() == Some("DELETE");
            let row: Arc<Row> = Arc::new(header.iter().cloned().zip(fields.map(str::to_owned)).collect());
            let id: i64 = row[&header[key]].parse().context("a key is a number")?;
            if deletes {
                self.rows.remove(&id);
                let told: Vec<_> =
                    row.iter().filter(|(name, value)| **name != header[key] && !value.is_empty()).collect();
                // A softly deleted row still exists, and the file has the whole row, with its flag.
                if !told.is_empty() && told.iter().all(|(_, value)| *value != "true") {
                    wrong.push(format!("the deletion of row {id} has more than its key: {told:?}"));
                }
                continue;
            }
            let often = self.sent.entry((id, Arc::clone(&row))).or_default();
            *often += 1;
            // A row that is written again unchanged, as by the first copy of a subscription, is another version.
            if *often > 1 && *often > times_written(versions, id, &row) {
                wrong.push(format!("sent again unchanged: {id} {row:?}"));
            }
            self.rows.insert(id, row);
            brought.insert(id);
        }
        if count != export.rows_exported {
            wrong.push(format!("{count} rows, {} recorded", export.rows_exported));
        }
        self.header = Some(header);
        Ok((wrong, brought))
    }

    /// Returns the rows that differ from the table at every moment of the window. If columns were added, dropped or
    /// renamed since a row was sent, the common ones must agree. In a row that was just sent, all columns must agree.
    pub(crate) fn compare(
        &self,
        versions: &Versions,
        window: &Window,
        brought: &BTreeSet<i64>,
        live_only: bool,
    ) -> Vec<String> {
        let mut wrong = Vec::new();
        for (id, versions) in versions {
            let ours = self.rows.get(id);
            let possible = window.possible(versions);
            let is_one = possible.clone().any(|theirs| match (ours, theirs) {
                (None, None) => true,
                // An incremental export sends no deletions: the row stays until a delta comes.
                (Some(_), None) => live_only,
                (Some(ours), Some(theirs)) => agree(ours, theirs, brought.contains(id)),
                (None, Some(_)) => false,
            });
            if !is_one {
                wrong.push(format!("row {id} is {ours:?}, and was one of {:?}", possible.collect::<Vec<_>>()));
            }
        }
        let unknown = self.rows.keys().filter(|id| !versions.contains_key(id));
        wrong.extend(unknown.map(|id| format!("row {id} never was in the table")));
        wrong
    }

    pub(crate) fn differences(&self, table: &BTreeMap<i64, Row>) -> Vec<i64> {
        let keys: BTreeSet<&i64> = self.rows.keys().chain(table.keys()).collect();
        let is_same = |id: &&i64| match (self.rows.get(id), table.get(id)) {
            (Some(ours), Some(theirs)) => agree(ours, theirs, false),
            _ => false,
        };
        keys.into_iter().filter(|id| !is_same(id)).copied().collect()
    }
}

fn times_written(versions: &Versions, id: i64, row: &Arc<Row>) -> usize {
    versions.get(&id).into_iter().flatten().filter(|version| version.row.as_ref() == Some(row)).count()
}

fn agree(ours: &Row, theirs: &Row, whole: bool) -> bool {
    let same = |(column, value): (&String, &String)| theirs.get(column).is_none_or(|other| other == value);
    if whole { ours == theirs } else { ours.iter().all(same) }
}
