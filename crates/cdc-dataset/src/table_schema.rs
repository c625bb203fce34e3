//! A table as it was read at a moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::column::{KeyColumn, TableColumn, WireFormat};
use crate::columns::{FileColumn, FileColumns, SavedWireFormat};
use crate::dataset::Dataset;
use crate::fault::{Fault, Faults};
use crate::guard_state::GuardState;
use crate::mask::MaskRule;
use crate::selection::Selection;
use pg_rows::column::ColumnType;
use pg_rows::encoding::Format;
use pg_rows::export_type::ExportType;
use pg_rows::meta::MetaColumn;
use pg_session::table_name::Table;

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
    /// Says when a row was last changed: a `timestamptz`, or a `timestamp` by a clock of `time_zone`.
    pub updated_at: Option<TableColumn>,
    /// The time zone of `updated_at` if the column has none. `None`: UTC.
    pub time_zone: Option<String>,
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
        let meta = self.meta.iter().copied().map(TableColumn::of_meta);
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
        self.updated_at.as_ref().filter(|time| self.is_filtered || self.time_zone.is_some() || is_hidden(time))
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
    /// Why its table can't be tracked: no triggers can capture its changes, or the service has tried it for a pattern.
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
