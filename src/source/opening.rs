//! The opening of an attempt's snapshot over the leader: locks, introspection, positions, guard and filters. The rest,
//! for each table, is the reader's part, in `reading`.
//!
//! The order of the steps is what makes an export exact; each says why it stands where it stands.

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::dataset::fault::Faults;
use crate::dataset::{Capture, RelationKind, Table, TableSchema};
use crate::job::Continuity;
use crate::source::connections::ExportConnections;
use crate::source::exported_snapshot::ExportedSnapshot;
use crate::source::import::{Import, LOCK_TIMEOUT};
use crate::source::rights::TableAccess;
use crate::source::session::Readers;
use crate::source::snapshot::{Purpose, Snapshot, SnapshotTable};
use crate::source::{Error, Remedy, filter, quote, rights, table_schema};

/// Why a snapshot can't be opened or read.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// The place of the purpose that it concerns, or the places of all that a full export would help. None if it
    /// concerns all of them.
    pub at: Box<[usize]>,
    /// The reason.
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
    /// this process for `lease`, the server gives it up.
    ///
    /// # Errors
    /// If a table can't be read, or what changed since a position isn't known exactly. The connections are closed then.
    pub async fn open(self, purposes: &[Purpose<'_>], lease: Duration) -> Result<Snapshot, Refused> {
        let mut opening = Opening { connections: self, purposes, lease };
        let tables = opening.lock().await?;
        let schemas = opening.introspect(&tables).await?;
        let exported = opening.export(&schemas).await?;
        opening.try_filters(&tables, &exported).await?;
        opening.finish(schemas, exported)
    }
}

struct Opening<'a> {
    connections: ExportConnections,
    purposes: &'a [Purpose<'a>],
    lease: Duration,
}

impl Opening<'_> {
    /// Begins the leader's transaction with locks on the tables, which it finds by the role's own search_path.
    ///
    /// The locks come before the snapshot: a TRUNCATE that slipped in between would give an empty export (it isn't
    /// MVCC). They are taken in the order of the tables' oids. The transaction is read committed and locks no row:
    /// neither takes a transaction id, which everybody's snapshots would carry for as long as the export runs.
    async fn lock(&mut self) -> Result<Vec<Table>, Refused> {
        let first = self.purposes[0].dataset.table.clone();
        let datasets: Vec<_> = self.purposes.iter().map(|purpose| &**purpose.dataset).collect();
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let read = async { rights::read_accesses(leader, &datasets).await.map_err(Error::from_sql(&first)) };
        let accesses = leader_session.watched(reader, self.lease, read).await?;
        // Postgres's own refusal would name neither the role nor what it lacks.
        if let Some(at) = accesses.iter().position(|access| access.unreadable.is_some()) {
            let fault = accesses.into_iter().nth(at).and_then(|access| access.unreadable).expect("it has one");
            return Err(refused(at)(Error::NotReadable(fault)));
        }
        let unpopulated = |(at, access): (usize, &TableAccess)| Some((at, access.unpopulated.as_ref()?.why.clone()));
        if let Some((at, why)) = accesses.iter().enumerate().find_map(unpopulated) {
            return Err(refused(at)(Error::CantPlan(why)));
        }
        let mut order: Vec<_> = (0..accesses.len()).collect();
        order.sort_by_key(|at| accesses[*at].oid.map(|oid| oid.0));
        let kinds: Vec<_> = accesses.iter().map(|access| access.kind).collect();
        // If there is no table, the lock reports it.
        let tables: Vec<_> =
            accesses.into_iter().zip(&datasets).map(|(it, of)| it.table.unwrap_or(of.table.clone())).collect();
        if let [_, _, ..] = &*tables {
            let read = async { require_room(leader, &tables).await };
            leader_session.watched(reader, self.lease, read).await?;
        }
        let begin = format!(
            "-- source.snapshot.begin
             begin isolation level read committed read write;
             -- The leader is pinged all the time: only a host that vanished is silent, and its snapshot and locks would
             -- stay for hours.
             set local idle_in_transaction_session_timeout = {};
             set local lock_timeout = '{LOCK_TIMEOUT}';",
            self.lease.as_millis(),
        );
        let locks: String = order.iter().map(|at| format!("\n{};", lock(&tables[*at], kinds[*at]))).collect();
        // Each statement that Postgres has done is counted, so that the one that failed is known.
        let (statement, settings, mut done) = (begin.clone() + &locks, begin.matches(';').count(), 0_usize);
        let begin = async {
            let counted = sqlx::raw_sql(AssertSqlSafe(statement)).execute_many(&mut *leader);
            Ok(counted
                .try_for_each(|_| {
                    done += 1;
                    std::future::ready(Ok(()))
                })
                .await)
        };
        let locked = leader_session.watched(reader, self.lease, begin).await?;
        let at = order[done.saturating_sub(settings).min(order.len() - 1)];
        match locked {
            Ok(()) => Ok(tables),
            Err(cause) => {
                let mut error = Error::from_sql(&datasets[at].table)(cause);
                if let (Error::LockConflict { relation, .. }, Some(RelationKind::View)) = (&mut error, kinds[at]) {
                    let locked = async { Ok(locked_beneath(leader, &tables[at]).await) };
                    if let Some(table) = leader_session.watched(reader, self.lease, locked).await? {
                        *relation = format!("`{table}`, which {relation} reads");
                    }
                }
                Err(refused(at)(error))
            }
        }
    }

    /// Reads the tables' schemas, which stay so under the locks: a file never has two.
    async fn introspect(&mut self, tables: &[Table]) -> Result<Vec<TableSchema>, Refused> {
        let asked: Vec<_> = self.purposes.iter().map(|purpose| &**purpose.dataset).zip(tables).collect();
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let introspect =
            async { table_schema::introspect_tables(leader, &asked).await.map_err(Error::from_sql("pg_catalog")) };
        let found = leader_session.watched(reader, self.lease, introspect).await?;
        let schema = |(at, schema): (usize, Result<TableSchema, Faults>)| {
            schema.map_err(|faults| refused(at)(Error::Mismatch(faults)))
        };
        found.into_iter().enumerate().map(schema).collect()
    }

    /// Exports the snapshot, with the consumer's positions and the guard's words of the same moment.
    async fn export(&mut self, schemas: &[TableSchema]) -> Result<Vec<ExportedSnapshot>, Refused> {
        let first = self.purposes[0].dataset.table.clone();
        let ExportConnections { leader, leader_session, reader, .. } = &mut self.connections;
        let take = ExportedSnapshot::take(leader, self.purposes, schemas);
        let take = async { take.await.map_err(Error::from_sql(&first)) };
        let exported = leader_session.watched(reader, self.lease, take).await?;
        match exported.first() {
            Some(one) if one.standby => Err(Error::Standby.into()),
            // A table that the catalogs have no more would have been missed by its lock.
            _ if exported.len() < self.purposes.len() => {
                Err(Error::Protocol("a table that is locked is not there").into())
            }
            _ => Ok(exported),
        }
    }

    /// Tries the filters, which the start has tried too. Who replaced a function of one since may have made another
    /// filter of it.
    async fn try_filters(&mut self, tables: &[Table], exported: &[ExportedSnapshot]) -> Result<(), Refused> {
        let ExportConnections { leader, reader, reader_session, .. } = &mut self.connections;
        for (at, (Purpose { dataset, consumer, .. }, exported)) in self.purposes.iter().zip(exported).enumerate() {
            if consumer.is_none() || dataset.filter.is_none() || exported.knows_filter {
                continue;
            }
            let check = filter::check(reader, dataset, &tables[at]);
            let check = async { check.await.map_err(Error::from_sql(&dataset.table)) };
            if let Some(fault) = reader_session.watched(leader, self.lease, check).await.map_err(refused(at))? {
                return Err(refused(at)(Error::Mismatch(Faults(vec![fault]))));
            }
        }
        Ok(())
    }

    fn finish(self, schemas: Vec<TableSchema>, exported: Vec<ExportedSnapshot>) -> Result<Snapshot, Refused> {
        let server_version = self.connections.leader.server_version_num().unwrap_or(0);
        let tables = self.purposes.iter().zip(schemas).zip(exported).enumerate();
        let (mut found, mut needs_full) = (Vec::new(), (Vec::new(), None));
        for (at, ((purpose, schema), exported)) in tables {
            match opened(purpose, schema, exported, server_version) {
                Ok(table) => found.push(table),
                Err(error) if error.needs_full_export() => {
                    needs_full.0.push(at);
                    needs_full.1.get_or_insert(error);
                }
                Err(error) => return Err(refused(at)(error)),
            }
        }
        if let (at, Some(error)) = needs_full {
            return Err(Refused { at: at.into(), error });
        }
        let tables = found;
        let readers = Readers::default();
        let own = readers.join(self.connections.reader_session.clone());
        let connections = self.connections;
        Ok(Snapshot { connections, readers, own, tables, at: None, reader_is_good: true })
    }
}

/// Returns a statement that locks a relation in ACCESS SHARE mode, with its partitions, or with the tables that a view
/// reads. It runs no code of an owner. LOCK takes neither materialized views nor foreign tables; a query that reads no
/// row locks them.
fn lock(table: &Table, kind: Option<RelationKind>) -> String {
    let table = quote::relation(table);
    match kind.is_none_or(RelationKind::can_be_locked) {
        true => format!("lock table {table} in access share mode"),
        false => format!("select from {table} where false"),
    }
}

/// Returns the table beneath a view that could not be locked, which Postgres's error does not name. Returns `None` if
/// it is free again, or can't be found. The leader's transaction ends.
async fn locked_beneath(leader: &mut PgConnection, view: &Table) -> Option<String> {
    sqlx::raw_sql("-- source.opening.give_up\n rollback").execute(&mut *leader).await.ok()?;
    let locked = sqlx::query_scalar(include_str!("opening/locked.sql")).bind(quote::relation(view));
    locked.fetch_optional(leader).await.ok()?
}

/// Requires that locks of all these tables and their partitions leave room for the locks of others: a statement of
/// somebody else that finds none fails.
async fn require_room(leader: &mut PgConnection, tables: &[Table]) -> Result<(), Error> {
    let (locks, room): (i64, i64) = sqlx::query_as(
        "-- source.opening.room
         select
           (select count(*) from unnest($1) as its (name) cross join lateral (
             select to_regclass(its.name) union select relid from pg_partition_tree(to_regclass(its.name))) locked),
           current_setting('max_locks_per_transaction')::bigint * (
             current_setting('max_connections')::bigint + current_setting('max_prepared_transactions')::bigint)",
    )
    .bind(tables.iter().map(quote::relation).collect::<Vec<_>>())
    .fetch_one(leader)
    .await
    .map_err(Error::from_sql("pg_class"))?;
    if locks * 2 > room { Err(Error::TooManyLocks { locks, room }) } else { Ok(()) }
}

/// Returns a table of the snapshot, if the guard allows the export.
fn opened(
    purpose: &Purpose<'_>,
    schema: TableSchema,
    exported: ExportedSnapshot,
    server_version: u32,
) -> Result<SnapshotTable, Error> {
    if !purpose.dataset.allows(purpose.export_type) {
        return Err(Error::FullOnly(purpose.dataset.name.clone()));
    }
    let remedy = require_capture(purpose, &schema, &exported)?;
    let continuity = exported.continuity()?;
    // A full export is exact without triggers, but nothing goes on from it: its job says so, for a first one too.
    let is_uncaptured =
        purpose.consumer.is_some() && purpose.dataset.capture == Capture::Triggers && !exported.captured;
    let told = continuity.or(is_uncaptured.then_some(Continuity::TriggerMissing));
    // Before 14 there is no scan of a ctid range: each one would read the whole table. Without capture, the rows may be
    // those of several tables.
    let has_ranges = server_version >= 140_000 && purpose.dataset.capture != Capture::None;
    let position = exported.position(continuity);
    let import = Import::new(&exported.name, &exported.encoding, purpose.dataset, &schema);
    let table = SnapshotTable {
        import,
        dataset: Arc::clone(purpose.dataset),
        export_type: purpose.export_type,
        report: exported.report(told),
        remedy,
        guard: continuity,
        mask_secret: exported.mask_secret.clone(),
        arrived: exported.arrived.clone(),
        is_quiet: exported.is_quiet,
        was_removed: exported.was_removed,
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

/// Requires that the table's triggers were made for the dataset's key, where the export has a position, and that the
/// job is of this database. Returns what would help where the guard refuses.
fn require_capture(purpose: &Purpose<'_>, schema: &TableSchema, exported: &ExportedSnapshot) -> Result<Remedy, Error> {
    let dataset = purpose.dataset;
    let by_triggers = dataset.capture == Capture::Triggers;
    let has_position = purpose.consumer.is_some();
    if by_triggers && has_position && !exported.logged_key.as_ref().is_some_and(|key| schema.has_key(key)) {
        return Err(Error::NotTracked(dataset.name.clone()));
    }
    let remedy = match by_triggers && !exported.captured {
        true => Remedy::TrackFirst(dataset.name.clone()),
        false => Remedy::FullExport,
    };
    if exported.is_restored { Err(Error::JobRestored(remedy)) } else { Ok(remedy) }
}
