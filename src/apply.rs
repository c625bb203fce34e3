//! Applies the exports of a consumer's lane to a table of another Postgres.
//!
//! Each export is one transaction of the target, which also moves the position. So each export is applied exactly once,
//! even if processes are killed or several processes apply.
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
mod search_path;
mod statement;
mod table;
mod trust;

use std::io;
use std::sync::Arc;

use sqlx::{Connection, PgConnection};

use crate::apply::catalog::{OPERATION, POSITIONS_SCHEMA};
use crate::apply::input::Input;
use crate::apply::merge::Merge;
use crate::apply::table::TargetTable;
use crate::connection::failure::{SqlFailure, sqlstate};
use crate::dataset::Table;
use crate::failpoint;
use crate::job::ConsumerId;
use crate::manifest::{Chained, Manifest, ManifestColumn};

pub use connections::TargetConnections;
pub use position::TargetPosition;

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
    /// The target is unavailable. A later attempt may succeed.
    #[error("the target database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// Another session held a lock for too long.
    #[error("locked: {holder} holds a lock that is needed for {action}: try again once that session has ended")]
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

    /// Returns true if a later attempt may succeed.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

const BEGIN: &str = "to begin a transaction";

/// Adds the refused action to an error of sqlx.
trait During<T> {
    fn during(self, action: &'static str) -> Result<T, Error>;
}

impl<T> During<T> for Result<T, sqlx::Error> {
    fn during(self, action: &'static str) -> Result<T, Error> {
        self.map_err(|cause| match SqlFailure::of(&cause) {
            // A missing database, a missing role or a wrong password needs an operator.
            _ if matches!(&*sqlstate(&cause), "3D000" | "28000" | "28P01") => Error::Sql { action, cause },
            SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::Conflict => Error::Unavailable(cause),
            SqlFailure::LockTimeout => Error::Locked { action, holder: "another session".to_owned() },
            _ => Error::Sql { action, cause },
        })
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

    /// Reads the table's position. Returns `None` if no export of the lane was applied to it.
    ///
    /// # Errors
    /// If the database can't be read, or several tables have exports of the lane and the settings name none.
    pub async fn position(&mut self) -> Result<Option<TargetPosition>, Error> {
        let mut conn = self.connections.take().await?;
        let mut tx = conn.begin().await.during(BEGIN)?;
        let process = lock::process(&mut tx).await?;
        let found = lock::name_holders(&self.connections, process, self.position_in(&mut tx)).await?;
        tx.commit().await.during("to commit")?;
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

    /// Applies an export, unless the table has it already. `files` are the export's files, in their order.
    ///
    /// # Errors
    /// If the target refuses the export, or is unavailable. After [`Error::Unavailable`] the export may have been
    /// applied. The next call detects that and doesn't apply it again.
    pub async fn apply(&mut self, manifest: &Manifest, files: Vec<Input>) -> Result<Applied, Error> {
        failpoint!("apply.fetched", Err(Error::refused("failpoint", "apply.fetched")));
        let table = self.table(manifest)?;
        let mut conn = self.connections.take().await?;
        let mut tx = conn.begin().await.during(BEGIN)?;
        let process = lock::process(&mut tx).await?;
        let work = self.prepare_in(&mut tx, &table);
        lock::name_holders(&self.connections, process, work).await?;
        tx.commit().await.during("to commit")?;
        let mut tx = conn.begin().await.during(BEGIN)?;
        let process = lock::process(&mut tx).await?;
        let work = self.apply_in(&mut tx, &table, manifest, files);
        let applied = lock::name_holders(&self.connections, process, work).await?;
        if matches!(applied, Applied::Done(..)) {
            failpoint!("apply.applied", Err(Error::refused("failpoint", "apply.applied")));
            tx.commit().await.during("to commit")?;
            failpoint!("apply.committed", Err(Error::Unavailable(sqlx::Error::PoolClosed)));
        } else {
            tx.rollback().await.during("to roll back")?;
        }
        self.connections.keep(conn);
        Ok(applied)
    }

    /// Creates the table of the positions and the schema of a new table, if they are missing. Needs a transaction of
    /// its own, so that first exports of other tables don't wait for this one.
    async fn prepare_in(&self, tx: &mut PgConnection, table: &Table) -> Result<(), Error> {
        position::create_table(tx).await?;
        match &table.schema {
            Some(schema) if self.read_digest.is_none() => alter::create_schema(tx, schema).await,
            _ => Ok(()),
        }
    }

    /// Applies an export within a transaction, and moves the position.
    async fn apply_in(
        &self,
        tx: &mut PgConnection,
        table: &Table,
        manifest: &Manifest,
        files: Vec<Input>,
    ) -> Result<Applied, Error> {
        let export = &manifest.export;
        let target = position::target_name(table);
        let before = position::lock(tx, &target, &self.consumer, &self.dataset).await?;
        if let Some(position) = &before {
            position.require_lane(&self.consumer, &self.dataset)?;
            position.require_source(&export.source)?;
        }
        // The position has moved. Another process has applied exports, or this process has and lost the answer to its
        // COMMIT.
        let at = before.as_ref().map(|position| &position.digest);
        if at != self.read_digest.as_ref() || at == Some(&manifest.digest) {
            return Ok(Applied::PositionMoved);
        }
        if let Some(why) = export_obstacle(export, before.as_ref()) {
            return Ok(Applied::NeedsFullExport(why));
        }
        let target_table = match TargetTable::prepare(tx, table, manifest, before.as_ref(), &self.settings).await {
            Err(removed @ Error::ColumnRemoved(_)) => return Ok(Applied::NeedsFullExport(removed.to_string())),
            target_table => target_table?,
        };
        if let Some(why) = table_obstacle(export, before.as_ref(), &target_table) {
            return Ok(Applied::NeedsFullExport(why));
        }
        let trusted = &self.settings.trusted_owners;
        let changes = match target_table.replaces_all(manifest) {
            true => {
                search_path::use_trigger_search_path(tx, trusted).await?;
                let written = load::copy(tx, &target_table.table, &target_table.columns, files).await?;
                require_rows(export, written)?;
                target_table.add_missing_key(tx).await?;
                Changes { written, deleted: 0 }
            }
            false => {
                let rows = load::into_stage(tx, &target_table, manifest, files, trusted).await?;
                require_rows(export, rows)?;
                failpoint!("apply.staged", Err(Error::refused("failpoint", "apply.staged")));
                search_path::use_trigger_search_path(tx, trusted).await?;
                Merge::new(&target_table, manifest).run(tx).await?
            }
        };
        search_path::use_own_search_path(tx).await?;
        position::write(tx, &target, manifest, &target_table, self.settings.deleted.as_deref()).await?;
        Ok(Applied::Done(changes, target_table.remarks))
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

/// Returns the reason if this export can't be applied next, so that only a full export in csv can.
fn export_obstacle(export: &Chained, before: Option<&TargetPosition>) -> Option<String> {
    let job = &export.job;
    if !["full", "incremental", "delta"].contains(&export.export_type.as_str()) {
        return Some(format!("format: the export {job} has a type that this version doesn't know"));
    }
    if export.format != "csv" {
        return Some(format!("format: the export {job} is in {}, and only csv can be applied", export.format));
    }
    if export.is_base() {
        return None;
    }
    let Some(before) = before else {
        return Some(format!("gap: the table has no export yet, and the export {job} is not a full export"));
    };
    if export.previous.as_deref() != Some(&before.digest) {
        return Some(format!("gap: the export {job} doesn't follow the last export of the table"));
    }
    // A delta doesn't contain the column's values in unchanged rows.
    let is_known = |column: &&ManifestColumn| before.details.columns.contains(column) || column.name == OPERATION;
    let changed = export.columns.iter().find(|column| !is_known(column))?;
    Some(format!("schema_changed: the column {} is new, or has another type", changed.name))
}

/// Returns the reason if the state of the table allows only a full export.
fn table_obstacle(export: &Chained, before: Option<&TargetPosition>, target_table: &TargetTable) -> Option<String> {
    if export.export_type == "full" {
        return None;
    }
    let table = &target_table.table;
    if before.is_some_and(|before| before.details.oid != target_table.oid) {
        return Some(format!(
            "target_changed: {table} is another table than the one to which the earlier exports were applied"
        ));
    }
    // A column that was removed and added again lacks the values of unchanged rows.
    let is_other = |(name, number): &(&String, &i16)| {
        before.is_some_and(|before| before.details.numbers.get(*name).is_some_and(|had| had != *number))
    };
    if let Some((name, _)) = target_table.numbers.iter().find(is_other) {
        return Some(format!("target_changed: somebody has removed the column {name} of {table}, and added it again"));
    }
    // Rows that are not in the export would stay in the table.
    let has_others = export.is_base() && !target_table.is_empty;
    has_others.then(|| {
        format!("target_changed: {table} has rows already, and the export {} is not a full export", export.job)
    })
}

/// Returns an error if the number of rows differs from the manifest.
fn require_rows(export: &Chained, rows: u64) -> Result<(), Error> {
    if export.rows == rows.to_string() {
        return Ok(());
    }
    let why = format!("the files of the export {} have {rows} rows, and its manifest says {}", export.job, export.rows);
    Err(Error::refused("changed", why))
}
