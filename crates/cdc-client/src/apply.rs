//! Applies the exports of a consumer's lanes to tables of another Postgres.
//!
//! One transaction of the target applies an export, or all exports of a job, and moves the positions. So each export
//! is applied exactly once, even if processes are killed or several processes apply.
//!
//! Must not know where exports are stored, or the service's own database.

pub(crate) mod input;

mod alter;
mod connections;
mod line_counter;
mod load;
mod merge;
mod ownership;
mod position;
mod session;
mod statement;
mod table;
mod transaction;

use std::io;
use std::sync::Arc;

use sqlx::PgConnection;

use cdc_manifest::{ConsumerId, Manifest};
use pg_session::failure::{SqlFailure, sqlstate};
use pg_session::table_name::Table;

pub use connections::TargetConnections;
pub(crate) use position::TargetPosition;
pub(crate) use transaction::{MemberExport, TransactionFailure, apply};

#[derive(Clone, Debug)]
pub struct TargetSettings {
    /// The target table. `None` means the name of the source table.
    pub table: Option<Table>,
    /// The schema of the target tables. `None` means the schema of each source table.
    pub schema: Option<String>,
    pub keeps_meta: bool,
    /// True if a full export of another database may replace the rows.
    pub adopts: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target or the export doesn't fulfill a requirement.
    #[error("{code}: {why}")]
    Refused { code: &'static str, why: String },
    #[error("the target database is not available")]
    Unavailable(#[source] sqlx::Error),
    #[error("locked: {holder} holds a lock that was waited for ({action}): try again once that session has ended")]
    Locked { action: &'static str, holder: String },
    #[error("the target database refused {action}")]
    Sql {
        action: &'static str,
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

    fn during(action: &'static str, cause: sqlx::Error) -> Error {
        match SqlFailure::of(&cause) {
            // A missing database, a missing role, a wrong password, or no room for locks needs an operator.
            _ if matches!(&*sqlstate(&cause), "3D000" | "28000" | "28P01" | "53200") => Error::Sql { action, cause },
            SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::ReadOnly | SqlFailure::Conflict => {
                Error::Unavailable(cause)
            }
            SqlFailure::ForeignServer if sqlstate(&cause).starts_with("08") => Error::Unavailable(cause),
            SqlFailure::LockTimeout => Error::Locked { action, holder: "another session".to_owned() },
            _ => Error::Sql { action, cause },
        }
    }

    pub fn is_of_another_lane(&self) -> bool {
        matches!(self, Error::Refused { code: "another_lane", .. })
    }

    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

const POSITIONS_SCHEMA: &str = "cdc_apply";

const INSPECT_TABLE: &str = "to read the table's definition";
const BEGIN: &str = "to begin a transaction";
const COMMIT: &str = "to commit";

trait During<T> {
    fn during(self, action: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, action: &'static str) -> Result<T, Error> {
        self.map_err(|cause| Error::during(action, cause))
    }
}

#[derive(Debug)]
pub(crate) enum Applied {
    /// The export is applied. The remarks name differences between the table and the source.
    Done(Changes, Vec<String>),
    /// The position of the table has changed since it was read. The table may have this export and others.
    PositionMoved,
    /// The export can't be applied, for this reason. Only a full export can come next.
    NeedsFullExport(String),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub written: u64,
    /// The number of deleted rows. A full export deletes all rows of before.
    pub deleted: u64,
}

/// A table of another Postgres, and the lane whose exports are applied to it.
#[derive(Clone)]
pub struct Target {
    connections: Arc<TargetConnections>,
    settings: TargetSettings,
    consumer: ConsumerId,
    dataset: String,
    /// The digest of the position that was read last. The caller chose the next export by it.
    read_digest: Option<String>,
    /// The only table with exports of this lane, if the settings name no table.
    lane_table: Option<Table>,
}

impl Target {
    pub fn new(
        connections: Arc<TargetConnections>,
        settings: TargetSettings,
        consumer: ConsumerId,
        dataset: String,
    ) -> Target {
        Target { connections, settings, consumer, dataset, read_digest: None, lane_table: None }
    }

    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// Reads the table's position. Returns `None` if no export of the lane was applied to it.
    pub async fn position(&mut self) -> Result<Option<TargetPosition>, Error> {
        let found = self.connections.transaction(async |mut tx| {
            let found = self.position_in(&mut tx).await?;
            tx.commit().await.during(COMMIT)?;
            Ok(found)
        });
        let found = found.await.map_err(|failure| failure.error)?;
        if self.settings.table.is_none() {
            // An earlier `--table` may have chosen another name than the source's.
            self.lane_table = found.as_ref().map(TargetPosition::table).transpose()?;
        }
        self.read_digest = found.as_ref().map(|found| found.digest.clone());
        Ok(found)
    }

    async fn position_in(&self, tx: &mut PgConnection) -> Result<Option<TargetPosition>, Error> {
        let found = position::read(tx, &self.settings, &self.consumer, &self.dataset).await?;
        if let Some(found) = &found {
            found.require_lane(&self.consumer, &self.dataset)?;
            table::require_own(tx, &found.table()?, Some(found)).await?;
        }
        Ok(found)
    }

    fn table(&self, manifest: &Manifest) -> Result<Table, Error> {
        let unnamed =
            || Error::refused("table_name", "the manifest of the export names no table: use --table to name one");
        let table = match (self.settings.table.as_ref().or(self.lane_table.as_ref()), &manifest.export.table) {
            (Some(table), _) => table.clone(),
            (None, Some(name)) => {
                let source: Table = name.parse().map_err(|_| unnamed())?;
                Table { schema: self.settings.schema.clone().or(source.schema), ..source }
            }
            (None, None) => return Err(unnamed()),
        };
        let table = position::with_schema(table);
        if table.schema.as_deref().is_some_and(is_reserved) {
            let why =
                format!("{table}: no table of this schema can be a target: --table or --target-schema names another");
            return Err(Error::refused("table_name", why));
        }
        // Postgres would truncate a longer name, so that two names could mean the same table.
        let is_long = |name: &str| name.len() > 63;
        if is_long(&table.name) || table.schema.as_deref().is_some_and(is_long) {
            return Err(Error::refused("table_name", format!("{table}: a name has at most 63 bytes")));
        }
        Ok(table)
    }
}

/// Returns true if tables of this schema are Postgres's or ours. Postgres reserves all names that begin with `pg_`.
fn is_reserved(schema: &str) -> bool {
    schema.starts_with("pg_") || [POSITIONS_SCHEMA, "cdc_export", "information_schema"].contains(&schema)
}
