//! The SQL of each export. [`RowLayout`] describes the rows that it returns.
//!
//! `select/statements.txt` has the statements of each case.
//!
//! Names come only from a [`Dataset`] and its [`TableSchema`], and [`quote`](crate::quote) quotes them. A
//! filter is the operator's own SQL. A statement with a filter is read under the role's own search_path, where other
//! roles may have functions. So every function names its schema, and so does every operator whose operands may be of
//! other types.
//!
//! The consumer's position is in the statements as constants, since COPY takes no parameters. The planner takes them
//! into account: it knows how much of the log lies behind the snapshot.
//!
//! In all statements `u` is a row of the table, and `ch` has the keys of the log that are looked up in the table.

use std::sync::LazyLock;

use crate::key::{KeySql, key_name};
use crate::quote::{literal, quoted, relation, timestamp};
use crate::row::{RowLayout, RowRequest};
use crate::value::{compared, in_zone_of, is_text, may_be_large, octets, refused, refused_of_row, wire_value};
use crate::watermark::Position;
use cdc_dataset::{Capture, CellMax, Dataset, RelationKind, TableColumn, TableSchema};
use pg_rows::column::ColumnType;
use pg_rows::export_type::ExportType;
use pg_rows::meta::MetaColumn;
use pg_session::table_name::Table;

/// The statements for a dataset whose table has this schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Select<'a> {
    pub(crate) dataset: &'a Dataset,
    pub(crate) schema: &'a TableSchema,
    /// The place of the export in its lane; `None`: it has none.
    pub(crate) order: Option<i64>,
    /// The oid of the table, for the statements of changes.
    pub(crate) table_oid: u32,
    /// The position of the consumer, for the statements of changes.
    pub(crate) position: &'a Position,
    /// The only partition to read. `None`: the whole table.
    pub(crate) leaf: Option<&'a Table>,
}

/// Pieces of SQL that several statements of changes have.
struct Pieces {
    table: String,
    alive: String,
    /// The condition that the timestamp rule finds a row.
    by_time: String,
    /// The columns of the key of a row, of an entry of the log, and of `ch`.
    key: String,
    logged_key: String,
    names: String,
    /// The columns of an entry of the log, their names, and the key of a row with nulls in place of the others.
    entry: String,
    entry_names: String,
    no_entry: String,
    /// The numbers of the key's columns.
    ordinals: String,
}

/// The position of a consumer that begins.
static FIRST: LazyLock<Position> = LazyLock::new(Position::default);

impl<'a> Select<'a> {
    /// The statements of no export in particular.
    pub(crate) fn new(dataset: &'a Dataset, schema: &'a TableSchema) -> Select<'a> {
        Select { dataset, schema, order: None, table_oid: 0, position: &FIRST, leaf: None }
    }
}

impl Select<'_> {
    /// Every live row, but for the column that is [known](TableSchema::known_if_alive). `max` is `None` where no cell
    /// can be too large: the comparison is a quarter of what the scan costs.
    pub(crate) fn full(&self, max: Option<CellMax>) -> String {
        let known = self.schema.known_if_alive().map(|known| known.index);
        let (table, columns, alive) = (self.table(), self.full_columns(known), self.alive());
        // Postgres asks first what costs less, so that a deleted row has no say.
        let within =
            max.map(|max| format!(" and not {}", refused_of_row(&self.schema.columns, max))).unwrap_or_default();
        format!("select {columns} from {table} u where {alive}{within}")
    }

    /// The live rows that changed since the position.
    pub(crate) fn incremental(&self, max: CellMax) -> String {
        self.changed_live(ExportType::Incremental, max)
    }

    /// The rows that changed since the position, deleted ones too, each with its operation: statements to be read one
    /// after the other, so that the deletions come first without a sort of everything.
    ///
    /// One statement, which goes through the log once, does for a consumer that takes deltas alone: its live rows and
    /// its deletions were delivered up to the same snapshot.
    pub(crate) fn delta(&self, max: CellMax) -> Vec<String> {
        let deleted = self.changed_deleted(max);
        let has_one_snapshot = self.position.live == self.position.deletions;
        if !self.has_snapshot() || !has_one_snapshot || self.reads_whole_log(ExportType::Delta) {
            return vec![deleted, self.changed_live(ExportType::Delta, max)];
        }
        // The parts of a union come in their order, as long as none of them is read in parallel. What the deletions
        // look up is all that the timestamp rule doesn't find alive.
        vec![format!("{deleted}\nunion all\n{}", self.live(&self.live_columns(ExportType::Delta, max)))]
    }

    /// The rows that the timestamp rule finds, and those that the log alone knows, which are looked up by their keys.
    /// Without a snapshot to compare the log with, the timestamp rule alone decides.
    fn changed_live(&self, export_type: ExportType, max: CellMax) -> String {
        let columns = self.live_columns(export_type, max);
        if !self.has_snapshot() {
            return self.shuffled(self.live_by_time(&columns));
        }
        let Pieces { table, alive, by_time, key, logged_key, names, entry, no_entry, ordinals, .. } = self.pieces();
        let logged = self.logged(&self.live_since());
        if self.reads_whole_log(export_type) {
            let hit = self.hit_by_deletions(export_type, &no_entry);
            let ch = self.grouped(
                (OP, "(pg_catalog.array_agg(operation order by sequence))[1]"),
                &format!(
                    "select {entry} from cdc_export.change_log where {logged}
                     union all
                     select {no_entry} from {table} u where {by_time} and {alive}
                     {hit}"
                ),
            );
            return format!("{ch}\n{}", self.shuffled(self.live_by_log(&columns)));
        }
        let hit = self.hit_by_deletions(export_type, &key);
        let missed = self.unless_found(
            &format!("select {logged_key} from cdc_export.change_log where {logged} {hit}"),
            &names,
            &format!("select {key}, true from {table} u where {by_time}"),
        );
        let live = self.live(&columns);
        format!(
            "with ch ({names}) as materialized (
               {missed}
               group by {ordinals}
               order by {ordinals})
             {live}"
        )
    }

    /// The deletions. Of a row that is gone, or outside of the filter, the consumer learns the key alone. Where there
    /// is a log, it alone tells deletions, and the times only those that somebody's own watermark asks for: rows that
    /// were soft-deleted before a full export have later times than its watermark. Of the keys in the log those are
    /// looked up that the timestamp rule doesn't find alive anyway.
    fn changed_deleted(&self, max: CellMax) -> String {
        let Pieces { table, alive, by_time, key, entry, entry_names, no_entry, .. } = self.pieces();
        let (since, columns, joined) = (self.deletions_since(), self.deleted_columns(max), self.key().joined());
        let missed = self.unless_found(
            &format!("select {entry} from cdc_export.change_log where {}", self.logged(&since)),
            &entry_names,
            // Without a log there is no key to be saved from a look-up.
            &format!("select {key}, true from {table} u where {by_time} and ({alive}) and {since} is not null"),
        );
        let (ended, ended_by_time) = (self.ended(), self.ended_by_time());
        let ch = self.grouped(
            (IS_TOLD, "pg_catalog.bool_or(operation = 'D')"),
            &format!(
                "{missed}
                 union all
                 select {no_entry} from {table} u where {ended_by_time} and ({ended})"
            ),
        );
        // A row that is gone and whose deletion isn't logged was deleted quietly.
        let rows = self.shuffled(format!(
            "select {columns} from ch left join {table} u on {joined}
             where case when {IS_GONE} then ch.{IS_TOLD} else ({alive}) is not true end"
        ));
        format!("{ch}\n{rows}")
    }

    /// The keys of a query of entries as `ch`, each with a column of this name and value, and with its transaction. The
    /// keys are looked up in their order, in which they are side by side in the index, and mostly in the table.
    fn grouped(&self, (name, value): (&str, &str), entries: &str) -> String {
        let Pieces { names, entry_names, ordinals, .. } = self.pieces();
        let (columns, values) = (self.with_xid(&[&names, name], XID), self.with_xid(&[&names, value], LATEST_XID));
        format!(
            "with ch ({columns}) as materialized (
               select {values}
               from (
                 {entries}) as changes ({entry_names})
               group by {ordinals}
               order by {ordinals})"
        )
    }

    /// The rows of a query of the log, with these columns, whose key is in no row of `found`. Both begin with the
    /// columns of the key. The last column of `found` is true.
    ///
    /// By a full join, for which Postgres hashes or sorts. An anti-join may compare each row with each: the statistics
    /// don't know yet what was written since they were made, so that the planner expects few. And an aggregate over
    /// both, in which a key of `found` takes itself out, takes two to three times as long.
    fn unless_found(&self, logged: &str, columns: &str, found: &str) -> String {
        let (names, are_same) = (self.key().names().join(", "), self.key().are_same("l", "f"));
        format!(
            "select l.* from ({logged}) as l ({columns})
             full join ({found}) as f ({names}, {IS_FOUND}) on {are_same}
             where f.{IS_FOUND} is not true"
        )
    }

    /// Adds the keys of live rows that are equal to a deletion of this delta by the key's type, and not by its text: a
    /// consumer whose own column is of that type deletes these rows with the deletion, so they are sent again. Only a
    /// consumer that took them by an incremental export has them already. `columns` are those of the union.
    fn hit_by_deletions(&self, export_type: ExportType, columns: &str) -> String {
        if export_type != ExportType::Delta || self.schema.key.iter().all(|part| part.has_one_text) {
            return String::new();
        }
        let Pieces { table, logged_key, names, .. } = self.pieces();
        let (logged, is_same) = (self.logged(&self.deletions_since()), self.key().is_same("d"));
        let same_texts = self.key().same_texts("d").join(" and ");
        format!(
            "union all
             select {columns}
             from (select distinct {logged_key} from cdc_export.change_log where {logged} and operation = 'D') as d ({names})
             join {table} u on {is_same} and not ({same_texts})"
        )
    }

    /// The live rows that the timestamp rule finds.
    fn live_by_time(&self, columns: &str) -> String {
        let Pieces { table, alive, by_time, .. } = self.pieces();
        format!("select {columns} from {table} u where {by_time} and {alive}")
    }

    /// The live rows that have a key of `ch`.
    fn live_by_log(&self, columns: &str) -> String {
        let (table, joined, alive) = (self.table(), self.key().joined(), self.alive());
        format!("select {columns} from ch join {table} u on {joined} where {alive}")
    }

    /// All live rows that changed. A row is in one of the two parts, since both see the same snapshot.
    fn live(&self, columns: &str) -> String {
        self.shuffled(format!("{}\nunion all\n{}", self.live_by_time(columns), self.live_by_log(columns)))
    }

    /// The rows of a query in a random order if a column of the key is masked: their order would tell its values.
    fn shuffled(&self, select: String) -> String {
        match self.schema.has_masked_key() {
            true => format!("(select * from (\n{select}) as changes order by pg_catalog.random())"),
            false => select,
        }
    }

    /// A statement that reads whatever an export of changes reads of the log, as the types that the key has now.
    pub(crate) fn logged_keys(&self) -> String {
        let (names, logged_key) = (self.key().names(), self.key().of_log());
        let (live, deleted) = (self.logged(&self.live_since()), self.logged(&self.deletions_since()));
        let nulls: Vec<_> = names.iter().map(|name| format!("pg_catalog.num_nulls({name})")).collect();
        format!(
            "select pg_catalog.count(array[{}])
             from (select {logged_key} from cdc_export.change_log where {live} or {deleted}) as ch ({})",
            nulls.join(", "),
            names.join(", ")
        )
    }

    /// A query that counts the keys which the log has since the position.
    pub(crate) fn count_changes(&self, export_type: ExportType) -> String {
        let since = if export_type == ExportType::Delta { self.deletions_since() } else { self.live_since() };
        let logged = self.logged(&since);
        format!(
            "select pg_catalog.count(*) from (select distinct key from cdc_export.change_log where {logged}) as changed"
        )
    }

    /// The layout of the rows that the statements of an export send.
    pub(crate) fn row_layout(&self, export: RowRequest<'_>) -> RowLayout {
        let schema = self.schema.narrowed(export.selection);
        let columns = schema.file_columns(export.export_type);
        let reads_all = export.export_type == ExportType::Full && export.selection.is_all();
        // By its number: the operation's column may have the name that it has in the table.
        let is_time =
            |column: &TableColumn| schema.updated_at.as_ref().is_some_and(|time| time.number == column.number);
        let hidden_time = schema.hidden_time().map(|_| columns.len());
        RowLayout {
            updated_at: hidden_time.or_else(|| columns.iter().position(is_time)),
            // The statements of changes and of a selection end with a field that refuses cells beyond the bound. It is
            // false.
            is_gone: (!reads_all).then(|| hidden_time.map_or(columns.len(), |index| index + 1)),
            known: self.schema.known_if_alive().filter(|_| reads_all),
            columns,
        }
    }

    /// The columns of a full export's file, and the hidden time. The column `known` isn't read.
    pub(crate) fn full_columns(&self, known: Option<usize>) -> String {
        let meta = self.meta("'READ'::text", None);
        [self.table_columns(known), meta, self.hidden_time()].concat().join(", ")
    }

    /// The columns of a live row: its operation in a delta, the columns of the file, and a check for cells beyond the
    /// bound. The check is no condition, because Postgres might evaluate a condition for rows that have not changed.
    fn live_columns(&self, export_type: ExportType, max: CellMax) -> String {
        let operation = self.operation();
        let xid = (self.has_snapshot() && self.reads_transactions()).then(|| format!("ch.{XID}"));
        let meta = self.meta(&operation, xid.as_deref());
        let first = if export_type == ExportType::Delta { vec![operation] } else { Vec::new() };
        let refused = vec![refused_of_row(&self.schema.columns, max)];
        [first, self.table_columns(None), meta, self.hidden_time(), refused].concat().join(", ")
    }

    /// The columns of a deletion: those of a live row, and the check also says if the row is gone.
    fn deleted_columns(&self, max: CellMax) -> String {
        let columns = &self.schema.columns;
        let written: Vec<_> = columns.iter().map(|column| self.last_of(column)).collect();
        let cells = columns.iter().zip(&written).filter(|(column, _)| may_be_large(column));
        let cells =
            cells.map(|(column, value)| (column.name.to_string(), format!("{} > {}", octets(column, value), max.0)));
        let refused = format!("{} or {IS_GONE}", refused(&cells.collect::<Vec<_>>()));
        let xid = self.reads_transactions().then(|| format!("ch.{XID}"));
        let meta = self.meta(DELETE, xid.as_deref());
        [vec![DELETE.to_owned()], written, meta, self.hidden_time(), vec![refused]].concat().join(", ")
    }

    /// The value of a column in a deletion.
    fn last_of(&self, column: &TableColumn) -> String {
        if let Some((i, part)) = self.schema.key.iter().enumerate().find(|(_, part)| part.column.name == column.name) {
            let key = format!("ch.{}", key_name(i));
            return match part.has_one_text {
                true => wire_value(column, &key),
                false if is_text(column) => key,
                false => wire_value(column, &format!("{key}::{}", part.read_as)),
            };
        }
        let live = live_value(column);
        let live = self.filter().map(|filter| format!("case when {filter} then {live} end")).unwrap_or(live);
        let deleted = self.schema.deleted.as_ref().filter(|deleted| deleted.name == column.name);
        match deleted {
            Some(_) if column.kind == ColumnType::Bool => format!("case when {IS_GONE} then true else {live} end"),
            // The other columns of a row that is gone are null, by the outer join.
            _ => live,
        }
    }

    /// The columns of the table that the file has, but for the column `known`.
    fn table_columns(&self, known: Option<usize>) -> Vec<String> {
        let columns = self.schema.columns.iter().enumerate().filter(|(at, _)| Some(*at) != known);
        columns.map(|(_, column)| live_value(column)).collect()
    }

    /// The columns of `meta` in a row with this operation and, if the log was asked for them, its transaction.
    fn meta(&self, operation: &str, xid: Option<&str>) -> Vec<String> {
        let value = |meta: &MetaColumn| match meta {
            MetaColumn::Order => self.order.map_or_else(|| "null::int8".to_owned(), |order| format!("{order}::int8")),
            MetaColumn::Xid => xid.map_or_else(|| "null::int8".to_owned(), |xid| format!("{xid}::text::int8")),
            MetaColumn::CommittedAt => xid.map_or_else(|| "null::timestamptz".to_owned(), committed_at),
            MetaColumn::Operation => operation.to_owned(),
        };
        self.schema.meta.iter().map(value).collect()
    }

    /// The hidden time, if there is one. It is a moment if the dataset names the column's time zone.
    fn hidden_time(&self) -> Vec<String> {
        let value = |time| match self.schema.time_zone {
            Some(_) => in_zone_of(time, self.schema, &compared(time)),
            None => live_value(time),
        };
        self.schema.hidden_time().map(value).into_iter().collect()
    }

    /// The operation on a live row.
    fn operation(&self) -> String {
        let (watermark, live_since) = (self.watermark(), self.live_since());
        let is_new = match (&self.schema.created_at, &self.schema.updated_at) {
            (Some(created_at), Some(updated_at)) => {
                format!("{} operator(pg_catalog.=) {}", compared(created_at), compared(updated_at))
            }
            // The first entry of the log decides. A consumer that begins gets every row as INSERT.
            _ if self.has_snapshot() => {
                format!("ch.{OP} = 'I' or ch.{OP} is null and {watermark} is null and {live_since} is null")
            }
            _ => format!("{watermark} is null"),
        };
        format!("case when {is_new} then 'INSERT'::text else 'UPDATE' end")
    }

    /// Returns true if every live row is looked up in the log: only the log tells new rows from changed ones, or the
    /// transactions.
    fn reads_whole_log(&self, export_type: ExportType) -> bool {
        let has_operation = export_type == ExportType::Delta || self.schema.meta.contains(&MetaColumn::Operation);
        has_operation && self.schema.created_at.is_none() || self.reads_transactions()
    }

    /// Returns true if the files have the transactions of the rows.
    fn reads_transactions(&self) -> bool {
        self.schema.meta.iter().any(|meta| matches!(meta, MetaColumn::Xid | MetaColumn::CommittedAt))
    }

    /// A list of columns, and `xid` behind them if the files have the transactions of the rows.
    fn with_xid(&self, columns: &[&str], xid: &str) -> String {
        let xid = if self.reads_transactions() { &[xid][..] } else { &[] };
        [columns, xid].concat().join(", ")
    }

    fn pieces(&self) -> Pieces {
        let (key, logged_key, names) = (self.key().of_row(), self.key().of_log(), self.key().names().join(", "));
        Pieces {
            table: self.table(),
            alive: self.alive(),
            by_time: self.changed_after(&self.watermark(), &self.less_overlap(&self.watermark())),
            entry: self.with_xid(&[&logged_key, "sequence", "operation"], "xid"),
            entry_names: self.with_xid(&[&names, "sequence", "operation"], "xid"),
            no_entry: self.with_xid(&[&key, "null", "null"], "null"),
            ordinals: self.key().ordinals(),
            key,
            logged_key,
            names,
        }
    }

    fn key(&self) -> KeySql<'_> {
        KeySql(&self.schema.key)
    }

    /// The table as FROM names it. Without the rows of tables that inherit from it, which may have the same keys,
    /// unless the dataset has no capture: then all rows that a `select` finds.
    pub(crate) fn table(&self) -> String {
        if let Some(leaf) = self.leaf {
            return format!("only {}", relation(leaf));
        }
        let table = relation(&self.schema.table);
        let has_own_rows = self.schema.relation == RelationKind::Table && self.dataset.capture != Capture::None;
        if has_own_rows { format!("only {table}") } else { table }
    }

    /// The operator's condition. It has to stand where no other table has a column that the condition may mean.
    fn filter(&self) -> Option<String> {
        self.dataset.filter.as_ref().map(|filter| format!("(\n{filter}\n)"))
    }

    /// The condition that a row is soft-deleted, or that it isn't. `None`: the dataset has no such column.
    pub(crate) fn deleted(&self, is: bool) -> Option<String> {
        let column = self.schema.deleted.as_ref()?;
        let test = match (column.kind == ColumnType::Bool, is) {
            (true, true) => "is true",
            (true, false) => "is not true",
            (false, true) => "is not null",
            (false, false) => "is null",
        };
        Some(format!("u.{} {test}", quoted(&column.name)))
    }

    /// The condition that a full export has a row.
    pub(crate) fn alive(&self) -> String {
        let conditions: Vec<_> = self.deleted(false).into_iter().chain(self.filter()).collect();
        if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") }
    }

    /// The condition that a row which the timestamp rule finds is a deletion. A row outside of the filter may have been
    /// inside before, but not for a consumer that begins; where there is a log, the log knows.
    fn ended(&self) -> String {
        let deleted = self.deleted(true).unwrap_or_else(|| "false".to_owned());
        let Some(filter) = self.filter() else { return deleted };
        let (watermark, live_since) = (self.watermark(), self.live_since());
        format!(
            "{filter} is true and {deleted} \
             or {filter} is not true and {watermark} is not null and {live_since} is null"
        )
    }

    /// The timestamp rule for deletions.
    fn ended_by_time(&self) -> String {
        let (watermark, deleted_since) = (self.watermark(), timestamp(self.position.deleted_since));
        if self.has_snapshot() {
            return self.changed_after(&deleted_since, &deleted_since);
        }
        // An incremental export moves the watermark past deletions that are still due.
        self.changed_after(&watermark, &self.less_overlap(&format!("least({watermark}, {deleted_since})")))
    }

    /// The timestamp rule: rows after `since`, or all rows for a consumer that begins. A row at infinity, or so far
    /// ahead that its time can't be a watermark, is above every one: such a row would come each time, and its changes
    /// are in the log. So it is with every row where there is a position and no watermark, since no exported row had a
    /// time that can be a watermark.
    fn changed_after(&self, watermark: &str, since: &str) -> String {
        let live_since = self.live_since();
        let begins = format!("{watermark} is null and {live_since} is null");
        let Some(column) = &self.schema.updated_at else { return format!("({begins})") };
        let in_zone = |moment| in_zone_of(column, self.schema, moment);
        let (time, since, bound) = (compared(column), in_zone(since), in_zone(LAST_TIME));
        format!(
            "({begins} or {time} operator(pg_catalog.>) {since}
               and ({time} operator(pg_catalog.<) {bound} or {live_since} is null))"
        )
    }

    /// The time from which rows are read for a watermark: earlier, where the dataset has an overlap.
    fn less_overlap(&self, time: &str) -> String {
        match self.dataset.capture {
            Capture::Timestamp { overlap } => format!("({time} - interval '{} microseconds')", overlap.as_micros()),
            Capture::Triggers | Capture::None => time.to_owned(),
        }
    }

    /// Returns true if there is a snapshot to compare the log with.
    fn has_snapshot(&self) -> bool {
        self.position.live.is_some()
    }

    /// The watermark. Null, together with [`Select::live_since`]: the consumer begins.
    fn watermark(&self) -> String {
        timestamp(self.position.since)
    }

    /// The snapshot up to which live rows were delivered. Null: the watermark alone decides.
    fn live_since(&self) -> String {
        snapshot(self.position.live.as_deref())
    }

    /// The snapshot up to which deletions were delivered. Null: the watermark alone decides.
    fn deletions_since(&self) -> String {
        snapshot(self.position.deletions.as_deref())
    }

    /// The condition that an entry of the log is one of this table which the snapshot has not seen.
    fn logged(&self, snapshot: &str) -> String {
        logged(&format!("'{}'::oid", self.table_oid), snapshot)
    }
}

/// The value of a column in a row of the table.
fn live_value(column: &TableColumn) -> String {
    wire_value(column, &format!("u.{}", quoted(&column.name)))
}

/// A snapshot as a constant.
fn snapshot(snapshot: Option<&str>) -> String {
    snapshot.map_or_else(|| "null::pg_snapshot".to_owned(), |snapshot| format!("{}::pg_snapshot", literal(snapshot)))
}

/// Names of the columns beside the key in the changes. Each has a space, so that no filter means it.
const OP: &str = "\"logged op\"";
const IS_FOUND: &str = "\"is found\"";
const IS_TOLD: &str = "\"logged deletion\"";
const XID: &str = "\"logged xid\"";

/// The condition that a key of `ch` has no row in the table. It tests no column of the key, of which one may be null.
const IS_GONE: &str = "u.tableoid is null";

/// Later times can't be a watermark.
pub(crate) const LAST_TIME: &str = "timestamptz '200000-01-01 00:00:00+00'";

const DELETE: &str = "'DELETE'::text";

/// The transaction of the latest entry of a group of the log. Entries of one key are in the order of its row's locks.
const LATEST_XID: &str = "(pg_catalog.array_agg(xid order by sequence desc nulls last))[1]";

/// The time at which a transaction of the log was committed; null if the server doesn't know it, or not any more.
///
/// The function takes only the lower half of an id, which comes again after four billion transactions.
fn committed_at(xid: &str) -> String {
    format!(
        "case when pg_catalog.current_setting('track_commit_timestamp')::bool
           and {xid}::text::int8 + 2000000000 > pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::text::int8
         then pg_catalog.pg_xact_commit_timestamp({xid}::xid) end"
    )
}

/// The condition that the change log has an entry of a table by a transaction that the snapshot could not see. Either
/// the transaction began after the snapshot, or it was in progress then: two ranges of an index. All entries since the
/// oldest transaction in progress may be many.
///
/// The transactions in progress are read from the snapshot's text, because a plan can take a constant array into
/// account, and not the rows of `pg_snapshot_xip`.
pub(crate) fn logged(table: &str, snapshot: &str) -> String {
    let in_progress = format!("pg_catalog.split_part({snapshot}::pg_catalog.text, ':', 3)");
    format!(
        "table_oid = {table} and key is not null and (xid >= pg_catalog.pg_snapshot_xmax({snapshot})
           or xid = any (pg_catalog.string_to_array({in_progress}, ',')::pg_catalog.xid8[]))"
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use cdc_dataset::MaskRule;
    use cdc_dataset::{Condition, Operator, Selection};
    use cdc_dataset::{KeyColumn, WireFormat};

    const MAX: CellMax = CellMax(8 << 20);

    fn column(name: &'static str, kind: ColumnType, base_type: &'static str) -> TableColumn {
        TableColumn { base_type: base_type.into(), ..TableColumn::named(name, kind) }
    }

    /// A table `users` with a column of these as its key.
    fn table(columns: Vec<TableColumn>, equals: &str, has_one_text: bool) -> TableSchema {
        let (equals, read_as) = (format!("operator({equals})"), columns[0].base_type.to_string());
        let collation = (!has_one_text).then(|| "pg_catalog.\"C\"".to_owned());
        TableSchema {
            table: Table { schema: Some("public".to_owned()), name: "users".to_owned() },
            key: vec![KeyColumn { column: columns[0].clone(), read_as, equals, collation, has_one_text }],
            columns,
            operation: column("operation", ColumnType::Text, "text"),
            meta: Vec::new(),
            updated_at: None,
            created_at: None,
            deleted: None,
            deleted_is_set: true,
            types: Default::default(),
            guard_state: Default::default(),
            is_filtered: false,
            time_zone: None,
            relation: RelationKind::Table,
            missing_masked: Vec::new(),
            newly_masked: Vec::new(),
        }
    }

    fn select<'a>(dataset: &'a Dataset, schema: &'a TableSchema, position: &'a Position) -> Select<'a> {
        Select { order: Some(3), table_oid: 16384, position, ..Select::new(dataset, schema) }
    }

    /// The statements of cases that differ in what decides the SQL.
    fn cases() -> Vec<(&'static str, Vec<String>)> {
        let (id, age) = (column("id", ColumnType::Int8, "int8"), column("age", ColumnType::Int4, "int4"));
        let time = |name| column(name, ColumnType::Timestamptz, "timestamptz");
        let plain = table(vec![id, age, time("updated_at")], "pg_catalog.=", true);
        let plain = TableSchema { updated_at: Some(time("updated_at")), ..plain };
        let (flag, created_at) = (Some(column("is_deleted", ColumnType::Bool, "bool")), Some(time("created_at")));
        let flagged = TableSchema { deleted: flag, created_at, is_filtered: true, ..plain.clone() };
        let updated_at = Some(column("at", ColumnType::Timestamp, "timestamp"));
        let mut masked = TableSchema { updated_at, deleted: Some(time("deleted_at")), ..plain.clone() };
        let local = TableSchema { time_zone: Some("America/New_York".to_owned()), ..masked.clone() };
        masked.key[0].column.mask = Some(MaskRule::Hmac);
        let email = column("email", ColumnType::Text, "public.citext");
        let email = TableColumn { wire_format: WireFormat::Written, ..email };
        let mut two_keys = table(vec![email], "public.=", false);
        two_keys.key.insert(0, plain.key[0].clone());
        two_keys.meta = vec![MetaColumn::Order, MetaColumn::Xid, MetaColumn::CommittedAt, MetaColumn::Operation];

        let users = Dataset::new("users".to_owned(), plain.table.clone());
        let filtered = Dataset { filter: Some("tenant = 7 -- ours".to_owned()), ..users.clone() };
        let capture = Capture::Timestamp { overlap: Duration::from_secs(60) };
        let by_time = Dataset { capture, ..filtered.clone() };
        let [june, july] = ["2026-06-01T00:00:00Z", "2026-07-01T00:00:00Z"].map(|time| time.parse().ok());
        let (first, snapshot) = (Position::default(), Some("90:95:90,92".to_owned()));
        let times = Position { since: july, deleted_since: june, ..first.clone() };
        let same = Position { live: snapshot.clone(), deletions: snapshot, since: july, ..first.clone() };
        let behind =
            Position { deletions: Some("70:70:".to_owned()), since: None, deleted_since: june, ..same.clone() };

        let incremental = |dataset, schema, of| vec![select(dataset, schema, of).incremental(MAX)];
        let delta = |dataset, schema, of| select(dataset, schema, of).delta(MAX);
        let condition = |operator, value: &str| Condition { column: "age".into(), operator, value: value.into() };
        let filter = vec![condition(Operator::In, r#"["7", "8"]"#), condition(Operator::IsNull, "false")];
        let selection = Selection { columns: Some(vec!["id".to_owned()]), filter, limit: Some(10) };
        vec![
            ("full", vec![select(&users, &plain, &first).full(None)]),
            ("full, filter, soft deletes, bound", vec![select(&filtered, &flagged, &first).full(Some(MAX))]),
            ("full, meta", vec![select(&users, &two_keys, &first).full(None)]),
            ("selection", vec![select(&users, &plain, &first).selected(&selection, MAX)]),
            ("incremental, first", incremental(&users, &plain, &first)),
            ("incremental, by times, filter", incremental(&by_time, &flagged, &times)),
            ("incremental", incremental(&users, &plain, &same)),
            ("incremental, key of two columns, one with several texts, meta", incremental(&users, &two_keys, &same)),
            ("delta, by times, filter", delta(&by_time, &flagged, &times)),
            ("delta", delta(&users, &plain, &behind)),
            ("delta, operation by times, filter, soft deletes", delta(&filtered, &flagged, &same)),
            ("delta, masked key, hidden time without a zone", delta(&users, &masked, &same)),
            ("incremental, by times of a zone", incremental(&by_time, &local, &times)),
            ("delta, key of two columns, one with several texts, meta", delta(&users, &two_keys, &behind)),
            ("keys of the log", vec![select(&users, &two_keys, &behind).logged_keys()]),
            ("count of changes", vec![select(&users, &plain, &behind).count_changes(ExportType::Delta)]),
        ]
    }

    /// A statement with a line for each clause, indented by its parentheses. Keeps the ends of comments.
    fn readable(statement: &str) -> String {
        let (mut text, mut depth) = (String::new(), 0);
        for line in statement.lines() {
            for word in line.split_whitespace() {
                let is_clause = ["select", "from", "full", "left", "join", "where", "union", "group"].contains(&word);
                let begins = is_clause && !text.ends_with("full ") && !text.ends_with("left ");
                let is_part = ["and", "or", "when", "as", "on"].contains(&word) || text.ends_with(", ");
                let width = text.len() - text.rfind('\n').unwrap_or(0);
                if begins || is_part && width + word.len() > 122 {
                    text = format!("{}\n{}", text.trim_end(), "  ".repeat(depth + usize::from(!begins)));
                }
                text += &format!("{word} ");
                depth = depth + word.matches('(').count() - word.matches(')').count();
            }
            if line.contains("--") {
                text = format!("{}\n", text.trim_end());
            }
        }
        text.trim().to_owned()
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "no setting of the service")]
    fn statements_are_those_in_the_file() {
        let block = |(title, statements): (&str, Vec<String>)| {
            let statements: Vec<_> = statements.iter().map(|statement| readable(statement)).collect();
            format!("== {title}\n\n{}\n", statements.join("\n\n"))
        };
        let statements = cases().into_iter().map(block).collect::<Vec<_>>().join("\n");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/select/statements.txt");
        if std::env::var_os("RENEW_STATEMENTS").is_some() {
            std::fs::write(&file, &statements).unwrap();
        }
        let is_kept = std::fs::read_to_string(file).unwrap() == statements;
        assert!(is_kept, "the SQL has changed: look at what RENEW_STATEMENTS=1 makes of select/statements.txt");
    }
}
