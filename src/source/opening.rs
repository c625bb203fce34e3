//! The opening of an export's snapshot: lock, introspection, position and guard, the filter's trial, the reader,
//! arrived partitions.
//!
//! The order of the steps is what makes an export exact; each says why it stands where it stands.

use std::sync::Arc;
use std::time::Duration;

use sqlx::AssertSqlSafe;

use crate::dataset::fault::Faults;
use crate::dataset::{Capture, Dataset, Table, TableSchema};
use crate::job::{Continuity, ExportType};
use crate::source::arrivals::{self, Arrivals};
use crate::source::connections::ExportConnections;
use crate::source::exported_snapshot::ExportedSnapshot;
use crate::source::import::{Import, no_timeouts};
use crate::source::session::Readers;
use crate::source::snapshot::{Purpose, Snapshot};
use crate::source::{Error, Remedy, filter, quote, rights, table_schema};
use crate::watermark::Position;

/// The longest wait for a lock on the table. After it the attempt ends, and is made again.
const LOCK_TIMEOUT: &str = "5s";

impl ExportConnections {
    /// Takes the snapshot of an export: from now on the table can't be truncated, altered or dropped, and the
    /// consumer's position is known as of the same moment. Without a sign from this process for `lease`, the server
    /// gives it up.
    ///
    /// # Errors
    /// If the table can't be read, or what changed since the position isn't known exactly. The connections are closed
    /// then.
    pub async fn open(self, purpose: &Purpose<'_>, dataset: &Arc<Dataset>, lease: Duration) -> Result<Snapshot, Error> {
        let mut opening = Opening { connections: self, purpose, dataset, lease };
        let table = opening.lock().await?;
        let schema = opening.introspect(&table).await?;
        let exported = opening.export(&schema).await?;
        opening.try_filter(&table, &exported).await?;
        let remedy = opening.require_capture(&schema, &exported)?;
        let continuity = exported.continuity()?;
        opening.require(continuity, &schema, &remedy)?;
        let import = opening.import(&schema, &exported).await?;
        let position = exported.position(continuity);
        let continuity = opening.check_arrivals(&schema, &exported, &position, continuity).await?;
        opening.require(continuity, &schema, &remedy)?;
        Ok(opening.finish(schema, exported, import, position, continuity))
    }
}

struct Opening<'a> {
    connections: ExportConnections,
    purpose: &'a Purpose<'a>,
    dataset: &'a Arc<Dataset>,
    lease: Duration,
}

impl Opening<'_> {
    /// Begins the leader's transaction with a lock on the table, which it finds by the role's own search_path.
    ///
    /// The lock comes before the snapshot: a TRUNCATE that slipped in between would give an empty export (it isn't
    /// MVCC). The transaction is read committed and locks no row: neither takes a transaction id, which everybody's
    /// snapshots would carry for as long as the export runs.
    async fn lock(&mut self) -> Result<Table, Error> {
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let failed = Error::from_sql(&self.dataset.table);
        let no_timeouts = no_timeouts(leader.server_version_num().unwrap_or(0));
        let read = async { rights::read_access(leader, self.dataset).await.map_err(&failed) };
        let access = leader_session.watched(reader, self.lease, read).await?;
        // Postgres's own refusal would name neither the role nor what it lacks.
        if let Some(fault) = access.unreadable {
            return Err(Error::NotReadable(fault));
        }
        // If there is no table, the lock reports it.
        let table = access.table.unwrap_or_else(|| self.dataset.table.clone());
        let begin = format!(
            "-- source.snapshot.begin
             begin isolation level read committed read write;
             {no_timeouts}
             -- The leader is pinged all the time: only a host that vanished is silent, and its snapshot and lock would
             -- stay for hours.
             set local idle_in_transaction_session_timeout = {};
             set local lock_timeout = '{LOCK_TIMEOUT}';
             lock table {} in access share mode",
            self.lease.as_millis(),
            quote::relation(&table)
        );
        let begin = async { sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *leader).await.map_err(&failed) };
        leader_session.watched(reader, self.lease, begin).await?;
        Ok(table)
    }

    /// Reads the table's schema, which stays so under the lock: a file never has two.
    async fn introspect(&mut self, table: &Table) -> Result<TableSchema, Error> {
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let introspect = async { Ok(table_schema::introspect_at(leader, self.dataset, table).await?) };
        leader_session.watched(reader, self.lease, introspect).await
    }

    /// Exports the snapshot, with the consumer's position and the guard's word of the same moment.
    async fn export(&mut self, schema: &TableSchema) -> Result<ExportedSnapshot, Error> {
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let take = ExportedSnapshot::take(leader, self.purpose, self.dataset, schema);
        let take = async { take.await.map_err(Error::from_sql(&self.dataset.table)) };
        let exported = leader_session.watched(reader, self.lease, take).await?;
        if exported.standby { Err(Error::Standby) } else { Ok(exported) }
    }

    /// Tries the filter, which the start has tried too. Who replaced a function of it since may have made another
    /// filter of it.
    async fn try_filter(&mut self, table: &Table, exported: &ExportedSnapshot) -> Result<(), Error> {
        if self.purpose.consumer.is_none() || self.dataset.filter.is_none() || exported.knows_filter {
            return Ok(());
        }
        let ExportConnections { leader, reader, reader_session, .. } = &mut self.connections;
        let check =
            async { filter::check(reader, self.dataset, table).await.map_err(Error::from_sql(&self.dataset.table)) };
        let fault = reader_session.watched(leader, self.lease, check).await?;
        fault.map_or(Ok(()), |fault| Err(Error::Mismatch(Faults(vec![fault]))))
    }

    /// Requires that the table's triggers were made for the dataset's key, where the export has a position, and that
    /// the job is of this database. Returns what would help where the guard refuses.
    fn require_capture(&self, schema: &TableSchema, exported: &ExportedSnapshot) -> Result<Remedy, Error> {
        let by_triggers = self.dataset.capture == Capture::Triggers;
        let has_position = self.purpose.consumer.is_some();
        if by_triggers && has_position && !exported.logged_key.as_ref().is_some_and(|key| schema.has_key(key)) {
            return Err(Error::NotTracked(self.dataset.name.clone()));
        }
        let remedy = match by_triggers && !exported.captured {
            true => Remedy::TrackFirst(self.dataset.name.clone()),
            false => Remedy::FullExport,
        };
        if exported.is_restored { Err(Error::JobRestored(remedy)) } else { Ok(remedy) }
    }

    /// Requires that the guard's word allows this type of export.
    fn require(&self, word: Option<Continuity>, schema: &TableSchema, remedy: &Remedy) -> Result<(), Error> {
        let export_type = self.purpose.export_type;
        // An ad-hoc export has no position, and is full. Without times there is no rule for a watermark that somebody
        // made.
        let is_allowed = |why: &Continuity| {
            let by_its_time = why.is_manual() && schema.updated_at.is_none();
            why.allows(export_type) && (export_type == ExportType::Full || !by_its_time)
        };
        match word.filter(|why| !is_allowed(why)) {
            Some(why) => Err(Error::FullExportNeeded { why, remedy: remedy.clone() }),
            None => Ok(()),
        }
    }

    /// Makes the reader a reader of the snapshot.
    async fn import(&mut self, schema: &TableSchema, exported: &ExportedSnapshot) -> Result<Import, Error> {
        let ExportConnections { leader, reader, reader_session, .. } = &mut self.connections;
        let server_version = leader.server_version_num().unwrap_or(0);
        let import = Import::new(&exported.name, &exported.encoding, self.dataset, schema, server_version);
        reader_session.watched(leader, self.lease, import.join(reader, &self.dataset.table)).await?;
        Ok(import)
    }

    /// The guard's word, or that partitions came whose rows were not logged: whatever else there is to say, these rows
    /// may be missing.
    async fn check_arrivals(
        &mut self,
        schema: &TableSchema,
        exported: &ExportedSnapshot,
        position: &Position,
        word: Option<Continuity>,
    ) -> Result<Option<Continuity>, Error> {
        let Some(saved) = &position.live else { return Ok(word) };
        if exported.arrived.is_empty() || !word.is_none_or(Continuity::keeps_live_rows) {
            return Ok(word);
        }
        let ExportConnections { leader, reader, reader_session, .. } = &mut self.connections;
        let arrived =
            Arrivals { dataset: self.dataset, partitions: &exported.arrived, table: exported.table_oid, schema, saved };
        let check = async {
            arrivals::have_unlogged_rows(reader, &arrived).await.map_err(Error::from_sql(&self.dataset.table))
        };
        let have_unlogged_rows = reader_session.watched(leader, self.lease, check).await?;
        Ok(if have_unlogged_rows { Some(Continuity::PartitionsChanged) } else { word })
    }

    fn finish(
        self,
        schema: TableSchema,
        exported: ExportedSnapshot,
        import: Import,
        position: Position,
        continuity: Option<Continuity>,
    ) -> Snapshot {
        // A full export is exact without triggers, but nothing goes on from it: its job says so, for a first one too.
        let is_uncaptured =
            self.purpose.consumer.is_some() && self.dataset.capture == Capture::Triggers && !exported.captured;
        let told = continuity.or(is_uncaptured.then_some(Continuity::TriggerMissing));
        // Before 14 there is no scan of a ctid range: each one would read the whole table.
        let has_ranges = self.connections.leader.server_version_num().is_some_and(|version| version >= 140_000);
        Snapshot {
            connections: self.connections,
            readers: Readers::default(),
            import,
            dataset: Arc::clone(self.dataset),
            position,
            report: exported.report(told),
            toasted: exported.toasted,
            blocks: exported.blocks.filter(|_| has_ranges).map(i64::unsigned_abs),
            new_position: exported.new_position(self.purpose.export_type, continuity, self.dataset, &schema),
            schema,
            reader_is_good: true,
        }
    }
}
