//! A dataset's table as it is: its columns and key, and whatever of the dataset doesn't fit them.

use std::collections::BTreeMap;

use sqlx::postgres::types::Oid;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::guard::RememberedColumn;
use crate::placed::by_table;
use crate::quote::relation;
use crate::rights::TableAccess;
use crate::{Error, filter, guard, key_index, owners, rights};
use cdc_dataset::{
    Capture, Columns, Dataset, Fault, Faults, FileHeader, KeyColumn, ListElement, MASK_REMOVED, MaskRule, Operation,
    RelationKind, TableColumn, TableSchema, Unrepresentable, WireFormat, hint, hint_in_full,
};
use pg_rows::column::{ColumnType, ParquetType};
use pg_rows::export_type::ExportType;
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

/// A column as the system catalogs have it.
#[derive(sqlx_macros::FromRow)]
struct ColumnRow {
    /// The place of its table in `$1`.
    place: i64,
    name: String,
    number: i16,
    type_name: String,
    /// The base type with the length that it was declared with, if the type is a domain.
    domain_base: Option<String>,
    base_type: String,
    /// The base type as it is saved: its oid, which stays when the type or its schema is renamed.
    saved_type: String,
    operators: String,
    /// The length, or the precision and scale, that its type or its domain's was declared with, as `pg_attribute` has
    /// it; -1: none.
    modifier: i32,
    /// The base type with the length that it was declared with.
    declared_base: String,
    is_enum: bool,
    /// The schema of its type, quoted, if the role may not use it.
    closed_schema: Option<String>,
    /// The name of the type, if it is Postgres's own.
    own_type: Option<String>,
    /// No row of its table has a null there.
    not_null: bool,
    /// Its table's `relkind`.
    table_kind: String,
    /// From 1, where it is a part of the primary key.
    key_place: Option<i32>,
    /// The `xmin` of its row of `pg_attribute`.
    version: String,
    /// The collation of its texts; 0: it has none.
    collation: Oid,
    /// True if its values may change without a change of a row: its type is not one of Postgres's own, or an expression
    /// computes them.
    may_change: bool,
    /// The number of columns that its table has ever had.
    width: i16,
    /// The equality of the key's index, with its schema. `None`: its method has another one for every type, or it
    /// doesn't have the column.
    key_equals: Option<String>,
    /// The collation of the key's index, quoted.
    key_collation: Option<String>,
    /// True if that collation takes different texts for different. `None`: the key's index doesn't have the column.
    key_is_deterministic: Option<bool>,
    /// True if other tables inherit from its table.
    has_children: bool,
    /// The columns that exports of the dataset have masked.
    masked: Vec<String>,
}

impl ColumnRow {
    fn column(&self, dataset: &Dataset) -> TableColumn {
        let kind = self.own_type.as_deref().and_then(binary_kind);
        let choices = dataset.parquet;
        let wire_format = if kind.is_some() { WireFormat::Binary } else { WireFormat::Written };
        let mask = dataset.masks.rules.get(&self.name).cloned();
        let parquet = |kind| match (kind, choices.is_text(kind)) {
            (ColumnType::Numeric, false) => decimal(self.modifier).unwrap_or(ParquetType::OfKind),
            // Without a declared precision it is a text anyway.
            (ColumnType::Numeric, true) | (_, false) => ParquetType::OfKind,
            (_, true) => ParquetType::Text,
        };
        // The type of arrays of a type of Postgres's own has its name behind a `_`. A mask takes their text.
        let element = self.own_type.as_deref().and_then(|own_type| own_type.strip_prefix('_')).and_then(binary_kind);
        let element = element.filter(|_| choices.lists && mask.is_none());
        TableColumn {
            name: self.name.clone().into(),
            rename: dataset.header.renames.get(&self.name).cloned(),
            number: self.number,
            kind: kind.unwrap_or(ColumnType::Text),
            type_name: self.type_name.clone().into(),
            domain_base: self.domain_base.clone(),
            base_type: self.base_type.clone().into(),
            wire_format,
            operators: self.operators.clone().into(),
            parquet: kind.map_or(ParquetType::OfKind, parquet),
            list: element.map(|kind| ListElement { kind, parquet: parquet(kind) }),
            null_if_unrepresentable: choices.unrepresentable == Unrepresentable::Null,
            mask,
            meta: None,
        }
    }
}

/// Returns the Parquet type of a `numeric` with this modifier. Returns `None` if the column declares no precision, or
/// if Parquet has no such type.
///
/// The modifier has the precision, then 11 bits of the signed scale (`make_numeric_typmod` in Postgres's sources).
fn decimal(modifier: i32) -> Option<ParquetType> {
    const MOST_DIGITS: u8 = 38;
    let digits = u32::try_from(modifier.checked_sub(4)?).ok()?;
    let (precision, scale) = (u8::try_from(digits >> 16).ok()?, u8::try_from(digits & 0x7ff).ok()?);
    (1..=MOST_DIGITS).contains(&precision).then_some(())?;
    (scale <= precision).then_some(ParquetType::Decimal { precision, scale })
}

/// The types whose binary form the encoder knows, by their names in `pg_type`.
fn binary_kind(own_type: &str) -> Option<ColumnType> {
    match own_type {
        "varchar" => Some(ColumnType::Text),
        _ => own_type.parse().ok(),
    }
}

pub(crate) async fn introspect(conn: &mut PgConnection, dataset: &Dataset) -> Result<TableSchema, Error> {
    let failed = Error::from_sql("pg_catalog");
    let access = rights::read_access(conn, dataset).await.map_err(&failed)?;
    if let Some(fault) = access.hidden() {
        return Err(Error::NotReadable(fault.clone()));
    }
    introspect_all(conn, &[(dataset, &access)]).await.map_err(failed)?.remove(0).map_err(Error::Mismatch)
}

/// Reads the schemas of the tables of several datasets. Takes as many statements for many as for few. In a transaction
/// that has locks on the tables, the schemas stay so. The fault of a hidden table is the right that the role lacks.
pub(crate) async fn introspect_all(
    conn: &mut PgConnection,
    datasets: &[(&Dataset, &TableAccess)],
) -> Result<Vec<Result<TableSchema, Faults>>, sqlx::Error> {
    // Looking a hidden table up by its name is an error.
    let name = |(dataset, access): &(&Dataset, &TableAccess)| {
        access.hidden().is_none().then(|| relation(access.table_of(dataset)))
    };
    let statement = with_pieces(include_str!("table_schema/columns.sql"), &[key_index::LOCATE]);
    let columns: Vec<ColumnRow> = sqlx::query_as(AssertSqlSafe(statement))
        .bind(datasets.iter().map(name).collect::<Vec<_>>())
        .bind(datasets.iter().map(|(dataset, _)| dataset.key.as_ref().map(Json)).collect::<Vec<_>>())
        .bind(datasets.iter().map(|(dataset, _)| &*dataset.name).collect::<Vec<_>>())
        .fetch_all(&mut *conn)
        .await?;
    let columns = by_table(datasets.len(), columns, |column| column.place);
    let mut fittings: Vec<_> = datasets.iter().zip(&columns).map(Fitting::new).collect();
    refuse_missing(conn, &mut fittings).await?;
    let visible = datasets.iter().filter(|(_, access)| access.hidden().is_none());
    let visible: Vec<_> = visible.map(|(dataset, access)| (*dataset, access.table_of(dataset))).collect();
    for fault in owners::untrusted(conn, &visible).await? {
        let fitting = fittings.iter_mut().find(|fitting| fitting.dataset.name == fault.dataset);
        fitting.expect("it is one of the datasets").faults.push(fault);
    }
    let fits: Vec<_> = fittings.into_iter().map(Fitting::fit).collect();
    let fitting = || fits.iter().filter_map(|fit| fit.as_ref().ok());
    let changing: Vec<_> = fitting().map(|fit| (fit.table, fit.changing())).collect();
    let mut parts = guard::read_parts(conn, &changing).await?.into_iter();
    let filters: Vec<_> = fitting().filter_map(|fit| Some((fit.dataset.filter.as_deref()?, fit.table))).collect();
    let mut hashes = filter::hashes_of_called(conn, &filters).await?.into_iter();
    let schema = |fit: Result<FittingTable<'_>, Faults>| {
        let fit = fit?;
        let hash = fit.dataset.filter.as_ref().and_then(|_| hashes.next());
        Ok(fit.schema(parts.next().expect("each table has parts"), hash))
    };
    Ok(fits.into_iter().map(schema).collect())
}

/// Adds a fault to each dataset whose table is not there or has no columns.
async fn refuse_missing(conn: &mut PgConnection, fittings: &mut [Fitting<'_>]) -> Result<(), sqlx::Error> {
    let is_empty = |fitting: &&mut Fitting<'_>| fitting.columns.is_empty() && fitting.faults.is_empty();
    let mut empty: Vec<_> = fittings.iter_mut().filter(is_empty).collect();
    if empty.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = empty.iter().map(|fitting| relation(fitting.table)).collect();
    let are_there: Vec<bool> = sqlx::query_scalar(
        "-- source.table_schema.are_there
         select to_regclass(t.name) is not null from unnest($1) with ordinality as t (name, place) order by t.place",
    )
    .bind(names)
    .fetch_all(&mut *conn)
    .await?;
    let near = if are_there.contains(&false) { table_names(conn).await? } else { Vec::new() };
    for (fitting, is_there) in empty.iter_mut().zip(are_there) {
        let table = &fitting.dataset.table;
        let why = match is_there {
            true => format!("`{table}` has no columns"),
            false => format!("there is no table `{table}`{}", hint_of_tables(&near, table)),
        };
        fitting.wrong("table", None, why);
    }
    Ok(())
}

/// Returns the names of all tables: without the schema, with it, and the shorter one of these that finds the table.
async fn table_names(conn: &mut PgConnection) -> Result<Vec<[String; 3]>, sqlx::Error> {
    sqlx::query_scalar(
        "-- source.table_schema.tables
         select array[c.relname::text, named.in_full, case when named.is_found then c.relname::text else named.in_full end]
         from pg_class c
         join pg_namespace n on n.oid = c.relnamespace
         cross join lateral (
           select n.nspname || '.' || c.relname as in_full,
             coalesce(cdc_export.table_of_role(quote_ident(c.relname)) = c.oid, false) as is_found) named
         where c.relkind in ('r', 'p') and n.nspname not in ('pg_catalog', 'information_schema', 'cdc_export')
           and n.nspname not like 'pg\\_%'
         -- The hint names the last one of the tables that are equally near.
         order by named.is_found, named.in_full desc",
    )
    .fetch_all(conn)
    .await
}

fn hint_of_tables(tables: &[[String; 3]], table: &Table) -> String {
    let names = tables.iter().map(|[name, in_full, shortest]| match table.schema {
        Some(_) => (in_full.as_str(), in_full.as_str()),
        None => (name.as_str(), shortest.as_str()),
    });
    hint_in_full(&table.to_string(), names)
}

/// The comparison of a dataset with the columns of its table.
struct Fitting<'a> {
    dataset: &'a Dataset,
    table: &'a Table,
    columns: &'a [ColumnRow],
    faults: Vec<Fault>,
}

impl<'a> Fitting<'a> {
    fn new((&(dataset, access), columns): (&(&'a Dataset, &'a TableAccess), &'a Vec<ColumnRow>)) -> Fitting<'a> {
        let faults = access.hidden().into_iter().cloned().collect();
        Fitting { dataset, table: access.table_of(dataset), columns, faults }
    }

    fn wrong(&mut self, member: &'static str, item: Option<&str>, why: String) {
        let (dataset, item) = (self.dataset.name.clone(), item.map(str::to_owned));
        self.faults.push(Fault { dataset, member, item, why });
    }

    fn find(&mut self, member: &'static str, name: &str) -> Option<&'a ColumnRow> {
        let columns = self.columns;
        let found = columns.iter().find(|column| column.name == name);
        if found.is_none() {
            let near = hint(name, columns.iter().map(|column| column.name.as_str()));
            let why = format!("there is no column `{name}` in `{}`{near}", self.dataset.table);
            self.wrong(member, Some(name), why);
        }
        found
    }

    /// Returns the dataset's choice of the columns, or its faults.
    fn fit(mut self) -> Result<FittingTable<'a>, Faults> {
        if self.columns.is_empty() {
            return Err(Faults(self.faults));
        }
        self.require_table();
        let key = self.key();
        let columns = self.chosen(&key);
        let missing_masked = self.missing_masked(&key);
        self.require_masks();
        let updated_at = self.time("updated_at", self.dataset.updated_at.as_deref());
        self.require_zone(updated_at.as_ref());
        let created_at = self.time("created_at", self.dataset.created_at.as_deref());
        let created_at = created_at.filter(|_| self.dataset.operation == Operation::Timestamps);
        let deleted = self.deleted();
        let Fitting { dataset, table, columns: rows, faults } = self;
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        Ok(FittingTable { dataset, table, rows, key, columns, updated_at, created_at, deleted, missing_masked })
    }

    /// Refuses a view, a materialized view, a foreign table and a table from which others inherit, unless the dataset
    /// has no capture: an export of changes would lack the rows of the tables that inherit. Refuses an index and
    /// whatever else is no table.
    fn require_table(&mut self) {
        let Some(column) = self.columns.first() else { return };
        let kind = match RelationKind::from_relkind(&column.table_kind) {
            Some(RelationKind::Table) if column.has_children => "a table from which others inherit",
            Some(RelationKind::Table | RelationKind::Partitioned) => return,
            Some(RelationKind::View) => "a view",
            Some(RelationKind::MaterializedView) => "a materialized view",
            Some(RelationKind::ForeignTable) => "a foreign table",
            None => {
                let why = format!("`{}` is no table", self.dataset.table);
                return self.wrong("table", None, why);
            }
        };
        if self.dataset.capture != Capture::None {
            let why = format!("`{}` is {kind}: capture = \"none\" makes full exports of it", self.dataset.table);
            self.wrong("capture", None, why);
        }
    }

    fn key(&mut self) -> Vec<KeyColumn> {
        let key = self.key_columns();
        for found in &key {
            if let Some(why) = key_index::unsteady_text(found.own_type.as_deref()) {
                let why = format!("`{}` is {}, {why}", found.name, found.type_name);
                self.wrong("key", self.dataset.key.is_some().then_some(&found.name), why);
            }
        }
        for found in key.iter().filter(|_| self.dataset.capture != Capture::None) {
            let Some(schema) = &found.closed_schema else { continue };
            let why = format!("the type of `{}` needs `grant usage on schema {schema}` to the role", found.name);
            self.wrong("key", None, why);
        }
        let is_indexed = key.iter().any(|found| found.key_is_deterministic.is_some());
        if !is_indexed && !key.is_empty() && self.faults.is_empty() {
            let names: Vec<_> = key.iter().map(|found| &*found.name).collect();
            let why = format!("`{}` has no unique index on just ({})", self.dataset.table, names.join(", "));
            self.wrong("key", None, why);
        }
        let compared = |found: &&ColumnRow| {
            let own_equals = || format!("operator({}.=)", found.operators);
            KeyColumn {
                column: found.column(self.dataset),
                read_as: if found.base_type == "bpchar" { &found.declared_base } else { &found.base_type }.clone(),
                equals: found.key_equals.clone().unwrap_or_else(own_equals),
                collation: found.key_collation.clone(),
                has_one_text: key_index::has_one_text(found.own_type.as_deref(), found.is_enum)
                    && found.key_is_deterministic == Some(true),
            }
        };
        key.iter().map(compared).collect()
    }

    fn key_columns(&mut self) -> Vec<&'a ColumnRow> {
        let columns = self.columns;
        let Some(names) = &self.dataset.key else {
            let mut key: Vec<_> = columns.iter().filter(|column| column.key_place.is_some()).collect();
            key.sort_by_key(|column| column.key_place);
            if self.dataset.capture == Capture::None {
                // A part of the key tells no rows apart, nor does the key of a parent those of its children.
                let is_whole = key.iter().all(|column| self.may_send(&column.name) && !column.has_children);
                let is_steady = key.iter().all(|part| key_index::unsteady_text(part.own_type.as_deref()).is_none());
                return if is_whole && is_steady { key } else { Vec::new() };
            }
            if key.is_empty() && self.faults.is_empty() {
                let why = format!(
                    "`{}` has no primary key: add one, or name columns that are NOT NULL and have a unique index on just them, as \
                     `key = [\"a\", \"b\"]`, or set capture = \"none\", which makes full exports alone",
                    self.dataset.table
                );
                self.wrong("key", None, why);
            }
            return key;
        };
        let mut key = Vec::new();
        for name in names {
            let Some(found) = self.find("key", name) else { continue };
            if !found.not_null {
                self.wrong("key", Some(name), format!("`{name}` may be null, which tells no rows apart"));
            }
            key.push(found);
        }
        key
    }

    /// Returns true if the operator's choice of columns has this one.
    fn may_send(&self, name: &String) -> bool {
        match &self.dataset.columns {
            Columns::All => true,
            Columns::Only(names) => names.contains(name),
            Columns::AllBut(names) => !names.contains(name),
        }
    }

    fn chosen(&mut self, key: &[KeyColumn]) -> Vec<TableColumn> {
        let (member, chosen): (_, Vec<_>) = match &self.dataset.columns {
            Columns::All => ("exclude", self.columns.iter().collect()),
            Columns::Only(names) => ("columns", names.iter().filter_map(|name| self.find("columns", name)).collect()),
            Columns::AllBut(names) => {
                for name in names {
                    self.find("exclude", name);
                }
                ("exclude", self.columns.iter().filter(|column| self.may_send(&column.name)).collect())
            }
        };
        if chosen.is_empty() {
            self.wrong(member, None, "no column is left for the files".to_owned());
        }
        let has_deltas = self.dataset.allows(ExportType::Delta);
        self.require_names(member, &chosen);
        let key = key.iter().map(|part| &part.column);
        for column in key.clone().filter(|column| chosen.iter().all(|other| other.name != column.name)) {
            let why = match has_deltas {
                true => format!("without the key's `{}` nobody can tell which row a DELETE is", column.name),
                false => format!("the key's `{}` is missing", column.name),
            };
            self.wrong(member, Some(&column.name), why);
        }
        let is_key = |column: &TableColumn| key.clone().any(|part| part.name == column.name);
        let in_file = |row: &ColumnRow| {
            let column = row.column(self.dataset);
            // Without its key nobody can load a row: a value of the key fails the export.
            TableColumn { null_if_unrepresentable: column.null_if_unrepresentable && !is_key(&column), ..column }
        };
        chosen.into_iter().map(in_file).collect()
    }

    /// Checks the names of the columns in files. Some readers don't tell names apart by case.
    fn require_names(&mut self, member: &'static str, chosen: &[&ColumnRow]) {
        let FileHeader { renames, renames_are_optional, meta, .. } = &self.dataset.header;
        if !renames_are_optional {
            for name in renames.keys() {
                self.find("rename", name);
            }
        }
        let mut taken: BTreeMap<String, (&'static str, String)> = BTreeMap::new();
        let operation = self.dataset.header.operation_column();
        if self.dataset.allows(ExportType::Delta) {
            taken.insert(operation.name.to_lowercase(), ("operation_column", "a delta's first column".to_owned()));
        }
        for column in meta.iter().copied().map(TableColumn::of_meta) {
            let owner = ("meta", format!("the column `{}` of meta", column.name));
            if let Some((_, other)) = taken.insert(column.name.to_lowercase(), owner) {
                self.wrong("meta", None, format!("{other} has the name `{}`, too", column.name));
            }
        }
        for column in chosen {
            let rename = renames.get(&column.name);
            let name = rename.unwrap_or(&column.name);
            let own = (if rename.is_some() { "rename" } else { member }, format!("the column `{}`", column.name));
            let is_renamed = rename.is_some();
            let Some((why, other)) = taken.insert(name.to_lowercase(), own) else { continue };
            // A table may have columns whose names differ by case alone.
            if is_renamed || why != member {
                let (what, why) =
                    if is_renamed { ("rename", ", too") } else { (member, ": rename one of them, or leave it out") };
                self.wrong(what, Some(&column.name), format!("{other} has the name `{name}` in files{why}"));
            }
        }
    }

    /// Checks the masks. Returns the columns that the table lacks, if it may.
    fn missing_masked(&mut self, key: &[KeyColumn]) -> Vec<String> {
        let (columns, masks) = (self.columns, &self.dataset.masks);
        let mut missing = Vec::new();
        for (name, rule) in &masks.rules {
            let found = columns.iter().find(|column| column.name == *name);
            let Some(found) = found.map(|column| column.column(self.dataset)) else {
                match masks.are_optional {
                    true => missing.push(name.clone()),
                    false => drop(self.find("mask", name)),
                }
                continue;
            };
            if !rule.takes(found.kind) {
                let why = format!("`{name}` is {}, which has no {rule}", found.type_name);
                self.wrong("mask", None, why);
            }
            if *rule != MaskRule::Hmac && key.iter().any(|part| *part.column.name == **name) {
                self.wrong("mask", None, format!("`{name}` is of the key, which can only have `hmac`"));
            }
        }
        missing
    }

    /// Refuses a dataset whose exports have masked a column that is no masked column now. It may have another name.
    fn require_masks(&mut self) {
        let (columns, dataset) = (self.columns, self.dataset);
        let remembered = columns.first().map(|column| column.masked.as_slice()).unwrap_or_default();
        for name in remembered {
            if !dataset.masks.rules.contains_key(name) || columns.iter().all(|column| column.name != *name) {
                let why = format!(
                    "its exports masked `{name}`, which is no masked column any more: put the mask back, or, if its \
                     values may be in the files from now on, run `cdc-export mask drop {}`",
                    dataset.name
                );
                self.wrong(MASK_REMOVED, Some(name), why);
            }
        }
    }

    fn time(&mut self, member: &'static str, name: Option<&str>) -> Option<TableColumn> {
        let column = self.find(member, name?)?.column(self.dataset);
        if !is_time(&column) {
            let why = format!("`{}` is {}: a timestamptz or a timestamp is expected", column.name, column.type_name);
            self.wrong(member, None, why);
        }
        Some(column)
    }

    /// Refuses times without a zone if they alone tell the changes, unless the dataset names the zone. The watermark
    /// never passes the moment of reading, so that a row with a time ahead hides no changes. To compare the two, the
    /// service must know by which clock the times are.
    fn require_zone(&mut self, updated_at: Option<&TableColumn>) {
        let by_time = matches!(self.dataset.capture, Capture::Timestamp { .. }) && self.dataset.time_zone.is_none();
        let Some(time) = updated_at.filter(|time| by_time && time.kind == ColumnType::Timestamp) else { return };
        let why = format!(
            "`{}` is {}, which doesn't say by which clock: name its zone, as time_zone = \"America/New_York\", or time_zone = \"UTC\"",
            time.name, time.type_name
        );
        self.wrong("updated_at", None, why);
    }

    fn deleted(&mut self) -> Option<TableColumn> {
        let column = self.find("deleted", self.dataset.deleted.as_deref()?)?.column(self.dataset);
        if column.kind != ColumnType::Bool && !is_time(&column) {
            let why = format!("`{}` is {}: a boolean or a time is expected", column.name, column.type_name);
            self.wrong("deleted", None, why);
        }
        Some(column)
    }
}

struct FittingTable<'a> {
    dataset: &'a Dataset,
    table: &'a Table,
    rows: &'a [ColumnRow],
    key: Vec<KeyColumn>,
    columns: Vec<TableColumn>,
    updated_at: Option<TableColumn>,
    created_at: Option<TableColumn>,
    deleted: Option<TableColumn>,
    missing_masked: Vec<String>,
}

impl<'a> FittingTable<'a> {
    fn is_sent(&self, column: &ColumnRow) -> bool {
        self.columns.iter().any(|sent| sent.number == column.number)
    }

    /// Returns true if the dataset's filter may mention this column.
    fn is_mentioned(&self, column: &ColumnRow) -> bool {
        self.dataset.filter.as_deref().is_some_and(|text| filter::mentions(text, &column.name))
    }

    /// Returns the columns that are in the files or decide what the files have. Only these are remembered.
    fn known(&self) -> Vec<&'a ColumnRow> {
        let times = [&self.updated_at, &self.created_at, &self.deleted].into_iter().flatten();
        let deciding: Vec<_> =
            self.key.iter().map(|key| &key.column).chain(times).map(|column| column.number).collect();
        let is_known = |column: &&ColumnRow| {
            self.is_sent(column) || deciding.contains(&column.number) || self.is_mentioned(column)
        };
        self.rows.iter().filter(is_known).collect()
    }

    /// Returns the numbers of the columns whose values may change without a change of a row.
    fn changing(&self) -> Vec<i16> {
        self.known().iter().filter(|column| column.may_change).map(|column| column.number).collect()
    }

    /// Returns the schema. `parts`: those of the columns of `changing`. `filter`: a hash of what the filter may call.
    fn schema(self, mut parts: BTreeMap<String, String>, filter: Option<String>) -> TableSchema {
        let (rows, known) = (self.rows, self.known());
        // A table that inherits may have dropped the constraint.
        let is_set = |row: &&ColumnRow| row.not_null && row.table_kind == "r" && !row.has_children;
        let deleted = self.deleted.as_ref().map(|deleted| deleted.number);
        let deleted_is_set = rows.iter().filter(is_set).any(|row| Some(row.number) == deleted);
        let types = known.iter().map(|row| (row.name.clone(), row.saved_type.clone())).collect();
        // The order of texts may decide which rows a filter finds.
        let ordered = known.iter().filter(|row| row.collation.0 != 0 && self.is_mentioned(row));
        parts.extend(ordered.map(|row| (format!("order {}", row.number), row.collation.0.to_string())));
        let known = known.into_iter().map(|ColumnRow { name, number, version, .. }| {
            let sent = self.columns.iter().find(|sent| sent.number == *number);
            let name_in_files = sent.map(|sent| sent.rename.as_ref().unwrap_or(name).as_str());
            RememberedColumn { name, number: *number, version, name_in_files }
        });
        let masks = &self.dataset.masks.rules;
        let is_new = |row: &&ColumnRow| masks.contains_key(&row.name) && !row.masked.contains(&row.name);
        let newly_masked = rows.iter().filter(is_new).map(|row| row.name.clone()).collect();
        let width = rows.first().map_or(0, |row| row.width);
        let time = self.updated_at.as_ref().map(|time| time.number);
        let has_no_zone = self.updated_at.as_ref().is_some_and(|time| time.kind == ColumnType::Timestamp);
        let mut guard_state = guard::guard_state(known, &parts, width, time);
        if let Some(hash) = filter {
            guard_state.set("filter", hash);
        }
        if self.columns.iter().any(|column| column.mask == Some(MaskRule::Hmac)) {
            guard_state.set("needs_secret", true);
        }
        TableSchema {
            table: self.table.clone(),
            is_filtered: self.dataset.filter.is_some(),
            relation: RelationKind::from_relkind(&rows[0].table_kind).expect("a relation that fits has a kind"),
            key: self.key,
            columns: self.columns,
            operation: self.dataset.header.operation_column(),
            meta: self.dataset.header.meta.clone(),
            updated_at: self.updated_at,
            time_zone: self.dataset.local_zone().filter(|_| has_no_zone).cloned(),
            created_at: self.created_at,
            deleted: self.deleted,
            deleted_is_set,
            missing_masked: self.missing_masked,
            newly_masked,
            types,
            guard_state,
        }
    }
}

fn is_time(column: &TableColumn) -> bool {
    matches!(column.kind, ColumnType::Timestamptz | ColumnType::Timestamp)
}
