//! A dataset: the operator's choice of a table, and of how it is exported.

use std::time::Duration;

use crate::header::FileHeader;
use crate::mask::Masks;
use pg_rows::column::ColumnType;
use pg_rows::export_type::ExportType;
use pg_session::table_name::Table;

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
    /// The time zone of the clock that writes `updated_at`, if the column has none: a name of the IANA database.
    pub time_zone: Option<String>,
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
            time_zone: None,
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

    /// Returns its time zone if that is another one than UTC.
    pub fn local_zone(&self) -> Option<&String> {
        self.time_zone.as_ref().filter(|zone| *zone != "UTC")
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
