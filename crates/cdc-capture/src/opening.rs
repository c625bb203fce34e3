//! The opening of an attempt's snapshot over the leader: locks, introspection, positions, guard and filters. The rest,
//! for each table, is the reader's part, in `reading`.
//!
//! The order of the steps is what makes an export exact; each says why it stands where it stands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, PgConnection};

use crate::connections::ExportConnections;
use crate::continuity::Continuity;
use crate::exported_snapshot::ExportedSnapshot;
use crate::guard::LaneEvidence;
use crate::import::{Import, ImportedSnapshot, NOTICE_A_LOST_CLIENT};
use crate::relation_locks::{Lockable, Locked, Room};
use crate::rights::TableAccess;
use crate::session::Readers;
use crate::snapshot::{Purpose, Snapshot, SnapshotTable};
use crate::{Error, Remedy, filter, relation_locks, rights, table_schema};
use cdc_dataset::{Capture, Faults, RelationKind, TableSchema};
use pg_session::failure::sqlstate;
use pg_session::table_name::Table;

/// The longest time for which an export tries to lock its tables. After it the attempt ends, and is made again.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// The time between two tries, if it isn't known which lock to wait for.
const LOCK_PAUSE: Duration = Duration::from_millis(100);

/// Why a snapshot can't be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// The place of the purpose that it concerns, or the places of all that a full export would help. None if it
    /// concerns all of them.
    pub at: Box<[usize]>,
    #[source]
    pub error: Error,
}

impl From<Error> for Refused {
    fn from(error: Error) -> Refused {
        Refused { at: Box::default(), error }
    }
}

/// Returns an error as the refusal of the purpose at this place.
pub(super) fn refused(at: usize) -> impl Fn(Error) -> Refused {
    move |error| Refused { at: Box::new([at]), error }
}

impl ExportConnections {
    /// Takes one snapshot for several exports of one consumer, or for one export: from now on no table of them can be
    /// truncated, altered or dropped, and the consumer's positions are known as of the same moment. Without a sign from
    /// this process for `lease`, the server gives it up. A reader takes rows at least once in two stalls and two
    /// leases: a part of a bucket may take `stall` twice.
    ///
    /// `evidence` reads the evidence of each purpose's lane in the snapshot's own transaction, a moment before the
    /// snapshot. So both are of one server and one timeline: a standby refuses a transaction that may write.
    ///
    /// # Errors
    /// If a table can't be read, or what changed since a position isn't known exactly. The connections are closed then.
    pub async fn open(
        self,
        purposes: &[Purpose<'_>],
        lease: Duration,
        stall: Duration,
        evidence: impl AsyncFnOnce(&mut PgConnection) -> Result<Vec<LaneEvidence>, sqlx::Error>,
    ) -> Result<Snapshot, Refused> {
        let mut opening =
            Opening { connections: self, purposes, evidence: Vec::new(), lease, silence: (stall + lease) * 2 };
        let accesses = opening.lock().await?;
        let mut schemas = opening.introspect(&accesses).await?;
        opening.fold_filters(&mut schemas).await?;
        let read = async |leader: &mut PgConnection| evidence(leader).await.map_err(Error::from_sql("the lanes"));
        opening.evidence = opening.connections.on_leader(lease, read).await?;
        let exported = opening.export(&schemas).await?;
        opening.try_filters(&schemas, &exported).await?;
        opening.finish(schemas, exported)
    }
}

struct Opening<'a> {
    connections: ExportConnections,
    purposes: &'a [Purpose<'a>],
    /// The evidence of each purpose's lane.
    evidence: Vec<LaneEvidence>,
    lease: Duration,
    /// The longest time for which a reader takes no rows.
    silence: Duration,
}

impl Opening<'_> {
    /// Begins the leader's transaction with locks on the tables, which it finds by the role's own search_path.
    ///
    /// The locks come before the snapshot: a TRUNCATE that slipped in between would give an empty export (it isn't
    /// MVCC). The transaction is read committed and locks no row: neither takes a transaction id, which everybody's
    /// snapshots would carry for as long as the export runs.
    async fn lock(&mut self) -> Result<Vec<TableAccess>, Refused> {
        let begun = Instant::now();
        let (accesses, conflict) = loop {
            // Another relation may have taken a name during the wait.
            let accesses = self.find().await?;
            let relations = self.relations(&accesses);
            let Some(cause) = self.try_lock(&relations).await? else { return Ok(accesses) };
            let left = LOCK_WAIT.saturating_sub(begun.elapsed());
            // A relation of another kind has taken the name since.
            let is_replaced = sqlstate(&cause) == "42809";
            if !relation_locks::is_conflict(&cause) && !is_replaced || left.is_zero() {
                break (accesses, cause);
            }
            if !self.wait_for_locked(&relations, left).await? {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
        };
        // One statement locks all tables, and its error doesn't say which one failed.
        for (at, relation) in self.relations(&accesses).into_iter().enumerate() {
            if let Some(cause) = self.try_lock(&[relation]).await? {
                return Err(refused(at)(self.cannot_lock(relation, &self.purposes[at].dataset.table, cause).await?));
            }
            self.connections.on_leader(self.lease, roll_back).await?;
        }
        // By now each of them can be locked.
        Err(Error::Unavailable(conflict).into())
    }

    /// Finds the tables, and requires that they can be read, and locked together.
    async fn find(&mut self) -> Result<Vec<TableAccess>, Refused> {
        let failed = Error::from_sql(&self.purposes[0].dataset.table);
        let datasets: Vec<_> = self.purposes.iter().map(|purpose| &**purpose.dataset).collect();
        let read = async |leader: &mut PgConnection| rights::read_accesses(leader, &datasets).await.map_err(failed);
        let accesses = self.connections.on_leader(self.lease, read).await?;
        // Postgres's own refusal would name neither the role nor what it lacks.
        let unreadable = |(at, access): (usize, &TableAccess)| Some((at, access.unreadable.clone()?));
        if let Some((at, fault)) = accesses.iter().enumerate().find_map(unreadable) {
            return Err(refused(at)(Error::NotReadable(fault)));
        }
        let unpopulated = |(at, access): (usize, &TableAccess)| Some((at, access.unpopulated.as_ref()?.why.clone()));
        if let Some((at, why)) = accesses.iter().enumerate().find_map(unpopulated) {
            return Err(refused(at)(Error::CantPlan(why)));
        }
        // A table without partitions needs a lock for each index.
        if accesses.len() > 1 || accesses[0].kind != Some(RelationKind::Table) {
            let relations = self.relations(&accesses);
            let one_by_one: Vec<_> = self.purposes.iter().map(Purpose::reads_one_by_one).collect();
            let require = async |leader: &mut PgConnection| require_room(leader, &relations, &one_by_one).await;
            self.connections.on_leader(self.lease, require).await?;
        }
        Ok(accesses)
    }

    /// Returns the tables with their kinds. If there is no table, the lock reports it.
    fn relations<'t>(&self, accesses: &'t [TableAccess]) -> Vec<Lockable<'t>>
    where
        Self: 't,
    {
        let accesses = accesses.iter().zip(self.purposes);
        accesses.map(|(access, purpose)| (access.table_of(purpose.dataset), access.kind)).collect()
    }

    /// Begins the leader's transaction with locks on these tables, or rolls it back. Returns the error of the locks.
    async fn try_lock(&mut self, relations: &[Lockable<'_>]) -> Result<Option<sqlx::Error>, Error> {
        let statements = format!(
            "-- source.snapshot.begin
             begin isolation level read committed read write;
             -- The leader is pinged all the time: only a host that vanished is silent, and its snapshot and locks would
             -- stay for hours.
             set local idle_in_transaction_session_timeout = {};
             {}
             set local lock_timeout = '5s'",
            self.lease.as_millis(),
            relation_locks::locks(relations.iter().copied()),
        );
        let lock = async |leader: &mut PgConnection| {
            let failed = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *leader).await.err();
            if failed.is_some() {
                roll_back(leader).await?;
            }
            Ok(failed)
        };
        self.connections.on_leader(self.lease, lock).await
    }

    /// Waits until a relation that is locked is free, while the leader has no lock. Returns false if it didn't.
    async fn wait_for_locked(&mut self, relations: &[Lockable<'_>], limit: Duration) -> Result<bool, Error> {
        let wait = async |leader: &mut PgConnection| {
            let locked = Locked::find(leader, relations).await.map_err(Error::from_sql("pg_locks"))?;
            let Some(lock) = locked.and_then(|locked| locked.lock_alone()) else { return Ok(false) };
            let wait = format!(
                "-- source.snapshot.wait
                 begin; {NOTICE_A_LOST_CLIENT} set local lock_timeout = {}; {lock}; rollback",
                limit.as_millis().max(1),
            );
            let waited = sqlx::raw_sql(AssertSqlSafe(wait)).execute(&mut *leader).await;
            if waited.is_err() {
                roll_back(leader).await?;
            }
            Ok(waited.is_ok())
        };
        self.connections.on_leader(self.lease, wait).await
    }

    /// Returns the error of a table that can't be locked. `name` is its name in the dataset.
    async fn cannot_lock(&mut self, relation: Lockable<'_>, name: &Table, cause: sqlx::Error) -> Result<Error, Error> {
        if !relation_locks::is_conflict(&cause) {
            return Ok(Error::from_sql(name)(cause));
        }
        let find = async |leader: &mut PgConnection| Ok(Locked::find(leader, &[relation]).await.ok().flatten());
        let locked = self.connections.on_leader(self.lease, find).await?;
        let relation = match (locked.and_then(|locked| locked.beneath), relation.1) {
            (Some(beneath), Some(RelationKind::View)) => format!("`{beneath}`, which `{name}` reads"),
            (Some(beneath), _) => format!("`{beneath}`, a part of `{name}`"),
            (None, _) => format!("`{name}`"),
        };
        Ok(Error::LockConflict { relation, cause })
    }

    /// Reads the tables' schemas, which stay so under the locks: a file never has two.
    async fn introspect(&mut self, accesses: &[TableAccess]) -> Result<Vec<TableSchema>, Refused> {
        let datasets: Vec<_> = self.purposes.iter().map(|purpose| &**purpose.dataset).zip(accesses).collect();
        let introspect = async |leader: &mut PgConnection| {
            table_schema::introspect_all(leader, &datasets).await.map_err(Error::from_sql("pg_catalog"))
        };
        let schemas = self.connections.on_leader(self.lease, introspect).await?.into_iter().enumerate();
        schemas.map(|(at, schema)| schema.map_err(|faults| refused(at)(Error::Mismatch(faults)))).collect()
    }

    /// Has the guard compare how Postgres reads the filters now: the meaning of a word such as `'today'` moves.
    async fn fold_filters(&mut self, schemas: &mut [TableSchema]) -> Result<(), Refused> {
        for (at, (Purpose { dataset, consumer, .. }, schema)) in self.purposes.iter().zip(schemas).enumerate() {
            let Some(filter) = dataset.filter.as_ref().filter(|_| consumer.is_some()) else { continue };
            let failed = Error::from_sql(&dataset.table);
            let fold =
                async |reader: &mut PgConnection| filter::fold(reader, filter, &schema.table).await.map_err(failed);
            if let Some(folded) = self.connections.on_reader(self.lease, fold).await.map_err(refused(at))? {
                schema.guard_state.set("folded", folded);
            }
        }
        Ok(())
    }

    /// Exports the snapshot, with the consumer's positions and the guard's words of the same moment.
    async fn export(&mut self, schemas: &[TableSchema]) -> Result<Vec<ExportedSnapshot>, Refused> {
        if self.evidence.len() != self.purposes.len() {
            return Err(Error::Protocol("the evidence isn't of each lane").into());
        }
        let failed = Error::from_sql(&self.purposes[0].dataset.table);
        let take = async |leader: &mut PgConnection| {
            ExportedSnapshot::take(leader, self.purposes, schemas, &self.evidence).await.map_err(failed)
        };
        let exported = self.connections.on_leader(self.lease, take).await?;
        // A table that the catalogs have no more would have been missed by its lock.
        if exported.len() < self.purposes.len() {
            return Err(Error::Protocol("a table that is locked is not there").into());
        }
        Ok(exported)
    }

    /// Tries the filters, which the start has tried too. Who replaced a function of one since may have made another
    /// filter of it.
    async fn try_filters(&mut self, schemas: &[TableSchema], exported: &[ExportedSnapshot]) -> Result<(), Refused> {
        for (at, (Purpose { dataset, consumer, .. }, exported)) in self.purposes.iter().zip(exported).enumerate() {
            if consumer.is_none() || dataset.filter.is_none() || exported.knows_filter {
                continue;
            }
            let failed = Error::from_sql(&dataset.table);
            let check = async |reader: &mut PgConnection| {
                filter::check(reader, dataset, &schemas[at].table).await.map_err(failed)
            };
            if let Some(fault) = self.connections.on_reader(self.lease, check).await.map_err(refused(at))? {
                return Err(refused(at)(Error::Mismatch(Faults(vec![fault]))));
            }
        }
        Ok(())
    }

    fn finish(self, schemas: Vec<TableSchema>, exported: Vec<ExportedSnapshot>) -> Result<Snapshot, Refused> {
        let server_version = self.connections.leader.server_version_num().unwrap_or(0);
        let (mut tables, mut need_full, mut first_error) = (Vec::new(), Vec::new(), None);
        let exported = exported.into_iter().zip(self.evidence);
        for (at, ((purpose, schema), exported)) in self.purposes.iter().zip(schemas).zip(exported).enumerate() {
            match opened(purpose, schema, exported, (server_version, self.silence)) {
                Ok(table) => tables.push(table),
                Err(error) if error.needs_full_export() => {
                    need_full.push(at);
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(refused(at)(error)),
            }
        }
        if let Some(error) = first_error {
            return Err(Refused { at: need_full.into(), error });
        }
        let readers = Readers::default();
        let own = readers.join(self.connections.reader_session.clone());
        let connections = self.connections;
        Ok(Snapshot { connections, readers, own, tables, at: None, reader_is_good: true })
    }
}

async fn roll_back(leader: &mut PgConnection) -> Result<(), Error> {
    let done = sqlx::raw_sql("-- source.snapshot.roll_back\n rollback").execute(leader).await;
    done.map(drop).map_err(Error::Unavailable)
}

/// Requires that the locks of an export leave half of the free places of Postgres's lock table.
async fn require_room(leader: &mut PgConnection, relations: &[Lockable<'_>], one_by_one: &[bool]) -> Result<(), Error> {
    let room = Room::find(leader, relations, one_by_one).await.map_err(Error::from_sql("pg_locks"))?;
    let (locks, free) = (room.relations + room.of_read, room.free);
    if locks * 2 > free { Err(Error::TooManyLocks { locks, free }) } else { Ok(()) }
}

/// Returns a table of the snapshot, if the guard allows the export.
fn opened(
    purpose: &Purpose<'_>,
    schema: TableSchema,
    (exported, evidence): (ExportedSnapshot, LaneEvidence),
    (server_version, silence): (u32, Duration),
) -> Result<SnapshotTable, Error> {
    if !purpose.dataset.allows(purpose.export_type) {
        return Err(Error::FullOnly(purpose.dataset.name.clone()));
    }
    let remedy = require_capture(purpose, &schema, &exported)?;
    if evidence.is_restored {
        return Err(Error::JobRestored(remedy));
    }
    let continuity = exported.continuity()?;
    // A full export is exact without triggers, but nothing goes on from it: its job says so, for a first one too.
    let is_uncaptured =
        purpose.consumer.is_some() && purpose.dataset.capture == Capture::Triggers && !exported.captured;
    let reported = continuity.or(is_uncaptured.then_some(Continuity::TriggerMissing));
    // Before 14 there is no scan of a ctid range: each one would read the whole table. Without capture, the rows may be
    // those of several tables.
    let has_ranges = server_version >= 140_000 && purpose.dataset.capture != Capture::None;
    let position = exported.position(continuity);
    let imported = ImportedSnapshot { name: exported.name.clone(), encoding: exported.encoding.clone(), silence };
    let table = SnapshotTable {
        import: Import::new(&imported, purpose.dataset, &schema, None),
        imported,
        leaves: if purpose.reads_one_by_one() { exported.leaves() } else { Vec::new() },
        dataset: Arc::clone(purpose.dataset),
        export_type: purpose.export_type,
        report: exported.report(reported),
        remedy,
        guard: continuity,
        mask_secret: exported.mask_secret.clone(),
        arrived: exported.arrived.clone(),
        is_quiet: exported.is_quiet,
        had_position: evidence.had_position,
        toasted: exported.toasted || purpose.dataset.capture == Capture::None,
        blocks: exported.blocks.filter(|_| has_ranges).map(i64::unsigned_abs),
        rows: exported.rows.map(i64::unsigned_abs),
        new_position: exported.new_position(purpose.export_type, continuity, purpose.dataset, &schema),
        position,
        schema: schema.in_format(purpose.format),
    };
    table.require(continuity)?;
    Ok(table)
}

/// Requires that the table's triggers were made for the dataset's key, where the export has a position. Returns what
/// would help where the guard refuses.
fn require_capture(purpose: &Purpose<'_>, schema: &TableSchema, exported: &ExportedSnapshot) -> Result<Remedy, Error> {
    let dataset = purpose.dataset;
    let by_triggers = dataset.capture == Capture::Triggers;
    let has_position = purpose.consumer.is_some();
    if by_triggers && has_position && !exported.logged_key.as_ref().is_some_and(|key| schema.has_key(key)) {
        return Err(Error::NotTracked(dataset.name.clone()));
    }
    Ok(match by_triggers && !exported.captured {
        true => Remedy::TrackFirst(dataset.name.clone()),
        false => Remedy::FullExport,
    })
}
