//! Applies the exports of a consumer's lanes to tables of another Postgres.
//!
//! One transaction of the target applies an export, or all exports of a batch, and moves the positions. So each export
//! is applied exactly once, even if processes are killed or several processes apply.
//!
//! Must not know where exports are stored, or the service's own database.

pub mod input;

mod alter;
mod catalog;
mod connections;
mod key_type;
mod load;
mod lock;
mod merge;
mod position;
mod references;
mod search_path;
mod statement;
mod table;
mod transaction;
mod trust;

use std::io;
use std::sync::Arc;

use sqlx::{Connection, PgConnection};

use crate::apply::catalog::POSITIONS_SCHEMA;
use crate::connection::failure::{SqlFailure, sqlstate};
use crate::dataset::Table;
use crate::job::ConsumerId;
use crate::manifest::Manifest;

pub use connections::TargetConnections;
pub use position::TargetPosition;
pub use transaction::{MemberExport, TransactionFailure, apply};

/// The settings of a target.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The target table. `None` means the name of the source table.
    pub table: Option<Table>,
    /// The schema of a target table that `table` doesn't name. `None` means the schema of the source table.
    pub schema: Option<String>,
    /// The roles whose code may run with our role's rights, because they own the table or objects that it uses.
    pub trusted_owners: Vec<String>,
    /// True if new columns of the source are added to the table.
    pub adds_columns: bool,
    /// True if the table gets the columns of `meta`, too.
    pub keeps_meta: bool,
    /// True if a full export empties the table first. Otherwise readers never see an empty table.
    pub truncates: bool,
    /// The timestamp or boolean column that marks deleted rows. `None` means that deleted rows are removed.
    pub deleted: Option<String>,
}

/// The errors of applying an export.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target or the export doesn't fulfill a requirement.
    #[error("{code}: {why}")]
    Refused {
        /// The error code.
        code: &'static str,
        /// The reason and a remedy.
        why: String,
    },
    /// A column of the table was removed. Only a full export can restore its values.
    #[error("target_changed: the column {0} of the table is gone")]
    ColumnRemoved(String),
    /// A row references a row that is not there, or is to be deleted and is still referenced. Postgres says which.
    #[error("foreign_key: {0}: if that stays so, make the foreign key deferrable or drop it")]
    ForeignKey(String),
    /// The target is unavailable. A later attempt may succeed.
    #[error("the target database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Another session held a lock for too long.
    #[error("locked: {holder} holds a lock that was waited for ({action}): try again once that session has ended")]
    Locked {
        /// The action that needs the lock.
        action: &'static str,
        /// The sessions that hold it.
        holder: String,
    },
    /// The target's Postgres refused a statement.
    #[error("the target database refused {action}")]
    Sql {
        /// The refused action.
        action: &'static str,
        /// The cause.
        #[source]
        cause: sqlx::Error,
    },
    /// A file can't be read, or differs from the exported file.
    #[error("a file of the export can't be read")]
    Input(#[source] io::Error),
}

impl Error {
    fn refused(code: &'static str, why: impl Into<String>) -> Error {
        Error::Refused { code, why: why.into() }
    }

    /// Returns true if two rows would have the same unique values.
    fn is_of_unique_values(&self) -> bool {
        match self {
            Error::Refused { code, .. } => *code == "unique_values",
            Error::Sql { cause, .. } => SqlFailure::of(cause) == SqlFailure::Duplicate,
            _ => false,
        }
    }

    fn during(action: &'static str, cause: sqlx::Error) -> Error {
        match SqlFailure::of(&cause) {
            // A missing database, a missing role or a wrong password needs an operator.
            _ if matches!(&*sqlstate(&cause), "3D000" | "28000" | "28P01") => Error::Sql { action, cause },
            _ if sqlstate(&cause) == "53200" => {
                let why = "the target database is out of memory or of room for locks: if these are many tables, raise its \
                           max_locks_per_transaction";
                Error::refused("no_room", why)
            }
            SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::Conflict => Error::Unavailable(cause),
            SqlFailure::ForeignServer if sqlstate(&cause).starts_with("08") => Error::Unavailable(cause),
            SqlFailure::LockTimeout => Error::Locked { action, holder: "another session".to_owned() },
            _ => Error::Sql { action, cause },
        }
    }

    /// Returns true if a later attempt may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

const BEGIN: &str = "to begin a transaction";
const COMMIT: &str = "to commit";

/// Adds the refused action to an error of sqlx.
trait During<T> {
    fn during(self, action: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, action: &'static str) -> Result<T, Error> {
        self.map_err(|cause| Error::during(action, cause))
    }
}

/// The outcome of applying an export.
#[derive(Debug)]
pub enum Applied {
    /// The export is applied. The remarks name differences between the table and the source.
    Done(Changes, Vec<String>),
    /// The position of the table has changed since it was read. The table may have this export and others.
    PositionMoved,
    /// The export can't be applied, for this reason. Only a full export can come next.
    NeedsFullExport(String),
}

/// The numbers of rows that an export has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The number of inserted or updated rows.
    pub written: u64,
    /// The number of rows that were deleted, or marked as deleted.
    pub deleted: u64,
}

/// A table of another Postgres, and the lane whose exports are applied to it.
#[derive(Clone)]
pub struct Target {
    connections: Arc<TargetConnections>,
    settings: Settings,
    consumer: ConsumerId,
    dataset: String,
    /// The digest of the position that was read last. The caller chose the next export by it.
    read_digest: Option<String>,
    /// The only table with exports of this lane, if the settings name no table.
    lane_table: Option<Table>,
}

impl Target {
    /// Creates a target without connecting to it.
    pub fn new(
        connections: Arc<TargetConnections>,
        settings: Settings,
        consumer: ConsumerId,
        dataset: String,
    ) -> Target {
        Target { connections, settings, consumer, dataset, read_digest: None, lane_table: None }
    }

    /// Returns the dataset of the lane.
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Reads the table's position. Returns `None` if no export of the lane was applied to it.
    ///
    /// # Errors
    /// If the database can't be read, or several tables have exports of the lane and the settings name none.
    pub async fn position(&mut self) -> Result<Option<TargetPosition>, Error> {
        let mut conn = self.connections.take().await?;
        let mut tx = conn.begin().await.during(BEGIN)?;
        let process = lock::process(&mut tx).await?;
        let found = lock::name_holders(&self.connections, process, self.position_in(&mut tx)).await;
        let found = found.map_err(|failure| failure.error)?;
        tx.commit().await.during(COMMIT)?;
        self.connections.keep(conn);
        if self.settings.table.is_none() {
            // An earlier `--table` may have chosen another name than the source's.
            self.lane_table = found.as_ref().map(TargetPosition::table).transpose()?;
        }
        self.read_digest = found.as_ref().map(|found| found.digest.clone());
        Ok(found)
    }

    async fn position_in(&self, tx: &mut PgConnection) -> Result<Option<TargetPosition>, Error> {
        let Some(table) = &self.settings.table else {
            return position::read_for_lane(tx, &self.consumer, &self.dataset, self.settings.schema.as_deref()).await;
        };
        let found = position::read_for_table(tx, &position::target_name(table)).await?;
        if let Some(found) = &found {
            found.require_lane(&self.consumer, &self.dataset)?;
        }
        Ok(found)
    }

    fn table(&self, manifest: &Manifest) -> Result<Table, Error> {
        let unnamed =
            || Error::refused("table_unknown", "the manifest of the export names no table: use --table to name one");
        let table = match (self.settings.table.as_ref().or(self.lane_table.as_ref()), &manifest.export.table) {
            (Some(table), _) => table.clone(),
            (None, Some(name)) => {
                let named: Table = name.parse().map_err(|_| unnamed())?;
                Table { schema: self.settings.schema.clone().or(named.schema), ..named }
            }
            (None, None) => return Err(unnamed()),
        };
        let table = position::with_schema(table);
        if table.schema.as_deref().is_some_and(is_reserved) {
            let why = format!("{table}: no table of this schema can be a target: use --table to name another one");
            return Err(Error::refused("reserved_schema", why));
        }
        // Postgres would truncate a longer name, so that two names could mean the same table.
        let is_long = |name: &str| name.len() > 63;
        if is_long(&table.name) || table.schema.as_deref().is_some_and(is_long) {
            return Err(Error::refused("table_unknown", format!("{table}: a name has at most 63 bytes")));
        }
        Ok(table)
    }
}

/// Returns true if tables of this schema are Postgres's or ours. Postgres reserves all names that begin with `pg_`.
fn is_reserved(schema: &str) -> bool {
    schema.starts_with("pg_") || [POSITIONS_SCHEMA, "cdc_export", "information_schema"].contains(&schema)
}
