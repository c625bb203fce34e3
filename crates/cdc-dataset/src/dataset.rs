//! Datasets: tables that may be exported, with their columns and the way in which changes are found.
//!
//! A [`Dataset`] has what the operator says. A [`TableSchema`] has what the table looks like at a moment. This module
//! knows no SQL: `source` quotes names and reads the table, `encode` picks a formatter by type.

pub mod columns;
pub mod fault;
pub mod header;
pub mod mask;
pub mod name;
pub mod selection;
mod signature;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pg_rows::column::{ColumnType, ParquetType};
use pg_rows::encoding::Format;

use crate::dataset::columns::{FileColumn, FileColumns, SavedWireFormat};
use crate::dataset::fault::{Fault, Faults};
use crate::dataset::header::{FileHeader, meta_column};
use crate::dataset::mask::{MaskRule, MaskSecret, Masks};
use crate::dataset::selection::Selection;
use crate::watermark::GuardState;
use pg_rows::export_type::ExportType;
use pg_rows::meta::MetaColumn;
use pg_session::table_name::Table;

/// A column of a table or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableColumn {
    /// Its name in the table.
    pub name: Cow<'static, str>,
    /// Its name in files; `None`: the same.
    pub rename: Option<String>,
    /// Its number in the table, which stays when it is renamed; 0: it is in none.
    pub number: i16,
    pub kind: ColumnType,
    /// Its type as it was declared.
    pub type_name: Cow<'static, str>,
    /// The type beneath a domain, with its length or precision; `None`: the type is no domain.
    pub domain_base: Option<String>,
    /// The type to cast a value to, with its schema unless it is Postgres's own: a domain's base, and no length. Such a
    /// cast cuts nothing off, and a null violates no constraint of a domain.
    pub base_type: Cow<'static, str>,
    pub wire_format: WireFormat,
    /// The schema of the operators that compare its values.
    pub operators: Cow<'static, str>,
    pub parquet: ParquetType,
    /// The elements of its arrays, if Parquet has them as a `LIST`.
    pub list: Option<ListElement>,
    /// True if a value that Parquet can't represent is NULL there.
    pub null_if_unrepresentable: bool,
    /// The rule by which the files replace its values; `None`: they have them as they are.
    pub mask: Option<MaskRule>,
    /// The kind of a column of `meta`; `None`: it is a column of the table, or a delta's operation.
    pub meta: Option<MetaColumn>,
}

/// The form in which Postgres sends a column's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireFormat {
    /// In the binary form of their kind.
    Binary,
    /// As the texts that it writes them as.
    Written,
    /// As arrays in the binary form of their elements. Only for Parquet.
    List(ListElement),
}

/// The elements of a column of arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListElement {
    pub kind: ColumnType,
    pub parquet: ParquetType,
}

impl TableColumn {
    /// A column that is sent in the binary form of its kind.
    pub const fn named(name: &'static str, kind: ColumnType) -> TableColumn {
        TableColumn {
            name: Cow::Borrowed(name),
            rename: None,
            number: 0,
            kind,
            type_name: Cow::Borrowed(""),
            domain_base: None,
            base_type: Cow::Borrowed(""),
            wire_format: WireFormat::Binary,
            operators: Cow::Borrowed("pg_catalog"),
            parquet: ParquetType::OfKind,
            list: None,
            null_if_unrepresentable: false,
            mask: None,
            meta: None,
        }
    }

    pub fn file_name(&self) -> Cow<'static, str> {
        self.rename.clone().map_or_else(|| self.name.clone(), Cow::Owned)
    }

    /// Returns the column of a file that has its values. `None` if its mask needs a secret, and there is none.
    pub fn in_file(&self, secret: Option<&MaskSecret>) -> Option<pg_rows::column::Column> {
        let TableColumn { null_if_unrepresentable, .. } = *self;
        let (kind, parquet, is_list) = match self.wire_format {
            WireFormat::List(element) => (element.kind, element.parquet, true),
            WireFormat::Binary | WireFormat::Written => (self.kind, self.parquet, false),
        };
        let mask = match &self.mask {
            Some(rule) => Some(rule.mask(secret)?),
            None => None,
        };
        Some(pg_rows::column::Column { name: self.file_name(), kind, is_list, parquet, null_if_unrepresentable, mask })
    }

    /// Returns the Postgres type of its values in a file.
    pub fn file_type(&self) -> &str {
        match &self.mask {
            Some(rule) => rule.file_type(),
            None => &self.type_name,
        }
    }
}

/// A column of a key, and how its unique index tells values apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    pub column: TableColumn,
    /// The type to read its text as, with its schema unless it is Postgres's own: a domain's base. A `char` has its
    /// length, to which it is padded.
    pub read_as: String,
    /// The operator that is true of two values which the index takes for one, with its schema.
    pub equals: String,
    /// The collation of the index, quoted, if it has one: a comparison in another collation finds nothing by the index.
    pub collation: Option<String>,
    /// True if values that are the same to that operator always have the same text. Where not (`citext`, 1.0 and 1.00),
    /// a consumer, who has the texts, takes for two rows what the index takes for one.
    pub has_one_text: bool,
}

/// The most bytes that a value may have. It bounds memory, since a row is read and written whole.
#[derive(Clone, Copy, Debug)]
pub struct CellMax(pub u64);

/// The columns of a table that a file has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Columns {
    /// Each, in the table's order.
    All,
    /// These, in this order.
    Only(Vec<String>),
    /// Each but these, in the table's order.
    AllBut(Vec<String>),
}

/// The way in which changes of a table are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// Exactly, by triggers that log them.
    Triggers,
    /// By `updated_at` alone, from `overlap` before the watermark. Rows within the overlap are exported again. A change
    /// that commits later than the overlap is missed, and so is a row that is gone. The table is only read.
    Timestamp {
        /// The longest time that a transaction may take.
        overlap: Duration,
    },
    /// Not at all: each export is a full one. The table may be a view, a materialized view or a foreign table, and
    /// needs no key.
    None,
}

impl Capture {
    /// As the catalog and the API say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Capture::Triggers => "triggers",
            Capture::Timestamp { .. } => "timestamp",
            Capture::None => "none",
        }
    }
}

pg_rows::words! {
    /// The rule by which a delta calls a live row `INSERT` or `UPDATE`. A row that is deleted or gone is a `DELETE`.
    Operation, "a rule:" {
        /// The first entry of the log decides. Without a position every row is an `INSERT`. A row that only its time
        /// found is an `UPDATE`.
        Log = "log",
        /// `INSERT` where the row's `created_at` is its `updated_at`.
        Timestamps = "timestamps",
    }
}

/// The owners whose table and partitions a dataset may have. Reading a table may run code of its owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owners {
    /// Any: the operator has named the table.
    Any,
    /// The service's role, and the owner of the schema if that is no superuser.
    Default,
    Named(Vec<String>),
}

/// A table that may be exported, as the operator says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Its name in requests, lists and file names.
    pub name: String,
    pub table: Table,
    pub owners: Owners,
    /// The columns that tell rows apart; `None`: the primary key.
    pub key: Option<Vec<String>>,
    pub columns: Columns,
    /// The column that says when a row was last changed.
    pub updated_at: Option<String>,
    pub created_at: Option<String>,
    /// The column that says whether a row is deleted, or when it was.
    pub deleted: Option<String>,
    /// The operator's condition on the rows that belong to it, SQL.
    pub filter: Option<String>,
    pub capture: Capture,
    pub operation: Operation,
    pub parquet: ParquetChoices,
    /// The size at which its files end, if a request names none.
    pub max_file_bytes: Option<u64>,
    /// True if the service tracks its table by itself.
    pub tracks: bool,
    /// The choice for exports whose request has none: true to make no file if there is nothing to export.
    pub skip_empty: bool,
    /// The age of a waiting change up to which a consumer is fresh. None: it goes by how often there are exports.
    pub fresh_within: Option<Duration>,
    pub masks: Masks,
    pub header: FileHeader,
}

/// The operator's choices of Parquet types for a dataset's columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ParquetChoices {
    /// True if a `numeric` of declared digits is a text, in place of a `DECIMAL`.
    pub numeric_texts: bool,
    pub uuid_texts: bool,
    pub time_texts: bool,
    /// True if arrays are a `LIST`, in place of a text.
    pub lists: bool,
    pub unrepresentable: Unrepresentable,
}

/// The treatment of a value that Parquet can't represent, such as `infinity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unrepresentable {
    #[default]
    Fail,
    Null,
    /// Every date, time and numeric column is written as text.
    Text,
}

impl ParquetChoices {
    /// Returns true if a column of this type is a text, though Parquet has a type for it.
    pub fn is_text(&self, kind: ColumnType) -> bool {
        let all_are_texts = self.unrepresentable == Unrepresentable::Text;
        match kind {
            ColumnType::Numeric => self.numeric_texts || all_are_texts,
            ColumnType::Uuid => self.uuid_texts,
            ColumnType::Time => self.time_texts || all_are_texts,
            ColumnType::Date | ColumnType::Timestamp | ColumnType::Timestamptz => all_are_texts,
            _ => false,
        }
    }
}

impl Dataset {
    /// The dataset of a table, with the default of each option.
    pub fn new(name: String, table: Table) -> Dataset {
        Dataset {
            name,
            table,
            owners: Owners::Any,
            key: None,
            columns: Columns::All,
            updated_at: None,
            created_at: None,
            deleted: None,
            filter: None,
            capture: Capture::Triggers,
            operation: Operation::Log,
            parquet: ParquetChoices::default(),
            max_file_bytes: None,
            tracks: false,
            skip_empty: false,
            fresh_within: None,
            masks: Masks::default(),
            header: FileHeader::default(),
        }
    }

    /// The demo table, and any `users` of its schema.
    pub fn users() -> Dataset {
        let columns = ["id", "name", "email", "created_at", "updated_at", "is_deleted"];
        Dataset {
            columns: Columns::Only(columns.map(str::to_owned).into()),
            updated_at: Some("updated_at".to_owned()),
            created_at: Some("created_at".to_owned()),
            deleted: Some("is_deleted".to_owned()),
            operation: Operation::Timestamps,
            ..Dataset::new(USERS.to_owned(), Table { schema: None, name: "users".to_owned() })
        }
    }

    pub fn allows(&self, export_type: ExportType) -> bool {
        self.capture != Capture::None || export_type == ExportType::Full
    }

    /// Returns the type of its export where this type is wanted, and a full export may be made instead if `heals`.
    pub fn healed_type(&self, wanted: ExportType, heals: bool) -> ExportType {
        if heals && !self.allows(wanted) { ExportType::Full } else { wanted }
    }

    /// Returns true if its table has the name and the times of the demo's.
    pub fn is_like_users(&self) -> bool {
        let users = Dataset::users();
        let times = |it: &Dataset| (it.updated_at.clone(), it.created_at.clone(), it.deleted.clone());
        self.name == users.name && self.table.name == users.table.name && times(self) == times(&users)
    }
}

/// The dataset that is meant where none is named, and which no file name mentions.
pub const USERS: &str = "users";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// A table that has its rows itself.
    Table,
    /// A table whose rows are in partitions.
    Partitioned,
    /// A view. Only a dataset without capture may have one, or a relation of the following kinds.
    View,
    MaterializedView,
    ForeignTable,
}

impl RelationKind {
    /// Returns the kind of a relation with this `relkind` of `pg_class`. `None`: no dataset may have it.
    pub fn from_relkind(relkind: &str) -> Option<RelationKind> {
        match relkind {
            "r" => Some(RelationKind::Table),
            "p" => Some(RelationKind::Partitioned),
            "v" => Some(RelationKind::View),
            "m" => Some(RelationKind::MaterializedView),
            "f" => Some(RelationKind::ForeignTable),
            _ => None,
        }
    }

    /// Returns true if LOCK takes the relation, with its partitions or with the tables that a view reads.
    pub fn can_be_locked(self) -> bool {
        !matches!(self, RelationKind::MaterializedView | RelationKind::ForeignTable)
    }
}

/// A column that has the same value in every row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownColumn {
    /// The index of the column in the file.
    pub index: usize,
    /// The value in its binary form; `None`: null.
    pub value: Option<&'static [u8]>,
}

/// The schema of a dataset's table at a moment.
#[derive(Clone, Debug)]
pub struct TableSchema {
    /// The table, with its schema.
    pub table: Table,
    /// The columns that tell rows apart. None is ever null. Empty only if the dataset has no capture.
    pub key: Vec<KeyColumn>,
    /// The columns of the table that a file has, in order.
    pub columns: Vec<TableColumn>,
    /// The first column of a delta: `INSERT`, `UPDATE` or `DELETE`.
    pub operation: TableColumn,
    /// The columns of a file behind those of the table.
    pub meta: Vec<MetaColumn>,
    /// Says when a row was last changed: a `timestamptz`, or a `timestamp` that is taken for UTC.
    pub updated_at: Option<TableColumn>,
    /// Says when a row was made, as `updated_at`; `None`: a delta's operation isn't told by it.
    pub created_at: Option<TableColumn>,
    /// Says whether a row is deleted, or when it was: a `boolean`, or a time.
    pub deleted: Option<TableColumn>,
    /// True if no row has a null in `deleted`.
    pub deleted_is_set: bool,
    /// The types of the columns that its files have, or that decide what they have, by their names.
    pub types: BTreeMap<String, String>,
    /// The state of its columns that a position remembers for the guard.
    pub guard_state: GuardState,
    /// True if a file tells only of some rows what they hold.
    pub is_filtered: bool,
    pub relation: RelationKind,
    /// The columns that the dataset masks and the table lacks.
    pub missing_masked: Vec<String>,
    /// The masked columns that the database doesn't remember yet.
    pub newly_masked: Vec<String>,
}

impl TableSchema {
    /// As it is read for files of this format: the columns that are lists in Parquet are texts in the others.
    pub fn in_format(mut self, format: Format) -> TableSchema {
        for column in self.columns.iter_mut().filter(|_| format == Format::Parquet) {
            if let Some(element) = column.list {
                column.wire_format = WireFormat::List(element);
            }
        }
        self
    }

    /// Returns true if these columns, in this order, are its key.
    pub fn has_key(&self, columns: &[String]) -> bool {
        self.key.iter().map(|part| &*part.column.name).eq(columns)
    }

    pub fn has_masked_key(&self) -> bool {
        self.key.iter().any(|part| part.column.mask.is_some())
    }

    /// The columns of an export's file, in order: a delta has the operation first.
    pub fn file_columns(&self, export_type: ExportType) -> Vec<TableColumn> {
        let operation = Some(&self.operation).filter(|_| export_type == ExportType::Delta);
        let meta = self.meta.iter().copied().map(meta_column);
        operation.into_iter().chain(&self.columns).cloned().chain(meta).collect()
    }

    /// Returns the column in which every row of a full export has the same value: `deleted`, if the files have it.
    ///
    /// It needn't be read: a boolean is an eighth of the time that reading a user takes the server.
    pub fn known_if_alive(&self) -> Option<KnownColumn> {
        let deleted = self.deleted.as_ref()?;
        let index = self.columns.iter().position(|column| column.name == deleted.name)?;
        match deleted.kind {
            ColumnType::Bool if self.deleted_is_set => Some(KnownColumn { index, value: Some(&[0]) }),
            ColumnType::Bool => None,
            // The time of the deletion is null.
            _ => Some(KnownColumn { index, value: None }),
        }
    }

    /// Returns the change time if no column of the file has it for every row. The watermark needs it all the same.
    pub fn hidden_time(&self) -> Option<&TableColumn> {
        let is_hidden = |time: &&TableColumn| self.columns.iter().all(|column| column.name != time.name);
        self.updated_at.as_ref().filter(|time| self.is_filtered || is_hidden(time))
    }

    /// With the columns that somebody selects, of those there are.
    pub fn narrowed(&self, selection: &Selection) -> TableSchema {
        let Some(names) = &selection.columns else { return self.clone() };
        let find = |name: &String| self.columns.iter().find(|column| column.name == *name).cloned();
        TableSchema { columns: names.iter().filter_map(find).collect(), ..self.clone() }
    }

    /// The columns of an export's file and the key, as they are saved with the job, of the rows of this snapshot.
    pub fn saved_columns(&self, export_type: ExportType, snapshot: Option<&str>) -> FileColumns {
        let saved = |column: TableColumn| FileColumn {
            wire: match column.wire_format {
                WireFormat::Binary if column.mask.is_none() => SavedWireFormat::Binary,
                WireFormat::List(_) => SavedWireFormat::Binary,
                WireFormat::Binary | WireFormat::Written => SavedWireFormat::Text,
            },
            type_name: column.file_type().to_owned(),
            base: column.domain_base.clone().filter(|_| column.mask.is_none()),
            mask: column.mask.as_ref().map(MaskRule::to_string),
            name: column.file_name().into_owned(),
            meta: column.meta,
        };
        FileColumns {
            columns: self.file_columns(export_type).into_iter().map(saved).collect(),
            key: self.key.iter().map(|part| part.column.file_name().into_owned()).collect(),
            table: self.table.to_string(),
            snapshot: snapshot.map(str::to_owned),
            begins: false,
        }
    }
}

/// A dataset, and what its table looks like now.
#[derive(Clone, Debug)]
pub struct Description {
    pub dataset: Arc<Dataset>,
    /// The schema of its table, or the faults of the dataset. No faults, if the role can't see the table.
    pub schema: Result<TableSchema, Faults>,
    /// The right to the table that the database role lacks. `None`: it lacks none, or there is no table.
    pub unreadable: Option<Fault>,
    /// About how many rows the table has; `None`: nobody has counted yet.
    pub rows: Option<u64>,
    /// The size of the table without its indexes, in bytes.
    pub bytes: u64,
    /// True if its changes are captured, as far as they shall be.
    pub captured: bool,
    /// Why its triggers can't write to the change log, and what helps. `None`: they can, or the dataset needs none.
    pub log_obstacle: Option<String>,
    /// Why the service can't track its table by itself, if a pattern tells it to and it has tried.
    pub why_untracked: Option<String>,
}

impl Description {
    /// Returns the main reason why a consumer can't export the dataset now, as a word of the API. `None`: it is ready.
    pub fn reason(&self) -> Option<&'static str> {
        match &self.schema {
            _ if self.unreadable.is_some() => Some("permission_denied"),
            Err(Faults(faults)) if faults.iter().any(Fault::is_of_removed_mask) => Some("mask_removed"),
            Err(Faults(faults)) if faults.iter().any(Fault::is_of_missing_mask) => Some("mask_column_missing"),
            Err(_) => Some("dataset_mismatch"),
            Ok(_) if !self.captured => Some("not_tracked"),
            Ok(_) => self.log_obstacle.as_ref().map(|_| "permission_denied"),
        }
    }
}
