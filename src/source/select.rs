//! The SQL of each export. [`RowLayout`] describes the rows that it returns.
//!
//! Names come only from a [`Dataset`] and its [`TableSchema`], and [`quote`](crate::source::quote) quotes them. A
//! filter is the operator's own SQL. A statement with a filter is read under the role's own search_path, where other
//! roles may have functions. So every function names its schema, and so does every operator whose operands may be of
//! other types.
//!
//! The consumer's position is in the statements as constants, since COPY takes no parameters. The planner takes them
//! into account: it knows how much of the log lies behind the snapshot.
//!
//! An incremental export by the log, for a key `id` and an `updated_at`, with the columns of the file left out:
//!
//! ```sql
//! with ch ("logged key 1") as materialized (
//!   -- Keys of the log, without those of rows that the timestamp rule finds.
//!   select l.* from (select key::int8 from cdc_export.change_log where <logged since then>) as l ("logged key 1")
//!   full join (select u."id"::int8, true from only "public"."users" u where <timestamp rule>)
//!     as f ("logged key 1", "is found")
//!     on l."logged key 1" operator(pg_catalog.=) f."logged key 1"
//!   where f."is found" is not true
//!   group by 1 order by 1)
//! select <columns> from only "public"."users" u where <timestamp rule> and <alive>
//! union all
//! select <columns> from ch join only "public"."users" u on u."id"::int8 operator(pg_catalog.=) ch."logged key 1"
//! where <alive>
//! ```

use crate::dataset::{Capture, CellMax, Dataset, RelationKind, Table, TableColumn, TableSchema};
use crate::job::columns::MetaColumn;
use crate::job::{Export, ExportType};
use crate::row::RowLayout;
use crate::source::key::{KeySql, key_name};
use crate::source::quote::{literal, quoted, relation, timestamp};
use crate::source::value::{
    compared, in_zone_of, is_text, may_be_large, octets, operator, refused, refused_of_row, wire_value,
};
use crate::watermark::Position;
use pg_rows::column::ColumnType;

/// The rule by which a live row counts as changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The row's time is after the watermark: there is no snapshot to compare the log with.
    TimeAlone,
    /// The row's time is after the watermark, or the log has its key.
    LogToo,
}

/// The statements for a dataset whose table has this schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Select<'a> {
    pub(crate) dataset: &'a Dataset,
    pub(crate) schema: &'a TableSchema,
    /// The place of the export in its lane; `None`: it has none.
    pub(crate) order: Option<i64>,
    /// The oid of the table and the position of the consumer, for the statements of changes.
    pub(crate) since: Option<(u32, &'a Position)>,
    /// The only partition to read. `None`: the whole table.
    pub(crate) leaf: Option<&'a Table>,
}

impl<'a> Select<'a> {
    /// The statements of no export in particular.
    pub(crate) fn new(dataset: &'a Dataset, schema: &'a TableSchema) -> Select<'a> {
        Select { dataset, schema, order: None, since: None, leaf: None }
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
    pub(crate) fn incremental(&self, rule: Rule, max: CellMax) -> String {
        self.changed_live(rule, ExportType::Incremental, max)
    }

    /// The rows that changed since the position, deleted ones too, each with its operation: statements to be read one
    /// after the other, so that the deletions come first without a sort of everything. `same_snapshot`: live rows and
    /// deletions were delivered up to the same snapshot, as they are to a consumer that takes deltas alone. One
    /// statement, which goes through the log once, does then.
    pub(crate) fn delta(&self, rule: Rule, same_snapshot: bool, max: CellMax) -> Vec<String> {
        let deleted = self.changed_deleted(rule, max);
        if rule == Rule::TimeAlone || !same_snapshot || self.reads_whole_log(ExportType::Delta) {
            return vec![deleted, self.changed_live(rule, ExportType::Delta, max)];
        }
        // The parts of a union come in their order, as long as none of them is read in parallel. What the deletions
        // look up is all that the timestamp rule doesn't find alive.
        let columns = self.live_columns(rule, ExportType::Delta, max);
        vec![format!("{deleted}\nunion all\n{}", self.live(&columns))]
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

    /// The operation on a live row.
    fn operation(&self, rule: Rule) -> String {
        let by_times = self.schema.created_at.as_ref().zip(self.schema.updated_at.as_ref());
        let is_new = match (by_times, rule) {
            (Some((created_at, updated_at)), _) => {
                format!("{} {} {}", compared(created_at), operator("pg_catalog", "="), compared(updated_at))
            }
            // The first entry of the log decides. A consumer that begins gets every row as INSERT.
            (None, Rule::LogToo) => {
                format!(
                    "ch.{OP} = 'I' or ch.{OP} is null and {} is null and {} is null",
                    self.watermark(),
                    self.live_since()
                )
            }
            (None, Rule::TimeAlone) => format!("{} is null", self.watermark()),
        };
        format!("case when {is_new} then 'INSERT'::text else 'UPDATE' end")
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

    /// The columns of a live row: its operation in a delta, the columns of the file, and a check for cells beyond the
    /// bound. The check is no condition, because Postgres might evaluate a condition for rows that have not changed.
    fn live_columns(&self, rule: Rule, export_type: ExportType, max: CellMax) -> String {
        let operation = self.operation(rule);
        let xid = (rule == Rule::LogToo && self.reads_transactions()).then(|| format!("ch.{XID}"));
        let first = Some(&operation).filter(|_| export_type == ExportType::Delta).cloned();
        let columns = first.into_iter().chain(self.table_columns(None)).chain(self.meta(&operation, xid.as_deref()));
        let columns = columns.chain(self.hidden_time()).chain([refused_of_row(&self.schema.columns, max)]);
        columns.collect::<Vec<_>>().join(", ")
    }

    /// The live rows that the timestamp rule finds.
    fn live_by_time(&self, columns: &str) -> String {
        let (table, by_rule, alive) = (self.table(), self.timestamp_rule(), self.alive());
        format!("select {columns} from {table} u where {by_rule} and {alive}")
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

    /// The rows that the timestamp rule finds, and those that the log alone knows, which are looked up by their keys.
    fn changed_live(&self, rule: Rule, export_type: ExportType, max: CellMax) -> String {
        let columns = self.live_columns(rule, export_type, max);
        if rule == Rule::TimeAlone {
            return self.shuffled(self.live_by_time(&columns));
        }
        let (table, alive, by_rule) = (self.table(), self.alive(), self.timestamp_rule());
        let (logged, ordinals) = (self.logged(&self.live_since()), self.key().ordinals());
        let (logged_key, key, names) =
            (self.key().of_log().join(", "), self.key().of_row("u").join(", "), self.key().names().join(", "));
        let hit = |rest: &str| match export_type {
            ExportType::Delta if self.schema.key.iter().any(|part| !part.has_one_text) => self.hit_by_deletions(rest),
            _ => String::new(),
        };
        if self.reads_whole_log(export_type) {
            let LoggedXid { column, null, latest, name } = self.logged_xid();
            let hit = hit(&format!(", null, null{null}"));
            let by_log = self.shuffled(self.live_by_log(&columns));
            return format!(
                "with ch ({names}, {OP}{name}) as materialized (
                   select {names}, (pg_catalog.array_agg(operation order by sequence))[1]{latest}
                   from (
                     select {logged_key}, sequence, operation{column} from cdc_export.change_log where {logged}
                     union all
                     select {key}, null, null{null} from {table} u where {by_rule} and {alive}
                     {hit}) as changes ({names}, sequence, operation{column})
                   group by {ordinals}
                   order by {ordinals})
                 {by_log}"
            );
        }
        let changed = format!("select {logged_key} from cdc_export.change_log where {logged} {}", hit(""));
        let missed = self.unless_found(&changed, "", &format!("select {key}, true from {table} u where {by_rule}"));
        let live = self.live(&columns);
        format!(
            "with ch ({names}) as materialized (
               {missed}
               group by {ordinals}
               order by {ordinals})
             {live}"
        )
    }

    /// The rows of a query of the log whose key is in no row of `found`. Both begin with the columns of the key; of the
    /// first one `rest` are the others, of the second one the last is true.
    ///
    /// By a full join, for which Postgres hashes or sorts. An anti-join may compare each row with each: the statistics
    /// don't know yet what was written since they were made, so that the planner expects few. And an aggregate over
    /// both, in which a key of `found` takes itself out, takes two to three times as long.
    fn unless_found(&self, logged: &str, rest: &str, found: &str) -> String {
        let (names, on) = (self.key().names().join(", "), self.key().are_same("l", "f"));
        format!(
            "select l.* from ({logged}) as l ({names}{rest})
             full join ({found}) as f ({names}, {IS_FOUND}) on {on}
             where f.{IS_FOUND} is not true"
        )
    }

    /// The keys of live rows that are equal to a deletion of this delta by the key's type, and not by its text: a
    /// consumer whose own column is of that type deletes these rows with the deletion, so they are sent again. Only a
    /// consumer that took them by an incremental export has them already.
    fn hit_by_deletions(&self, rest: &str) -> String {
        let (key, names, logged_key) =
            (self.key().of_row("u").join(", "), self.key().names().join(", "), self.key().of_log().join(", "));
        let (table, logged, same) = (self.table(), self.logged(&self.deletions_since()), self.key().is_same("d"));
        format!(
            "union all
             select {key}{rest}
             from (select distinct {logged_key} from cdc_export.change_log where {logged} and operation = 'D') as d ({names})
             join {table} u on {same} and not ({})",
            self.key().same_texts("d").join(" and ")
        )
    }

    /// The deletions. Of a row that is gone, or outside of the filter, the consumer learns the key alone. Where there
    /// is a log, it alone tells deletions, and the times only those that somebody's own watermark asks for: rows that
    /// were soft-deleted before a full export have later times than its watermark. Of the keys in the log those are
    /// looked up that the timestamp rule doesn't find alive anyway.
    fn changed_deleted(&self, rule: Rule, max: CellMax) -> String {
        let (table, alive, by_rule, ended) = (self.table(), self.alive(), self.timestamp_rule(), self.ended());
        let ended_by_rule = match rule {
            // An incremental export moves the watermark past deletions that are still due.
            Rule::TimeAlone => {
                let watermark = self.watermark();
                let since = self.less_overlap(&format!("least({watermark}, {})", self.deleted_since()));
                self.timestamp_rule_since(&watermark, &since, &self.live_since())
            }
            Rule::LogToo => {
                let deleted_since = self.deleted_since();
                self.timestamp_rule_since(&deleted_since, &deleted_since, &self.live_since())
            }
        };
        let (logged, ordinals, joined) =
            (self.logged(&self.deletions_since()), self.key().ordinals(), self.key().joined());
        let (logged_key, key, names) =
            (self.key().of_log().join(", "), self.key().of_row("u").join(", "), self.key().names().join(", "));
        // Not by its key, of which one of several fields may be null.
        let gone = "u.tableoid is null";
        let written: Vec<(&str, String)> =
            self.schema.columns.iter().map(|column| (&*column.name, self.last_of(column, gone))).collect();
        let hidden = self.hidden_time();
        let cells = written.iter().zip(&self.schema.columns).filter(|(_, column)| may_be_large(column));
        let large = |((name, value), column): (&(&str, String), &TableColumn)| {
            (name.to_string(), format!("{} > {}", octets(column, value), max.0))
        };
        let refused = refused(&cells.map(large).collect::<Vec<_>>());
        let LoggedXid { column, latest: latest_xid, name: xid_name, .. } = self.logged_xid();
        let rest = format!("{LOGGED}{column}");
        let (nulls, xid) = (", null".repeat(rest.matches(',').count()), Some(format!("ch.{XID}")));
        let xid = xid.filter(|_| self.reads_transactions());
        let columns =
            written.iter().map(|(_, value)| value.clone()).chain(self.meta(DELETE, xid.as_deref())).chain(hidden);
        let columns = columns.collect::<Vec<_>>().join(", ");
        let missed = self.unless_found(
            &format!("select {logged_key}{rest} from cdc_export.change_log where {logged}"),
            &rest,
            // Without a log there is no key to be saved from a look-up.
            &format!(
                "select {key}, true from {table} u where {by_rule} and ({alive}) and {} is not null",
                self.deletions_since()
            ),
        );
        // A row that is gone and whose deletion isn't logged was deleted quietly.
        let rows = self.shuffled(format!(
            "select {DELETE}, {columns}, {refused} or {gone}
             from ch left join {table} u on {joined}
             where case when {gone} then ch.{IS_TOLD} else ({alive}) is not true end"
        ));
        // The keys are looked up in their order, in which they are side by side in the index, and mostly in the table.
        format!(
            "with ch ({names}, {IS_TOLD}{xid_name}) as materialized (
               select {names}, pg_catalog.bool_or(operation = 'D'){latest_xid}
               from (
                 {missed}
                 union all
                 select {key}{nulls} from {table} u where {ended_by_rule} and ({ended}))
                 as changes ({names}{rest})
               group by {ordinals}
               order by {ordinals})
             {rows}"
        )
    }

    /// Returns the value of a column in a deletion.
    fn last_of(&self, column: &TableColumn, gone: &str) -> String {
        let live = wire_value(column, &format!("u.{}", quoted(&column.name)));
        if let Some((i, part)) = self.schema.key.iter().enumerate().find(|(_, part)| part.column.name == column.name) {
            let key = format!("ch.{}", key_name(i));
            return match part.has_one_text {
                true => wire_value(column, &key),
                false if is_text(column) => key,
                false => wire_value(column, &format!("{key}::{}", part.read_as)),
            };
        }
        let live = self.filter().map(|filter| format!("case when {filter} then {live} end")).unwrap_or(live);
        let is_flag =
            column.kind == ColumnType::Bool && self.schema.deleted.as_ref().is_some_and(|it| it.name == column.name);
        // The other columns of a row that is gone are null, by the outer join.
        if is_flag { format!("case when {gone} then true else {live} end") } else { live }
    }

    /// A statement that reads whatever an export of changes reads of the log, as the types that the key has now.
    pub(crate) fn logged_keys(&self) -> String {
        let (names, logged_key) = (self.key().names(), self.key().of_log().join(", "));
        let (live, deleted) = (self.logged(&self.live_since()), self.logged(&self.deletions_since()));
        format!(
            "select pg_catalog.count(array[{}])
             from (select {logged_key} from cdc_export.change_log where {live} or {deleted}) as ch ({})",
            names.iter().map(|name| format!("pg_catalog.num_nulls({name})")).collect::<Vec<_>>().join(", "),
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

    /// The rows of a query in a random order if a column of the key is masked: their order would tell its values.
    fn shuffled(&self, select: String) -> String {
        match self.schema.has_masked_key() {
            true => format!("(select * from (\n{select}) as its order by pg_catalog.random())"),
            false => select,
        }
    }

    /// The pieces of a statement that read the transactions of the log, if the files have them.
    fn logged_xid(&self) -> LoggedXid {
        match self.reads_transactions() {
            true => LoggedXid {
                column: ", xid",
                null: ", null",
                latest: format!(", {LATEST_XID}"),
                name: format!(", {XID}"),
            },
            false => LoggedXid::default(),
        }
    }

    pub(crate) fn key(&self) -> KeySql<'_> {
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

    /// The layout of the rows that the statements of an export send.
    pub(crate) fn row_layout(&self, export: &Export) -> RowLayout {
        let schema = self.schema.narrowed(&export.selection);
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

    /// The columns of a full export's file, and the hidden time, of rows `u`. The column `known` isn't read.
    pub(crate) fn full_columns(&self, known: Option<usize>) -> String {
        let meta = self.meta("'READ'::text", None);
        let columns = self.table_columns(known).into_iter().chain(meta).chain(self.hidden_time());
        columns.collect::<Vec<_>>().join(", ")
    }

    /// The columns of the table that the file has, but for the column `known`, of rows `u`.
    fn table_columns(&self, known: Option<usize>) -> Vec<String> {
        let columns = self.schema.columns.iter().enumerate().filter(|(at, _)| Some(*at) != known);
        columns.map(|(_, column)| wire_value(column, &format!("u.{}", quoted(&column.name)))).collect()
    }

    /// The hidden time of rows `u`.
    fn hidden_time(&self) -> Option<String> {
        self.schema.hidden_time().map(|time| wire_value(time, &format!("u.{}", quoted(&time.name))))
    }

    /// The operator's condition. It has to stand where no other table has a column that the condition may mean.
    fn filter(&self) -> Option<String> {
        self.dataset.filter.as_ref().map(|filter| format!("(\n{filter}\n)"))
    }

    /// The condition that a row `u` is soft-deleted, or that it isn't. `None`: the dataset has no such column.
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

    /// The condition that a full export has a row `u`.
    pub(crate) fn alive(&self) -> String {
        let conditions: Vec<_> = self.deleted(false).into_iter().chain(self.filter()).collect();
        if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") }
    }

    /// That a row `u` which the timestamp rule finds is a deletion. A row outside of the filter may have been inside
    /// before, but not for a consumer that begins; where there is a log, the log knows.
    fn ended(&self) -> String {
        let deleted = self.deleted(true).unwrap_or_else(|| "false".to_owned());
        match self.filter() {
            None => deleted,
            Some(filter) => format!(
                "{filter} is true and {deleted}
                 or {filter} is not true and {} is not null and {} is null",
                self.watermark(),
                self.live_since()
            ),
        }
    }

    /// The timestamp rule for the consumer's position.
    fn timestamp_rule(&self) -> String {
        let watermark = self.watermark();
        self.timestamp_rule_since(&watermark, &self.less_overlap(&watermark), &self.live_since())
    }

    fn position(&self) -> Option<&Position> {
        self.since.map(|(_, position)| position)
    }

    /// The watermark. Null, together with [`Select::live_since`]: the consumer begins.
    fn watermark(&self) -> String {
        timestamp(self.position().and_then(|position| position.since))
    }

    /// The time after which soft-deleted rows are due, beside the deletions of the log. Null: none are.
    fn deleted_since(&self) -> String {
        timestamp(self.position().and_then(|position| position.deleted_since))
    }

    /// The snapshot up to which live rows were delivered. Null: the watermark alone decides.
    fn live_since(&self) -> String {
        snapshot(self.position().and_then(|position| position.live.as_deref()))
    }

    /// The snapshot up to which deletions were delivered. Null: the watermark alone decides.
    fn deletions_since(&self) -> String {
        snapshot(self.position().and_then(|position| position.deletions.as_deref()))
    }

    /// The condition that an entry of the log is one of this table which the snapshot has not seen.
    fn logged(&self, snapshot: &str) -> String {
        let table = self.since.map_or(0, |(table, _)| table);
        logged(&format!("'{table}'::oid"), snapshot)
    }

    /// The time from which rows are read for a watermark: earlier, where the dataset has an overlap.
    fn less_overlap(&self, watermark: &str) -> String {
        match self.dataset.capture {
            Capture::Triggers | Capture::None => watermark.to_owned(),
            Capture::Timestamp { overlap } => {
                format!("({watermark} - interval '{} microseconds')", overlap.as_micros())
            }
        }
    }

    /// The timestamp rule: rows `u` after `since`, or all rows for a consumer that begins. A row at infinity, or so far
    /// ahead that its time can't be a watermark, is above every one: such a row would come each time, and its changes
    /// are in the log. So it is with every row where there is a position and no watermark, since no exported row had a
    /// time that can be a watermark.
    pub(crate) fn timestamp_rule_since(&self, watermark: &str, since: &str, snapshot: &str) -> String {
        let begins = format!("{watermark} is null and {snapshot} is null");
        let Some(column) = &self.schema.updated_at else { return format!("({begins})") };
        let (updated_at, later, earlier) = (compared(column), operator("pg_catalog", ">"), operator("pg_catalog", "<"));
        let (since, bound) = (in_zone_of(column, since), in_zone_of(column, LAST_TIME));
        format!("({begins} or {updated_at} {later} {since} and ({updated_at} {earlier} {bound} or {snapshot} is null))")
    }
}

/// A snapshot as a constant.
fn snapshot(snapshot: Option<&str>) -> String {
    snapshot.map_or_else(|| "null::pg_snapshot".to_owned(), |snapshot| format!("{}::pg_snapshot", literal(snapshot)))
}

/// Pieces of lists of columns, each with a comma in front. Empty, if the files have no transactions.
#[derive(Default)]
struct LoggedXid {
    /// The column of the log.
    column: &'static str,
    /// A null in its place.
    null: &'static str,
    /// The aggregate of a key's entries.
    latest: String,
    /// The name of that aggregate in the changes.
    name: String,
}

/// Names of the columns beside the key in the changes. Each has a space, so that no filter means it.
const OP: &str = "\"logged op\"";
const IS_FOUND: &str = "\"is found\"";
const IS_TOLD: &str = "\"logged deletion\"";
const XID: &str = "\"logged xid\"";

/// Later times can't be a watermark.
pub(crate) const LAST_TIME: &str = "timestamptz '200000-01-01 00:00:00+00'";

const DELETE: &str = "'DELETE'::text";

/// The columns of the log that the deletions read beside the key.
const LOGGED: &str = ", sequence, operation";

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
    use crate::dataset::mask::MaskRule;
    use crate::dataset::{KeyColumn, WireFormat};
    use crate::job::selection::{Condition, Operator, Selection};

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
            relation: RelationKind::Table,
            missing_masked: Vec::new(),
            newly_masked: Vec::new(),
        }
    }

    fn select<'a>(dataset: &'a Dataset, schema: &'a TableSchema, position: &'a Position) -> Select<'a> {
        Select { order: Some(3), since: Some((16384, position)), ..Select::new(dataset, schema) }
    }

    /// The statements of cases that differ in what decides the SQL.
    fn cases() -> Vec<(&'static str, Vec<String>)> {
        let (id, age) = (column("id", ColumnType::Int8, "int8"), column("age", ColumnType::Int4, "int4"));
        let time = |name| column(name, ColumnType::Timestamptz, "timestamptz");
        let plain = table(vec![id, age, time("updated_at")], "pg_catalog.=", true);
        let plain = TableSchema { updated_at: Some(time("updated_at")), ..plain };
        let flag = Some(column("is_deleted", ColumnType::Bool, "bool"));
        let created_at = Some(time("created_at"));
        let flagged = TableSchema { deleted: flag, created_at, is_filtered: true, ..plain.clone() };
        let updated_at = Some(column("at", ColumnType::Timestamp, "timestamp"));
        let mut masked = TableSchema { updated_at, deleted: Some(time("deleted_at")), ..plain.clone() };
        masked.key[0].column.mask = Some(MaskRule::Hmac);
        let email = column("email", ColumnType::Text, "public.citext");
        let email = TableColumn { wire_format: WireFormat::Written, ..email };
        let mut two_keys = table(vec![email], "public.=", false);
        two_keys.key.insert(0, plain.key[0].clone());
        two_keys.meta = vec![MetaColumn::Order, MetaColumn::Xid, MetaColumn::CommittedAt, MetaColumn::Operation];

        let users = Dataset::new("users".to_owned(), plain.table.clone());
        let filtered = Dataset { filter: Some("tenant = 7 -- ours".to_owned()), ..users.clone() };
        let by_time = Capture::Timestamp { overlap: Duration::from_secs(60) };
        let by_time = Dataset { capture: by_time, ..filtered.clone() };

        let at = |live, deletions, since: Option<&str>, deleted_since: Option<&str>| Position {
            live: Option::map(live, str::to_owned),
            deletions: Option::map(deletions, str::to_owned),
            since: since.map(|time| time.parse().unwrap()),
            deleted_since: deleted_since.map(|time| time.parse().unwrap()),
            ..Position::default()
        };
        let first = Position::default();
        let times = at(None, None, Some("2026-07-01T00:00:00Z"), Some("2026-06-01T00:00:00Z"));
        let same = at(Some("90:95:90,92"), Some("90:95:90,92"), Some("2026-07-01T00:00:00Z"), None);
        let behind = at(Some("90:95:90,92"), Some("70:70:"), None, Some("2026-06-01T00:00:00Z"));

        let rule = |of: &Position| if of.live.is_some() { Rule::LogToo } else { Rule::TimeAlone };
        let incremental = |dataset, schema, of: &Position| vec![select(dataset, schema, of).incremental(rule(of), MAX)];
        let delta =
            |dataset, schema, of: &Position| select(dataset, schema, of).delta(rule(of), of.live == of.deletions, MAX);
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
            ("delta, key of two columns, one with several texts, meta", delta(&users, &two_keys, &behind)),
            ("keys of the log", vec![select(&users, &two_keys, &behind).logged_keys()]),
            ("count of changes", vec![select(&users, &plain, &behind).count_changes(ExportType::Delta)]),
        ]
    }

    /// A statement with a line for each clause, indented by its parentheses. Keeps the ends of comments.
    fn readable(statement: &str) -> String {
        let (mut lines, mut line, mut depth) = (Vec::new(), String::new(), 0);
        for words in statement.lines() {
            for word in words.split_whitespace() {
                let is_clause = ["select", "from", "full", "left", "join", "where", "union", "group"].contains(&word);
                let begins = is_clause && !line.ends_with("full") && !line.ends_with("left");
                let is_part = ["and", "or", "when", "as", "on"].contains(&word) || line.ends_with(',');
                if begins || is_part && line.len() + word.len() > 120 {
                    lines.push(std::mem::replace(&mut line, "  ".repeat(depth + usize::from(!begins))));
                }
                line += if line.trim().is_empty() { "" } else { " " };
                line += word;
                depth = depth + word.matches('(').count() - word.matches(')').count();
            }
            if words.contains("--") {
                lines.push(std::mem::take(&mut line));
            }
        }
        lines.push(line);
        lines.retain(|line| !line.trim().is_empty());
        lines.join("\n")
    }

    /// `RENEW_STATEMENTS=1 cargo test statements_are` renews the file.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "no setting of the service")]
    fn statements_are_those_in_the_file() {
        let block = |(title, statements): (&str, Vec<String>)| {
            let statements: Vec<_> = statements.iter().map(|statement| readable(statement)).collect();
            format!("== {title}\n\n{}\n", statements.join("\n\n"))
        };
        let statements = cases().into_iter().map(block).collect::<Vec<_>>().join("\n");
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source/select/statements.txt");
        if std::env::var_os("RENEW_STATEMENTS").is_some() {
            std::fs::write(&file, &statements).unwrap();
        }
        assert_eq!(std::fs::read_to_string(file).unwrap(), statements);
    }
}
