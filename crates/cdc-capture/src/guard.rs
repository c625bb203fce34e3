//! The guard of continuity: decides if the changes since a consumer's position are known exactly, and if not, why.
//!
//! [`VERDICT`] has the SQL of the guard, which every statement about a position shares. The rest of this module makes
//! the part of `watermarks.guard_state` that concerns columns. It shows changes of values that no trigger saw: another
//! column took over a name, the table was rewritten for another type, or a type was changed.
//!
//! The members of that state are objects and arrays. They have the numbers of `pg_attribute`, which stay when a column
//! is renamed, and which Postgres never uses again.

use std::collections::BTreeMap;

use serde_json::json;
use sqlx::PgConnection;

use crate::placed::by_table;
use crate::quote::relation;
use cdc_dataset::GuardState;
use pg_session::table_name::Table;

/// The evidence of a lane's destination about the database, and whether the lane had a position.
#[derive(Clone, Copy, Debug, Default, sqlx_macros::FromRow)]
pub struct LaneEvidence {
    /// True if the database has the last export of the lane that consumers may have. Then it has lost nothing that was
    /// handed out, also if it was recovered.
    pub confirms: bool,
    /// True if consumers may have an export of the lane that the database doesn't have, or that the position is older
    /// than. Then the database or its positions were restored.
    pub contradicts: bool,
    /// True if the export was requested before the database was restored or copied.
    pub is_restored: bool,
    /// True if the lane has a position, or had one that was removed.
    pub had_position: bool,
}

/// CTEs of the guard. The last one, `verdict`, has one row for each lane of the CTE `lanes`; its column `continuity`
/// has the reason why no export can go on from the lane's position.
///
/// They are materialized, so that Postgres computes each column once. Inlined, a statement takes six times as long to
/// plan as to run.
pub(crate) const VERDICT: &str = include_str!("guard/verdict.sql");

/// A column that is in a dataset's files, or that decides which rows and values the files have.
pub(crate) struct RememberedColumn<'a> {
    pub(crate) name: &'a str,
    pub(crate) number: i16,
    /// The `xmin` of its row of `pg_attribute`.
    pub(crate) version: &'a str,
    /// Its name in the files; `None`: they don't have it.
    pub(crate) name_in_files: Option<&'a str>,
}

/// Returns the state of a table's columns that a position remembers.
///
/// `width`: the number of columns that the table has ever had. `time`: the number of the column with the rows' times.
pub(crate) fn guard_state<'a>(
    columns: impl Iterator<Item = RememberedColumn<'a>>,
    parts: &BTreeMap<String, String>,
    width: i16,
    time: Option<i16>,
) -> GuardState {
    let (mut numbers, mut versions, mut files) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for column in columns {
        let number = column.number.to_string();
        numbers.insert(column.name, number.clone());
        versions.insert(number.clone(), column.version);
        if let Some(name) = column.name_in_files {
            files.insert(name, number);
        }
    }
    let mut state = GuardState::default();
    state.set("numbers", json!(numbers));
    state.set("versions", json!(versions));
    state.set("parts", json!(parts));
    state.set("sent", json!(files.values().collect::<Vec<_>>()));
    state.set("files", json!(files));
    state.set("width", width);
    state.set("time", time.unwrap_or(0));
    state
}

/// Reads, for each table, the parts that the values of these columns are made of: labels and attributes of types,
/// expressions of generated columns. Each part has a name, and a text that changes when the part changes.
pub(crate) async fn read_parts(
    conn: &mut PgConnection,
    tables: &[(&Table, Vec<i16>)],
) -> Result<Vec<BTreeMap<String, String>>, sqlx::Error> {
    // Postgres's own types don't change.
    if tables.iter().all(|(_, numbers)| numbers.is_empty()) {
        return Ok(tables.iter().map(|_| BTreeMap::new()).collect());
    }
    let columns = tables.iter().map(|(table, numbers)| json!({ "table": relation(table), "numbers": numbers }));
    let parts: Vec<(i64, String, String)> =
        sqlx::query_as(include_str!("guard/parts.sql")).bind(columns.collect::<Vec<_>>()).fetch_all(conn).await?;
    let of_tables = by_table(tables.len(), parts, |(place, ..)| *place).into_iter();
    Ok(of_tables.map(|parts| parts.into_iter().map(|(_, name, version)| (name, version)).collect()).collect())
}
