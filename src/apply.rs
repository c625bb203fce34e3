//! Apply: brings a table of another Postgres to where a consumer's exports are.
//!
//! Each export is one transaction of the target, which also moves the position: so each is applied exactly once,
//! whatever is killed, and whoever else applies. Knows neither where exports come from nor the service's own database.

pub mod input;

mod alter;
mod catalog;
mod key_type;
mod load;
mod merge;
mod position;
mod statement;
mod table;

use std::io;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

use crate::apply::catalog::OPERATION;
use crate::apply::input::Input;
use crate::apply::merge::Merge;
use crate::apply::table::TargetTable;
use crate::connection;
use crate::connection::failure::{SqlFailure, sqlstate};
use crate::dataset::Table;
use crate::failpoint;
use crate::job::ConsumerId;
use crate::manifest::{Chained, Manifest, ManifestColumn};

pub use position::TargetPosition;

/// The settings of a target.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The table; `None`: of the source table's name.
    pub table: Option<Table>,
    /// True if columns that come in the source are added.
    pub adds_columns: bool,
    /// True if a full export empties the table first. Else readers never see it empty.
    pub truncates: bool,
    /// The column that says since when, or that, a row is deleted; `None`: deleted rows go.
    pub deleted: Option<String>,
}

/// The errors of an export that can't be applied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target, or the export, is not as it has to be.
    #[error("{code}: {why}")]
    Refused {
        /// The word for it.
        code: &'static str,
        /// The reason, and a remedy.
        why: String,
    },
    /// A column of the table is gone, whose values only a full export brings back.
    #[error("target_changed: the column {0} of the table is gone")]
    Lost(String),
    /// The target can't be reached now.
    #[error("the target database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// The target's Postgres refuses something.
    #[error("the target database refused {deed}")]
    Sql {
        /// The refused deed.
        deed: &'static str,
        /// The cause.
        #[source]
        cause: sqlx::Error,
    },
    /// A file can't be read, or isn't what was exported.
    #[error("a file of the export can't be read")]
    Input(#[source] io::Error),
}

impl Error {
    fn refused(code: &'static str, why: impl Into<String>) -> Error {
        Error::Refused { code, why: why.into() }
    }

    /// Returns true if it may pass by itself.
    pub fn may_pass(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

/// Says what was refused.
trait Doing<T> {
    fn doing(self, deed: &'static str) -> Result<T, Error>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, deed: &'static str) -> Result<T, Error> {
        self.map_err(|cause| match SqlFailure::of(&cause) {
            // There is no such database or role, or the password is another: that doesn't pass by itself.
            _ if matches!(&*sqlstate(&cause), "3D000" | "28000" | "28P01") => Error::Sql { deed, cause },
            SqlFailure::Unavailable | SqlFailure::Starting | SqlFailure::Conflict => Error::Unavailable(cause),
            _ => Error::Sql { deed, cause },
        })
    }
}

/// The outcome of an export.
#[derive(Debug)]
pub enum Applied {
    /// It is applied now. The remarks say what of the table could not be as in the source.
    Done(Changes, Vec<String>),
    /// The table is not where it was when its position was read: it may have this one, and others.
    PositionMoved,
    /// It doesn't go on from where the table is, for this reason; a full one would.
    NeedsFullExport(String),
}

/// The rows that an export has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Rows that were inserted, or updated.
    pub written: u64,
    /// Rows that are gone, or marked as deleted.
    pub deleted: u64,
}

/// A table of another Postgres, and the lane whose exports it gets.
pub struct Target {
    options: PgConnectOptions,
    settings: Settings,
    consumer: ConsumerId,
    dataset: String,
    /// Idle, and in no transaction; `None`: there is none.
    conn: Option<PgConnection>,
    /// The digest of the position that was read last: what comes next was chosen by that.
    seen: Option<String>,
    /// The only table that gets the lane, where none is named.
    known: Option<Table>,
}

impl Target {
    /// The target, not yet connected to.
    pub fn new(options: PgConnectOptions, settings: Settings, consumer: ConsumerId, dataset: String) -> Target {
        Target { options, settings, consumer, dataset, conn: None, seen: None, known: None }
    }

    async fn connection(&mut self) -> Result<PgConnection, Error> {
        if let Some(mut conn) = self.conn.take()
            && conn.ping().await.is_ok()
        {
            return Ok(conn);
        }
        connection::connect(&self.options).await.doing("the connection")
    }

    /// The table's position; `None`: it has got no export of the lane.
    ///
    /// # Errors
    /// If the database can't be read, or several tables get the lane and none was named.
    pub async fn position(&mut self) -> Result<Option<TargetPosition>, Error> {
        let mut conn = self.connection().await?;
        let found = match &self.settings.table {
            Some(table) => {
                let found = position::of_table(&mut conn, &position::key(table)).await?;
                if let Some(found) = &found {
                    found.require_lane(&self.consumer, &self.dataset)?;
                }
                found
            }
            None => {
                let found = position::of_lane(&mut conn, &self.consumer, &self.dataset).await?;
                // It may have another name than the source's, by a `--table` of before.
                self.known = found.as_ref().map(TargetPosition::table).transpose()?;
                found
            }
        };
        self.conn = Some(conn);
        self.seen = found.as_ref().map(|found| found.digest.clone());
        Ok(found)
    }

    /// Applies an export, unless the table has it. `files` are the export's files, in their order.
    ///
    /// # Errors
    /// If the target refuses or is gone: after [`Error::Unavailable`] it may be applied, and a second call tells.
    pub async fn apply(&mut self, manifest: &Manifest, files: Vec<Input>) -> Result<Applied, Error> {
        failpoint!("apply.fetched", Err(Error::refused("failpoint", "apply.fetched")));
        let table = self.table(manifest)?;
        let mut conn = self.connection().await?;
        position::make(&mut conn).await?;
        let mut tx = conn.begin().await.doing("to begin")?;
        let applied = self.apply_in(&mut tx, &table, manifest, files).await?;
        if matches!(applied, Applied::Done(..)) {
            failpoint!("apply.applied", Err(Error::refused("failpoint", "apply.applied")));
            tx.commit().await.doing("to commit")?;
            failpoint!("apply.committed", Err(Error::Unavailable(sqlx::Error::PoolClosed)));
        } else {
            tx.rollback().await.doing("to roll back")?;
        }
        self.conn = Some(conn);
        Ok(applied)
    }

    /// Applies an export in a transaction, and moves the position.
    async fn apply_in(
        &self,
        tx: &mut PgConnection,
        table: &Table,
        manifest: &Manifest,
        files: Vec<Input>,
    ) -> Result<Applied, Error> {
        let export = &manifest.export;
        let target = position::key(table);
        position::lock(tx, &target).await?;
        let before = position::of_table(tx, &target).await?;
        if let Some(position) = &before {
            position.require_lane(&self.consumer, &self.dataset)?;
            position.require_source(&export.source)?;
        }
        // Another process has applied this one or others meanwhile, or this one did, and the answer to its COMMIT was
        // lost.
        let at = before.as_ref().map(|position| &position.digest);
        if at != self.seen.as_ref() || at == Some(&manifest.digest) {
            return Ok(Applied::PositionMoved);
        }
        if let Some(why) = export_obstacle(export, before.as_ref()) {
            return Ok(Applied::NeedsFullExport(why));
        }
        let shape = match TargetTable::fit(tx, table, manifest, before.as_ref(), &self.settings).await {
            Err(lost @ Error::Lost(_)) => return Ok(Applied::NeedsFullExport(lost.to_string())),
            shape => shape?,
        };
        if let Some(why) = table_obstacle(export, before.as_ref(), &shape) {
            return Ok(Applied::NeedsFullExport(why));
        }
        let changes = match shape.replaces_all(manifest) {
            true => {
                alter::as_the_role(tx).await?;
                let written = load::copy(tx, &shape.table, &shape.columns, files).await?;
                require_rows(export, written)?;
                shape.finish(tx).await?;
                Changes { written, deleted: 0 }
            }
            false => {
                let rows = load::into_stage(tx, &shape, manifest, files).await?;
                require_rows(export, rows)?;
                failpoint!("apply.staged", Err(Error::refused("failpoint", "apply.staged")));
                alter::as_the_role(tx).await?;
                Merge::new(&shape, manifest).run(tx).await?
            }
        };
        alter::as_ourselves(tx).await?;
        position::write(tx, &target, manifest, &shape, self.settings.deleted.as_deref()).await?;
        Ok(Applied::Done(changes, shape.remarks))
    }

    fn table(&self, manifest: &Manifest) -> Result<Table, Error> {
        let unnamed = || Error::refused("table_unknown", "the export doesn't say its table: --table names one");
        let table = match (self.settings.table.as_ref().or(self.known.as_ref()), &manifest.export.table) {
            (Some(table), _) => table.clone(),
            (None, Some(name)) => name.parse().map_err(|_| unnamed())?,
            (None, None) => return Err(unnamed()),
        };
        let table = position::with_schema(table);
        // Postgres would cut it, so that two names would be one table.
        let is_long = |name: &str| name.len() > 63;
        if is_long(&table.name) || table.schema.as_deref().is_some_and(is_long) {
            return Err(Error::refused("table_unknown", format!("{table}: a name has at most 63 bytes")));
        }
        Ok(table)
    }
}

/// Returns the reason if an export can't come next, so that only a full export in csv can.
fn export_obstacle(export: &Chained, before: Option<&TargetPosition>) -> Option<String> {
    let job = &export.job;
    if !["full", "incremental", "delta"].contains(&export.export_type.as_str()) {
        return Some(format!("format: the export {job} is of a type that this program doesn't know"));
    }
    if export.format != "csv" {
        return Some(format!("format: the export {job} is in {}, and only csv can be applied", export.format));
    }
    if export.is_base() {
        return None;
    }
    let Some(before) = before else {
        return Some(format!("gap: the table has no export yet, and the export {job} is no full one"));
    };
    if export.previous.as_deref() != Some(&before.digest) {
        return Some(format!("gap: the export {job} doesn't go on from the one that the table has"));
    }
    // Its values in rows that nobody changed are in no delta.
    let is_known = |column: &&ManifestColumn| before.details.columns.contains(column) || column.name == OPERATION;
    let changed = export.columns.iter().find(|column| !is_known(column))?;
    Some(format!("schema_changed: the column {} has come, or has another type", changed.name))
}

/// Returns the reason if the state of the table allows only a full export.
fn table_obstacle(export: &Chained, before: Option<&TargetPosition>, shape: &TargetTable) -> Option<String> {
    if export.export_type == "full" {
        return None;
    }
    let table = &shape.table;
    if before.is_some_and(|before| before.details.oid != shape.oid) {
        return Some(format!("target_changed: {table} is another table than the one that got the exports until now"));
    }
    // A column that came back has no values where nobody changed the row since.
    let is_other = |(name, number): &(&String, &i16)| {
        before.is_some_and(|before| before.details.numbers.get(*name).is_some_and(|had| had != *number))
    };
    if let Some((name, _)) = shape.numbers.iter().find(is_other) {
        return Some(format!("target_changed: somebody has removed the column {name} of {table}, and added it again"));
    }
    // What the export doesn't tell of would stay.
    let has_others = export.is_base() && !shape.is_empty;
    has_others
        .then(|| format!("target_changed: {table} has rows already, and the export {} is no full one", export.job))
}

/// Refuses files that have other rows than the manifest says.
fn require_rows(export: &Chained, rows: u64) -> Result<(), Error> {
    if export.rows == rows.to_string() {
        return Ok(());
    }
    let why = format!("the files of the export {} have {rows} rows, and its manifest says {}", export.job, export.rows);
    Err(Error::refused("changed", why))
}
