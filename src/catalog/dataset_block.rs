//! Reads the `[[dataset]]` blocks of the operator's file.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::block::{Block, DATASET, Names, OperatorFile};
use crate::duration;
use crate::job::FILE_BYTES;
use crate::schedule::timing;
use cdc_dataset::{Capture, Columns, Dataset, FileHeader, Masks, Operation, ParquetChoices, Unrepresentable};
use pg_rows::meta::MetaColumn;
use pg_session::table_name::Table;

/// The default of the overlap: the longest time that a transaction may take.
const OVERLAP: Duration = Duration::from_secs(5 * 60);

pub(super) fn read(file: &mut OperatorFile<'_>, names: &mut Names) -> Vec<Arc<Dataset>> {
    let mut datasets = Vec::new();
    file.each_block(DATASET, names, |block| datasets.extend(dataset(block).map(Arc::new)));
    datasets
}

fn dataset(block: &mut Block<'_, '_>) -> Option<Dataset> {
    let table = block.required("table", str::parse::<Table>);
    let key = column_names(block, "key");
    let columns = columns(block);
    let [created_at, deleted, filter] = ["created_at", "deleted", "filter"].map(|member| block.text(member));
    if created_at.is_some() && !block.has("updated_at") {
        block.wrong("created_at", "it is compared with updated_at, which is not given");
    }
    let options = options(block);
    refuse_mask(block, &options.masks, "created_at", created_at.as_ref());
    refuse_mask(block, &options.masks, "deleted", deleted.as_ref());
    let has_times = options.updated_at.is_some() && created_at.is_some();
    let by_times = block.is_second("operation", ["log", "timestamps"]);
    if by_times && !has_times {
        block.wrong("operation", "timestamps compares created_at with updated_at: name both");
    }
    let operation = if by_times { Operation::Timestamps } else { Operation::Log };
    let name = block.name.clone();
    let dataset = Dataset { name, table: table?, key, columns, created_at, deleted, filter, operation, ..options };
    if !block.has("operation") && dataset.is_like_users() {
        return Some(Dataset { operation: Operation::Timestamps, ..dataset });
    }
    Some(dataset)
}

/// Reads the members that a dataset and a pattern of tables have in common. The rest has its default.
pub(super) fn options(block: &mut Block<'_, '_>) -> Dataset {
    let updated_at = block.text("updated_at");
    let time_zone = time_zone(block);
    let capture = capture(block, updated_at.is_some());
    let parquet = ParquetChoices {
        numeric_texts: block.is_second("numeric", ["decimal", "text"]),
        uuid_texts: block.is_second("uuid", ["uuid", "text"]),
        time_texts: block.is_second("time", ["time", "text"]),
        lists: block.is_second("arrays", ["text", "list"]),
        unrepresentable: block.optional("unrepresentable", unrepresentable).unwrap_or_default(),
    };
    if parquet.lists && parquet.unrepresentable == Unrepresentable::Text {
        let why =
            "no lists beside unrepresentable = \"text\": an array of two dimensions is no list, and a list is no text";
        block.wrong("arrays", why);
    }
    let max_file_bytes = block.number("max_file_bytes", &FILE_BYTES);
    let skip_empty = block.flag("skip_empty", false);
    let fresh_within = fresh_within(block);
    let masks = Masks { rules: block.table("mask", str::parse).unwrap_or_default(), are_optional: false };
    refuse_mask(block, &masks, "updated_at", updated_at.as_ref());
    let header = header(block);
    let table = Table { schema: None, name: String::new() };
    let new = Dataset::new(String::new(), table);
    Dataset { updated_at, time_zone, capture, parquet, max_file_bytes, skip_empty, fresh_within, masks, header, ..new }
}

/// Reads the zone of the clock that writes `updated_at`.
fn time_zone(block: &mut Block<'_, '_>) -> Option<String> {
    if block.has("time_zone") && !block.has("updated_at") {
        block.wrong("time_zone", "it is the zone of updated_at, which is not given");
    }
    block.optional("time_zone", |name| timing::zone(name).map(|zone| zone.name().to_owned()))
}

/// Reads the age of a waiting change up to which a consumer is fresh.
pub(super) fn fresh_within(block: &mut Block<'_, '_>) -> Option<Duration> {
    block.optional("fresh_within", |text| duration::parse(text).ok_or("a time such as 5m or 1h is expected"))
}

/// Reads the names of the files' columns, and the columns beside the table's.
fn header(block: &mut Block<'_, '_>) -> FileHeader {
    let meta = block.list("meta", str::parse::<MetaColumn>).unwrap_or_default();
    if (1..meta.len()).any(|at| meta[..at].contains(&meta[at])) {
        block.wrong("meta", "a column is named twice");
    }
    FileHeader {
        renames: block.table("rename", FileHeader::column_name).unwrap_or_default(),
        renames_are_optional: false,
        operation: block.optional("operation_column", FileHeader::column_name),
        meta,
    }
}

/// Refuses a mask of the column that a member of the block names.
pub(super) fn refuse_mask(block: &mut Block<'_, '_>, masks: &Masks, member: &str, column: Option<&String>) {
    if let Some(name) = column.filter(|name| masks.rules.contains_key(*name)) {
        block.wrong("mask", format!("`{name}` is the column of {member}, which can't be masked"));
    }
}

fn unrepresentable(word: &str) -> Result<Unrepresentable, String> {
    match word {
        "fail" => Ok(Unrepresentable::Fail),
        "null" => Ok(Unrepresentable::Null),
        "text" => Ok(Unrepresentable::Text),
        other => Err(format!("`{other}` is none of fail, null and text")),
    }
}

/// Reads the columns of a file: all, those of `columns`, or all but those of `exclude`.
fn columns(block: &mut Block<'_, '_>) -> Columns {
    let (only, all_but) = (column_names(block, "columns"), column_names(block, "exclude"));
    if only.is_some() && all_but.is_some() {
        block.wrong("exclude", "columns says already which there are");
    }
    match (only, all_but) {
        (Some(only), _) => Columns::Only(only),
        (None, Some(all_but)) => Columns::AllBut(all_but),
        (None, None) => Columns::All,
    }
}

fn column_names(block: &mut Block<'_, '_>, member: &'static str) -> Option<Vec<String>> {
    let names = block.list(member, str::parse::<String>)?;
    if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
        block.wrong(member, "a column is named twice");
    }
    Some(names)
}

/// Reads how changes are found: `capture`, with its `overlap`.
fn capture(block: &mut Block<'_, '_>, has_updated_at: bool) -> Capture {
    let word = |word: &str| match word {
        "triggers" => Ok(Capture::Triggers),
        "timestamp" => Ok(Capture::Timestamp { overlap: OVERLAP }),
        "none" => Ok(Capture::None),
        other => Err(format!("`{other}` is none of triggers, timestamp and none")),
    };
    let capture = block.optional("capture", word).unwrap_or(Capture::Triggers);
    let read_time = |text: &str| duration::parse(text).ok_or("a time such as 5m or 1h is expected");
    let overlap = block.or_default("overlap", OVERLAP, read_time).unwrap_or(OVERLAP);
    match capture {
        Capture::Timestamp { .. } => {
            if !has_updated_at {
                block.wrong("capture", "by timestamp there is nothing to find changes by without updated_at");
            }
            Capture::Timestamp { overlap }
        }
        other => {
            if block.has("overlap") {
                block.wrong("overlap", "only with capture = \"timestamp\"");
            }
            for member in ["updated_at", "time_zone", "created_at", "operation", "operation_column", "skip_empty"] {
                if other == Capture::None && block.has(member) {
                    block.wrong(member, "capture = \"none\" finds no changes: leave it out");
                }
            }
            other
        }
    }
}
