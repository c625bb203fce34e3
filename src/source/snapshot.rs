//! One export's snapshot: the leader's transaction holds it from the position's reading to the commit, readers import it.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgConnectOptions, types::Oid};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::connection;
use crate::dataset::catalog::Faults;
use crate::dataset::{Capture, Dataset, Table, TableSchema};
use crate::job::marker::Marker;
use crate::job::{ConsumerId, Continuity, ExportType, JobId, SnapshotReport};
use crate::source::guard::{continuity, here, witness};
use crate::source::reader_slots::ReaderSlots;
use crate::source::rows::Rows;
use crate::source::select::Select;
use crate::source::session::{Leader, Readers, Session};
use crate::source::{Error, Remedy, arrivals, filter, purge, quote, shape, with_timeout};
use crate::telemetry::metrics::PoolUse;
use crate::watermark::{Fingerprint, NewPosition, Position};

/// How long a lock on the table is waited for before the attempt is given up and made again.
const LOCK_TIMEOUT: &str = "5s";

/// How to reach the database that has the tables.
#[derive(Clone, Debug)]
pub struct Source {
    options: PgConnectOptions,
    pool: PgPool,
    spare: ReaderSlots,
}

impl Source {
    /// Reads over connections made with `options`, `readers` at once for a full export if no other one has them; `pool` is for
    /// what is no export.
    pub fn new(options: PgConnectOptions, pool: PgPool, readers: u32) -> Source {
        // One is the export's.
        let spare = ReaderSlots::new(options.clone(), readers.saturating_sub(1) as usize);
        Source { options, pool, spare }
    }

    /// For what is no export.
    pub(crate) fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// How the connections of what is no export are used.
    pub fn pool_use(&self) -> PoolUse {
        let Source { pool, .. } = self;
        PoolUse { open: pool.size(), idle: pool.num_idle() as u32, most: pool.options().get_max_connections() }
    }

    /// Removes what everybody has seen from the change log; see [`purge::purge`].
    ///
    /// # Errors
    /// If the database fails.
    pub async fn purge(&self, caps: &purge::Caps) -> Result<u64, Error> {
        purge::purge(&self.pool, caps).await.map_err(Error::of("cdc_export.change_log"))
    }

    /// Opens the two connections that an export needs.
    ///
    /// # Errors
    /// If Postgres refuses or can't be reached within `timeout`.
    pub async fn connections(&self, timeout: Duration) -> Result<ExportConnections, Error> {
        let connect = async || {
            let mut conn = connection::connect(&self.options).await?;
            let session = Session::of(&mut conn).await?;
            Ok::<_, sqlx::Error>((conn, session))
        };
        let both = async {
            let (mut leader, reader) = (connect().await?, connect().await?);
            // Planned once for each connection: the leader asks the catalog the same for every job, which takes less than its plan.
            sqlx::raw_sql("-- source.snapshot.leader\n set plan_cache_mode = force_generic_plan")
                .execute(&mut leader.0)
                .await?;
            Ok::<_, sqlx::Error>((leader, reader))
        };
        let both = with_timeout(timeout, async { both.await.map_err(Error::Unavailable) }).await?;
        let ((leader, leading), (reader, reading)) = both;
        Ok(ExportConnections { leader, leading, reader, reading, spare: self.spare.clone() })
    }
}

/// What a snapshot is taken for.
#[derive(Clone, Copy, Debug)]
pub struct Purpose<'a> {
    /// For whom; `None`: for whoever asked.
    pub consumer: Option<&'a ConsumerId>,
    /// Which rows.
    pub export_type: ExportType,
    /// The job; `None`: only to see how it would be read.
    pub job: Option<JobId>,
    /// What the folder says of the lane.
    pub marker: Option<&'a Marker>,
}

/// A worker's right to take a job: a leader and a reader, both connected. Leaders that hold snapshots while they wait for
/// readers out of one pool would wait for ever.
#[derive(Debug)]
pub struct ExportConnections {
    leader: PgConnection,
    /// The leader's session.
    leading: Session,
    reader: PgConnection,
    /// The reader's.
    reading: Session,
    spare: ReaderSlots,
}

impl ExportConnections {
    /// These connections, if both still answer within `timeout`.
    pub async fn checked(mut self, timeout: Duration) -> Option<ExportConnections> {
        let pings =
            async { tokio::try_join!(self.leader.ping(), self.reader.ping()).map(drop).map_err(Error::Unavailable) };
        with_timeout(timeout, pings).await.ok().map(|()| self)
    }

    /// Takes the snapshot of an export: from now on the table can't be truncated, altered or dropped, and the consumer's
    /// position is known as of the same moment. Without a sign from this process for `lease`, the server gives it up.
    ///
    /// # Errors
    /// If the table can't be read. The connections are closed then.
    pub async fn open(self, purpose: &Purpose<'_>, dataset: &Arc<Dataset>, lease: Duration) -> Result<Snapshot, Error> {
        let &Purpose { consumer, export_type, job, marker } = purpose;
        let ExportConnections { mut leader, leading, mut reader, reading, spare } = self;
        let failed = Error::of(&dataset.table);
        let version = leader.server_version_num().unwrap_or(0);
        // Where there is none, the lock says so.
        let locate = async { shape::locate(&mut leader, &dataset.table).await.map_err(&failed) };
        let located = leading.watched(&mut reader, lease, locate).await?;
        let located = located.unwrap_or_else(|| dataset.table.clone());
        let table = quote::relation(&located);
        let never_time_out = never_time_out(version);
        // The lock comes before the snapshot: a TRUNCATE that slipped in between would give an empty export (it isn't MVCC).
        // Read committed, and no row lock: neither takes a transaction id, which everybody's snapshots would carry for as long
        // as the export runs.
        let begin = format!(
            "-- source.snapshot.begin
             begin isolation level read committed read write;
             {never_time_out}
             -- Pinged all the time: only a host that vanished is silent, and its snapshot and lock would stay for hours.
             set local idle_in_transaction_session_timeout = {};
             set local lock_timeout = '{LOCK_TIMEOUT}';
             lock table {table} in access share mode",
            lease.as_millis()
        );
        let begin = async { sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut leader).await.map_err(&failed) };
        leading.watched(&mut reader, lease, begin).await?;

        // It stays so under the lock: a file never has two shapes.
        let look = async { Ok(shape::look_at(&mut leader, dataset, &located).await?) };
        let shape = leading.watched(&mut reader, lease, look).await?;
        let (by_triggers, definition) = (dataset.capture == Capture::Triggers, dataset.definition());

        // In one statement, so that the position, the guard and the snapshot are of one moment.
        let opening = sqlx::query_as(concat!(
            "-- source.snapshot.open
             select pg_export_snapshot() as name, here.snapshot::text as snapshot, statement_timestamp() as taken_at,
               current_setting('server_encoding') as encoding, pg_is_in_recovery() as standby, here.logged_key, here.captured,
               case when t.relkind = 'r' then pg_relation_size(t.oid) / current_setting('block_size')::bigint end as blocks,
               exists (
                 select from (select t.oid union all select relid from pg_partition_tree(t.oid)) parts (oid)
                 join pg_class part on part.oid = parts.oid
                 where part.reltoastrelid <> 0 and pg_relation_size(part.reltoastrelid) > 0) as toasted,
               w.version, w.last_exported_at, w.snap_live::text, w.snap_del::text, ",
            continuity!(),
            " as continuity,
               coalesce(j.database_id <> cdc_export.database_id(), false) or coalesce(m.job = j.id, false)
                 or coalesce(j.timeline <> cdc_export.timeline(), false) and not witness.vouches
                 -- A copy of the data is put back while there is no server.
                 or j.id is not null and j.server_started_at is distinct from pg_postmaster_start_time() and witness.denies as is_restored,
               coalesce(w.table_oid = t.oid and w.columns_hash = here.columns_hash and w.relfilenode <> here.relfilenode, false)
                 as table_rewritten,
               case when w.seen ? 'relations' then array(
                   select p::oid from jsonb_object_keys(here.seen -> 'relations') p where not w.seen -> 'relations' ? p)
                 else '{}' end as arrived,
               writers.open_transactions, writers.oldest_transaction_seconds,
               t.oid as table_oid, here.relfilenode, here.columns_hash, here.triggers_hash, here.partitions_hash, here.seen || wanted.seen as seen,
               (w.seen ->> 'time')::bigint as timed_by, coalesce(w.seen ->> 'filter' = wanted.seen ->> 'filter', false) as knows_filter,
               c.system_identifier as cluster_id
             from pg_class t
             join pg_namespace n on n.oid = t.relnamespace
             cross join pg_control_system() c
             cross join lateral ",
            here!(),
            " here
             -- The snapshot has the whole cluster's transactions; of interest are those that may yet change this database's
             -- tables, which our own don't.
             cross join lateral (
               select (count(distinct l.pid) + (select count(*) from pg_prepared_xacts p where p.database = current_database()))::int
                   as open_transactions,
                 max(extract(epoch from clock_timestamp() - a.xact_start))::float8 as oldest_transaction_seconds
               from pg_locks l join pg_stat_activity a on a.pid = l.pid
               where l.locktype = 'transactionid' and l.granted and l.mode = 'ExclusiveLock' and a.datname = current_database()
                 and a.backend_type <> 'autovacuum worker'
                 and a.application_name is distinct from current_setting('application_name')) writers
             cross join (select $4::boolean as by_triggers, $5::text[] as definition, $6::jsonb as types, $10::jsonb as seen) wanted
             cross join (select $2::text as consumer_id, $3::text as dataset) lane
             left join exports j on j.id = $7
             -- What the caller had loaded last was looked at when it asked, unless that was before the database was put back.
             cross join lateral (
               select $8::uuid as job, $9::text as sha256,
                 j.has_after and j.timeline = cdc_export.timeline() and j.server_started_at = pg_postmaster_start_time() as is_asked) m
             cross join lateral ",
            witness!(),
            " witness
             left join watermarks w on w.consumer_id = lane.consumer_id and w.dataset = lane.dataset
             where t.oid = to_regclass($1)"
        ))
        .bind(&table)
        .bind(consumer.map(|consumer| consumer.as_str()))
        .bind(&dataset.name)
        .bind(by_triggers)
        .bind(definition.forms())
        .bind(Json(&shape.types))
        .bind(job.map(JobId::as_uuid))
        .bind(marker.map(|marker| marker.job.as_uuid()))
        .bind(marker.map(|marker| &marker.sha256))
        .bind(Json(&shape.seen));
        let opening = async { opening.fetch_one(&mut leader).await.map_err(&failed) };
        let mut opened: Opened = leading.watched(&mut reader, lease, opening).await?;
        if opened.standby {
            return Err(Error::Standby);
        }
        // The start has looked at the filter. Who replaced a function of it since may have made another filter of it.
        if consumer.is_some() && dataset.filter.is_some() && !opened.knows_filter {
            let check = async { filter::check(&mut reader, dataset, &located).await.map_err(&failed) };
            let fault = reading.watched(&mut leader, lease, check).await?;
            fault.map_or(Ok(()), |fault| Err(Error::Mismatch(Faults(vec![fault]))))?;
        }
        if by_triggers && !opened.logged_key.as_ref().is_some_and(|key| shape.has_key(key)) {
            return Err(Error::NotTracked(dataset.name.clone()));
        }
        let remedy = match by_triggers && !opened.captured {
            true => Remedy::TrackFirst(dataset.name.clone()),
            false => Remedy::FullExport,
        };
        if opened.is_restored {
            return Err(Error::JobRestored(remedy));
        }
        let continuity = opened.continuity()?;
        // An ad-hoc export has no position, and is full. Without times there is no rule for a watermark that somebody made.
        let allowed = |why: &Continuity| {
            let by_its_time = why.is_by_hand() && shape.updated_at.is_none();
            why.allows(export_type) && (export_type == ExportType::Full || !by_its_time)
        };
        let refuse = |why: Option<Continuity>| match why.filter(|why| !allowed(why)) {
            Some(why) => Err(Error::FullExportNeeded { why, remedy: remedy.clone() }),
            None => Ok(()),
        };
        refuse(continuity)?;

        // Such a database promises nothing of its texts. Sent as they are, they are checked here, and the column is named.
        let raw_texts = if opened.encoding == "SQL_ASCII" { "set local client_encoding = 'SQL_ASCII';" } else { "" };
        // An operator's filter means what it meant to him, in his role's path.
        let path = if dataset.filter.is_some() { ROLE_PATH } else { "" };
        // Not waiting for the lock: a reader that queues behind an ALTER which waits for the leader would wait for ever, and
        // no deadlock detector sees a leader that waits for its reader outside of Postgres.
        let import = format!(
            "-- source.snapshot.import
             begin isolation level repeatable read read only;
             set transaction snapshot '{}';
             {never_time_out}
             {NOTICE_A_LOST_CLIENT}
             {raw_texts}
             {path}
             set local timezone = 'UTC';
             set local datestyle = 'ISO';
             set local intervalstyle = 'postgres';
             set local extra_float_digits = 1;
             set local bytea_output = 'hex';
             set local synchronize_seqscans = off;
             set local enable_tidscan = on;
             set local max_parallel_workers_per_gather = 0;
             set local random_page_cost = 1.1;
             lock table {table} in access share mode nowait",
            opened.name
        );
        reading.watched(&mut leader, lease, join(&mut reader, &import, &dataset.table)).await?;
        let position = opened.position(continuity);
        let continuity = match &position.live {
            // Whatever else there is to say, these rows may be missing.
            Some(saved) if !opened.arrived.is_empty() && continuity.is_none_or(Continuity::is_of_rows) => {
                let look = arrivals::have_unlogged_rows(&mut reader, &opened.arrived, opened.table_oid, &shape, saved);
                let look = async { look.await.map_err(&failed) };
                let has_them = reading.watched(&mut leader, lease, look).await?;
                if has_them { Some(Continuity::PartitionsChanged) } else { continuity }
            }
            _ => continuity,
        };
        refuse(continuity)?;
        if export_type != ExportType::Full && !opened.is_timed(continuity) {
            opened.seen["time"] = 0.into();
        }
        // The deletions stay due, while the position knows the new file as the table's.
        if export_type == ExportType::Incremental && continuity == Some(Continuity::Truncated) {
            opened.seen["truncated"] = true.into();
        }
        Ok(Snapshot {
            leader,
            leading,
            reader,
            reading,
            readers: Readers::default(),
            spare,
            import,
            dataset: Arc::clone(dataset),
            position,
            report: opened.report(continuity),
            new_position: NewPosition {
                snapshot: Some(opened.snapshot).filter(|_| by_triggers),
                taken_at: opened.taken_at,
                table: Fingerprint {
                    table_oid: opened.table_oid.0,
                    relfilenode: opened.relfilenode.map(|oid| oid.0),
                    columns_hash: opened.columns_hash,
                    definition: definition.newest().to_owned(),
                    types: shape.types.clone(),
                    triggers_hash: opened.triggers_hash,
                    partitions_hash: opened.partitions_hash,
                    seen: opened.seen.0,
                    cluster_id: opened.cluster_id,
                },
            },
            shape,
            toasted: opened.toasted,
            // Before 14 there is no scan of a ctid range: each one would read the whole table.
            blocks: opened.blocks.filter(|_| version >= 140_000).map(i64::unsigned_abs),
            reader_is_good: true,
        })
    }
}

/// Makes a connection a reader of the snapshot.
pub(super) async fn join(conn: &mut PgConnection, import: &str, table: &Table) -> Result<(), Error> {
    let imported = sqlx::raw_sql(AssertSqlSafe(import.to_owned())).execute(conn).await;
    imported.map(drop).map_err(|cause| match cause.as_database_error().and_then(|e| e.code()).as_deref() {
        // No such snapshot any more, or its transaction isn't running: the leader was lost in between.
        Some("22023" | "42704" | "55000") => Error::Unavailable(cause),
        _ => Error::of(table)(cause),
    })
}

/// Ends a query whose client is gone, where the server's system can tell (Postgres 14 and later, not every platform).
const NOTICE_A_LOST_CLIENT: &str = "do $$ begin
    perform set_config('client_connection_check_interval', '1s', true);
  exception when others then null; end $$;";

/// Lets the role's own search_path rule to the end of the transaction.
const ROLE_PATH: &str = "select set_config('search_path', current_setting('cdc_export.role_path'), true);";

/// Whatever the server or the role sets, an export may take as long as it takes.
fn never_time_out(version: u32) -> &'static str {
    if version >= 170_000 {
        "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0; set local transaction_timeout = 0;"
    } else {
        "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0;"
    }
}

#[derive(sqlx::FromRow)]
struct Opened {
    name: String,
    snapshot: String,
    taken_at: DateTime<Utc>,
    encoding: String,
    standby: bool,
    logged_key: Option<Vec<String>>,
    captured: bool,
    toasted: bool,
    blocks: Option<i64>,
    version: Option<i64>,
    last_exported_at: Option<DateTime<Utc>>,
    snap_live: Option<String>,
    snap_del: Option<String>,
    continuity: Option<String>,
    is_restored: bool,
    /// Partitions that the position doesn't know.
    arrived: Vec<Oid>,
    table_rewritten: bool,
    open_transactions: i32,
    oldest_transaction_seconds: Option<f64>,
    table_oid: Oid,
    relfilenode: Option<Oid>,
    columns_hash: String,
    triggers_hash: Option<String>,
    partitions_hash: Option<String>,
    seen: Json<serde_json::Value>,
    /// The number of the column whose times the watermark is of; 0: of none alone.
    timed_by: Option<i64>,
    /// Whether the position was saved with the filter's functions as they are.
    knows_filter: bool,
    cluster_id: i64,
}

impl Opened {
    fn continuity(&self) -> Result<Option<Continuity>, Error> {
        Continuity::of_guard(self.continuity.as_deref())
            .map_err(|_| Error::Protocol("a word of continuity that nobody knows"))
    }

    fn position(&self, continuity: Option<Continuity>) -> Position {
        // A time that somebody set in place of ours rules alone, once.
        let by_hand = matches!(continuity, Some(Continuity::NoSnapshot | Continuity::WatermarkEdited));
        // Set back to nothing: every live row again, and the deletions that are due.
        let anew = continuity == Some(Continuity::Rewound) && self.last_exported_at.is_none();
        Position {
            version: self.version,
            last_exported_at: self.last_exported_at,
            since: self.last_exported_at.filter(|_| self.is_timed(continuity)),
            live: self.snap_live.clone().filter(|_| !by_hand && !anew),
            deletions: self.snap_del.clone().filter(|_| !by_hand),
        }
    }

    /// Whether the watermark rules beside the log. A time of another column than now says nothing of this one's, until somebody sets
    /// it, or a full export has brought every row.
    fn is_timed(&self, continuity: Option<Continuity>) -> bool {
        let is_its = self.timed_by.is_none_or(|was| self.seen["time"] == was);
        is_its || self.snap_live.is_none() || continuity.is_some_and(Continuity::is_by_hand)
    }

    fn report(&self, continuity: Option<Continuity>) -> SnapshotReport {
        SnapshotReport {
            continuity,
            open_transactions: u32::try_from(self.open_transactions).ok(),
            oldest_transaction_seconds: self.oldest_transaction_seconds,
            table_rewritten: self.table_rewritten,
        }
    }
}

/// An open snapshot. Dropped, it is given up: both connections close and their transactions end.
#[derive(Debug)]
pub struct Snapshot {
    leader: PgConnection,
    leading: Session,
    reader: PgConnection,
    reading: Session,
    readers: Readers,
    spare: ReaderSlots,
    /// What makes a connection one of its readers.
    import: String,
    dataset: Arc<Dataset>,
    shape: TableSchema,
    position: Position,
    report: SnapshotReport,
    new_position: NewPosition,
    /// Whether a value may be kept outside of its row.
    toasted: bool,
    blocks: Option<u64>,
    reader_is_good: bool,
}

impl Snapshot {
    /// What the consumer had seen when the snapshot was taken.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// What the table looks like in it.
    pub fn shape(&self) -> &TableSchema {
        &self.shape
    }

    /// What was found beside it.
    pub fn report(&self) -> &SnapshotReport {
        &self.report
    }

    /// Where this export stands, to be its consumer's next position.
    pub fn new_position(&self) -> &NewPosition {
        &self.new_position
    }

    /// The leader, to be kept alive, and the rows, to be read meanwhile.
    pub fn split(&mut self) -> (Leader<'_>, Rows<'_>) {
        let rows = Rows {
            reader: &mut self.reader,
            readers: &self.readers,
            session: &self.reading,
            spare: &self.spare,
            import: &self.import,
            select: Select { dataset: &self.dataset, shape: &self.shape },
            position: &self.position,
            table_oid: self.new_position.table.table_oid,
            toasted: self.toasted,
            blocks: self.blocks,
        };
        (Leader { conn: &mut self.leader, readers: &self.readers }, rows)
    }

    /// Ends the reading and makes the leader's transaction ready for the commit's writes; lends its connection.
    ///
    /// From here on the transaction holds locks that others wait for, so it doesn't live longer than a lease without a sign.
    ///
    /// # Errors
    /// If a connection is lost.
    pub async fn begin_commit(&mut self, lease: Duration) -> Result<&mut PgConnection, Error> {
        let failed = Error::of(&self.dataset.table);
        let end_reading = sqlx::raw_sql("-- source.snapshot.end_reading\n commit").execute(&mut self.reader);
        let end_reading = tokio::time::timeout(lease / 3, end_reading);
        let settings = format!(
            "-- source.snapshot.begin_commit
             set local lock_timeout = '5s';
             set local idle_in_transaction_session_timeout = {};
             select set_config('synchronous_commit', 'on', true) where current_setting('synchronous_commit') = 'off'",
            lease.as_millis()
        );
        let begin = sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut self.leader);
        let (ended, begun) = tokio::join!(end_reading, begin);
        // The rows are in the file: a reader that is lost now is no loss.
        self.reader_is_good = matches!(ended, Ok(Ok(_)));
        begun.map_err(&failed)?;
        Ok(&mut self.leader)
    }

    /// Commits, and gives the connections back for the next job if both are good.
    ///
    /// # Errors
    /// If the answer is lost or takes longer than `patience`, or Postgres refuses. Whether it committed is not known then: only
    /// the job's row tells.
    pub async fn commit(mut self, timeout: Duration) -> Result<Option<ExportConnections>, Error> {
        let failed = Error::of(&self.dataset.table);
        let commit = sqlx::raw_sql("-- source.snapshot.commit\n commit").execute(&mut self.leader);
        with_timeout(timeout, async { commit.await.map_err(failed) }).await?;
        let Snapshot { mut leader, leading, reader, reading, spare, reader_is_good, .. } = self;
        if !reader_is_good {
            reading.end(&mut leader).await;
            return Ok(None);
        }
        Ok(Some(ExportConnections { leader, leading, reader, reading, spare }))
    }
}
