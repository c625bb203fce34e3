#![doc = include_str!("../README.md")]

mod arrivals;
pub mod capture;
mod captured;
mod catalog_check;
mod connections;
mod continuity;
mod copy;
mod description;
mod exported_snapshot;
mod filter;
mod guard;
mod import;
mod key;
mod key_index;
mod lag;
mod opening;
mod owners;
mod parallel_apply;
mod placed;
mod progress;
mod purge;
mod quote;
mod reader_slots;
mod reading;
mod relation_locks;
mod relations;
mod rights;
mod role_path;
mod row;
mod rows;
mod select;
mod selection;
mod session;
mod snapshot;
mod table_schema;
mod trigger;
mod value;
mod watermark;

use std::fmt;
use std::sync::Arc;

use sqlx::PgConnection;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError};

use crate::capture::{Removals, functions, untracking};
use crate::reader_slots::ReaderSlots;
use cdc_dataset::{Dataset, Fault, Faults};
use pg_session::failure::{SqlFailure, sqlstate};
use pg_session::pool::{Pool, PoolUse};
use pg_session::table_name::Table;

pub use catalog_check::Findings;
pub use connections::ExportConnections;
pub use continuity::{Continuity, ExportReport};
pub use guard::LaneEvidence;
pub use lag::ChangesCount;
pub use opening::Refused;
pub use progress::{CurrentExport, Progress, Reached};
pub use purge::Caps;
pub use reading::SnapshotReader;
pub use relations::Candidate;
pub use row::{ReceiverClosed, RowLayout, RowReceiver, RowRequest};
pub use rows::Rows;
pub use snapshot::{Purpose, Snapshot, SnapshotTable};
pub use watermark::{ConsumerLag, LogUse, NewPosition, Position, Readiness, Waiting};

/// The statements that create the crate's own tables. The head of the file says which words to replace.
pub const SCHEMA: &str = include_str!("../schema.sql");

/// Access to the database that has the tables.
///
/// # Errors
/// Every call fails if the database fails, or a dataset's table isn't as the dataset says. Its own documentation names
/// what else makes it fail.
#[derive(Clone, Debug)]
pub struct Source {
    options: PgConnectOptions,
    pool: Pool,
    reader_slots: ReaderSlots,
}

impl Source {
    /// Exports over connections made with `options`, and reads a full export with `readers` connections at once, if no
    /// other export has them. `pool` is for everything that is no export.
    pub fn new(options: PgConnectOptions, pool: impl Into<Pool>, readers: u32) -> Source {
        // One reader is the export's own.
        let reader_slots = ReaderSlots::new(options.clone(), readers.saturating_sub(1) as usize);
        Source { options, pool: pool.into(), reader_slots }
    }

    /// Removes the trigger functions that no trigger calls any more, and renews them for new owners of tables.
    pub async fn tend_functions(&self, removals: &mut Removals) -> Result<(), Error> {
        functions::tend(self.pool.inner(), removals).await.map_err(Error::from_sql("pg_proc"))
    }

    /// Returns the tables whose changes are captured although no dataset of the catalog needs them.
    pub async fn tables_without_dataset(
        &self,
        datasets: &[Arc<Dataset>],
        left_out: &[&Table],
    ) -> Result<Vec<Table>, Error> {
        self.with("pg_class", async |conn| untracking::without_dataset(conn, datasets, left_out).await).await
    }

    /// Runs statements about a relation over a connection of the pool.
    async fn with<T>(
        &self,
        relation: impl fmt::Display,
        statements: impl AsyncFnOnce(&mut PgConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let failed = Error::from_sql(relation);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        statements(&mut conn).await.map_err(failed)
    }

    pub fn pool_use(&self) -> PoolUse {
        self.pool.usage()
    }
}

/// Why reading failed. The texts name no SQL: callers show them to clients.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Postgres can't be reached, went away or was told to stop.
    #[error("{}", unavailable(.0))]
    Unavailable(#[source] sqlx::Error),
    #[error("another transaction was in the way of {relation}")]
    LockConflict {
        /// The table's name, or that of a view or a table and of what is locked beneath it, as a message has it.
        relation: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("a foreign server that `{table}` reads has refused or can't be reached (SQLSTATE {code})")]
    ForeignServer {
        /// The name of the foreign table, or of a view above it.
        table: String,
        code: Box<str>,
        #[source]
        cause: sqlx::Error,
    },
    #[error("the table `{table}` is missing, or a column of it")]
    TableMissing {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("the changes of dataset `{0}` are not captured, or not by its key: run `cdc-export track {0}` first")]
    NotTracked(String),
    #[error("dataset `{0}` has capture = \"none\", so it has full exports alone")]
    FullOnly(String),
    #[error("the table is not as its dataset says: {0}")]
    Mismatch(Faults),
    #[error("what changed since the last export is not known exactly ({why}): {remedy}")]
    FullExportNeeded {
        /// The verdict of the guard.
        why: Continuity,
        remedy: Remedy,
    },
    /// The job was made before the database was put back, or in the one that this is a copy of: its file may be
    /// somebody's already, and under one id there is one file.
    #[error(
        "the database was put back or copied since this export was asked for, and may have handed out its file already, so it isn't made \
         again: {0}"
    )]
    JobRestored(Remedy),
    #[error(
        "{session} waited {seconds} seconds for an ACCESS EXCLUSIVE lock on `{relation}`, so the export ended and is tried \
         again later"
    )]
    GaveWay {
        /// The session, with its role and application.
        session: String,
        relation: String,
        seconds: u64,
    },
    /// The locks of the export would leave too little room for those of others.
    #[error(
        "the export needs {locks} locks at once, of the tables with their partitions and indexes, and takes at most half \
         of the {free} that Postgres is sure to have free now: raise max_locks_per_transaction"
    )]
    TooManyLocks { locks: i64, free: i64 },
    /// The role may not read the table, or row-level security would hide rows: what is missing, and who gives it.
    #[error("{0}")]
    NotReadable(Fault),
    /// Postgres says that the role may not, though nothing was missing before.
    #[error("the database role may not read the whole table `{table}`: {}", missing_right(cause))]
    Denied {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("the table `{table}` holds a text that is not UTF-8")]
    InvalidText {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("a row's `{column}` has more bytes than CELL_MAX_BYTES: shorten the value or raise that setting")]
    RowTooLarge { column: String },
    #[error(
        "a row of `{table}`, or a value of it, is more than Postgres has room for in a text: shorten it or leave the column out"
    )]
    RowBeyondPostgres {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    /// A value that its type's own code doesn't write, that a view can't compute, or that is damaged.
    #[error(
        "Postgres could not read or compute a value of `{table}` (SQLSTATE {code}{}): a `select` of its columns fails too",
        message_without_values(cause).map(|message| format!(", {message}")).unwrap_or_default()
    )]
    Unreadable {
        table: String,
        /// The SQLSTATE of the error (PostgreSQL documentation, appendix A).
        code: String,
        #[source]
        cause: sqlx::Error,
    },
    /// A function of an index, of statistics or of a constraint of the table fails while Postgres plans the read.
    #[error("{0}")]
    CantPlan(String),
    #[error("Postgres refused to read the table")]
    Sql(#[source] sqlx::Error),
    #[error("Postgres sent something unexpected: {0}")]
    Protocol(&'static str),
    /// Nobody takes the rows any more; the other side says why.
    #[error("nobody takes the rows")]
    ReceiverGone,
}

/// The remedy that makes a consumer's exports exact again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Remedy {
    #[error("a full export is needed")]
    FullExport,
    /// `track` of this dataset, whose table isn't captured, and then a full export: one from before the triggers are
    /// back would need another one.
    #[error("`cdc-export track {0}` puts the triggers back, or says what is in the way; then a full export is needed")]
    TrackFirst(String),
}

impl Error {
    /// Returns true if the error says nothing of what was read: the server had no room or no time, something was in the
    /// way, or the role may not.
    fn is_of_the_server(&self) -> bool {
        match self {
            Error::Unavailable(_)
            | Error::LockConflict { .. }
            | Error::ForeignServer { .. }
            | Error::NotReadable(_)
            | Error::Denied { .. } => true,
            Error::Sql(cause) => {
                let code = sqlstate(cause);
                ["40", "53", "54", "55", "57", "58"].iter().any(|class| code.starts_with(class))
            }
            _ => false,
        }
    }

    /// Removes the message of Postgres from an error if the dataset has masks: it may quote a value.
    fn withheld(mut self, dataset: &Dataset) -> Error {
        if dataset.masks.rules.is_empty() {
            return self;
        }
        match &mut self {
            Error::TableMissing { cause, .. }
            | Error::InvalidText { cause, .. }
            | Error::RowBeyondPostgres { cause, .. }
            | Error::Unreadable { cause, .. }
            | Error::LockConflict { cause, .. }
            | Error::ForeignServer { cause, .. }
            | Error::Denied { cause, .. }
            | Error::Sql(cause)
            | Error::Unavailable(cause)
                if cause.as_database_error().is_some() && message_without_values(cause).is_none() =>
            {
                let why = "whose message is withheld, because the dataset has masks";
                let why = format!("SQLSTATE {}, {why}", sqlstate(cause));
                *cause = sqlx::Error::Protocol(why);
            }
            Error::CantPlan(why) => {
                *why = format!(
                    "Postgres can't plan a read of `{}`, and its message is withheld, because the dataset has masks",
                    dataset.table
                );
            }
            _ => {}
        }
        self
    }

    /// Returns true if a full export would be possible now, and others could follow it.
    pub fn needs_full_export(&self) -> bool {
        matches!(self, Error::FullExportNeeded { remedy: Remedy::FullExport, .. } | Error::FullOnly(_))
    }

    fn from_sql(table: impl fmt::Display) -> impl Fn(sqlx::Error) -> Error {
        move |cause| {
            let table = table.to_string();
            match SqlFailure::of(&cause) {
                SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::Cancelled | SqlFailure::ReadOnly => {
                    Error::Unavailable(cause)
                }
                SqlFailure::ForeignServer => {
                    let code = sqlstate(&cause).into();
                    Error::ForeignServer { table, code, cause }
                }
                SqlFailure::LockTimeout | SqlFailure::Conflict => {
                    Error::LockConflict { relation: format!("`{table}`"), cause }
                }
                SqlFailure::NotThere => Error::TableMissing { table, cause },
                SqlFailure::Denied => Error::Denied { table, cause },
                SqlFailure::InvalidText => Error::InvalidText { table, cause },
                // Raised by our own `refuse_cell`, with the column for a message.
                SqlFailure::Refused if sqlstate(&cause) == "CE001" => {
                    let column = cause.as_database_error().map(|e| e.message().to_owned()).unwrap_or_default();
                    Error::RowTooLarge { column }
                }
                SqlFailure::Refused if sqlstate(&cause) == role_path::CANT_PLAN => {
                    Error::CantPlan(role_path::cant_plan(table, &cause))
                }
                SqlFailure::Refused | SqlFailure::Duplicate | SqlFailure::Client => Error::Sql(cause),
            }
        }
    }
}

/// Says which right Postgres misses. A function of the table may raise the same error with a text of its own, in which
/// a row may be. Only Postgres's own checks are quoted.
fn missing_right(cause: &sqlx::Error) -> String {
    match cause.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>()) {
        Some(error) if error.routine().is_some_and(|routine| CHECKS_OF_RIGHTS.contains(&routine)) => {
            error.message().to_owned()
        }
        Some(_) => format!("SQLSTATE {}, whose message is in the log", sqlstate(cause)),
        // It was withheld before, and says so.
        None => cause.to_string(),
    }
}

/// The functions of Postgres that refuse for want of a right.
const CHECKS_OF_RIGHTS: [&str; 3] = ["aclcheck_error", "aclcheck_error_col", "check_enable_rls"];

/// The source files of Postgres whose messages name no value of a row: of temporary and other files, of limits on
/// connections, of statements that are cancelled, and of damaged blocks and large values.
const FILES_WITHOUT_VALUES: [&str; 9] =
    ["buffile.c", "bufmgr.c", "fd.c", "heaptoast.c", "md.c", "miscinit.c", "postgres.c", "postinit.c", "proc.c"];

/// Returns the message of Postgres about a lack of resources, a cancelled statement or damaged data, if it names no
/// value. A function of the table may raise the same error with a text of its own.
fn message_without_values(cause: &sqlx::Error) -> Option<&str> {
    let error = cause.as_database_error()?.try_downcast_ref::<PgDatabaseError>()?;
    let is_quoted = error.code().starts_with("53") || matches!(error.code(), "57014" | "XX001");
    (is_quoted && error.file().is_some_and(|file| FILES_WITHOUT_VALUES.contains(&file))).then(|| error.message())
}

/// Says why Postgres does not serve.
fn unavailable(cause: &sqlx::Error) -> String {
    if let Some(message) = message_without_values(cause) {
        return format!("Postgres says: {message}");
    }
    match (&*sqlstate(cause), SqlFailure::of(cause)) {
        ("53200", _) => {
            "Postgres has no memory left, or no room for the locks of so many tables: raise max_locks_per_transaction, \
             or ask for fewer datasets at once"
                .to_owned()
        }
        (code, _) if code.starts_with("53") => format!("Postgres lacks a resource (SQLSTATE {code}): the log has why"),
        (_, SqlFailure::Client) => "an answer of Postgres can't be read: the log has why".to_owned(),
        (_, _) => "the connection to Postgres was lost".to_owned(),
    }
}

impl From<ReceiverClosed> for Error {
    fn from(ReceiverClosed: ReceiverClosed) -> Error {
        Error::ReceiverGone
    }
}
