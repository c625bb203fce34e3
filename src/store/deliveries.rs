//! Stores the deliveries of events: one row for each event and receiver, with the outcome of its attempts.
//!
//! The transaction that ends an export or a batch inserts the rows (`store::transitions`). So an event exists if and
//! only if its export or batch ended. A claim moves `run_at` to the end of its lease. That time is also the token of
//! the claim: an outcome is recorded only while `run_at` is unchanged.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::event::{Delivery, DeliveryFilter, DeliveryStatus, EventType, Listener};
use crate::job::batch::Batch;
use crate::job::{Job, JobId, Status};
use crate::store::job_row::{JOB_COLUMNS, JobRow, skip_unreadable};
use crate::store::{Error, Store};

/// The columns of [`DeliveryRow`], of a delivery `d`.
const DELIVERY_COLUMNS: (&str, &str) = ("deliveries/columns.sql", include_str!("deliveries/columns.sql"));

/// Returns a statement with the columns of [`DeliveryRow`] in place of the line that includes them.
fn with_delivery_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[DELIVERY_COLUMNS]))
}

#[derive(sqlx_macros::FromRow)]
struct DeliveryRow {
    delivery: Uuid,
    endpoint: String,
    job: Uuid,
    batch: Option<Uuid>,
    event: String,
    delivery_attempt: i32,
    run_at: Option<DateTime<Utc>>,
    delivered_at: Option<DateTime<Utc>>,
    dead_at: Option<DateTime<Utc>>,
    last_status: Option<i16>,
    last_error: Option<String>,
    event_at: DateTime<Utc>,
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = Error;

    fn try_from(row: DeliveryRow) -> Result<Delivery, Error> {
        let status = match (row.delivered_at, row.dead_at) {
            (Some(_), _) => DeliveryStatus::Delivered,
            (None, Some(_)) => DeliveryStatus::Dead,
            (None, None) => DeliveryStatus::Pending,
        };
        Ok(Delivery {
            id: row.delivery,
            endpoint: row.endpoint,
            job: row.job.into(),
            batch: row.batch.map(JobId::from),
            event: EventType { end: row.event.parse()? },
            status,
            attempt: row.delivery_attempt.unsigned_abs(),
            next_attempt_at: row.run_at.filter(|_| status == DeliveryStatus::Pending),
            last_status: row.last_status.map(i16::unsigned_abs),
            last_error: row.last_error,
            created_at: row.event_at,
            ended_at: row.delivered_at.or(row.dead_at),
        })
    }
}

/// A delivery that this process has claimed.
#[derive(Debug)]
pub struct ClaimedDelivery {
    pub delivery: Delivery,
    /// The thing that ended, in its current state.
    pub ended: Ended,
}

/// An export or a batch that has ended.
#[derive(Debug)]
pub enum Ended {
    Export(Box<Job>),
    Batch(Box<Batch>),
}

#[derive(sqlx_macros::FromRow)]
struct ClaimedDeliveryRow {
    #[sqlx(flatten)]
    delivery: DeliveryRow,
    #[sqlx(flatten)]
    row: JobRow,
}

/// A batch of which each member has ended.
#[derive(sqlx_macros::FromRow)]
struct EndedBatchRow {
    id: Uuid,
    consumer_id: Option<String>,
    datasets: Json<Vec<String>>,
    status: String,
}

/// An ended attempt at a delivery.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The HTTP status of the response. `None` if the receiver sent no response.
    pub status: Option<u16>,
    pub outcome: AttemptOutcome,
}

/// The outcome of an attempt at a delivery.
#[derive(Clone, Debug)]
pub enum AttemptOutcome {
    Delivered,
    /// The attempt failed for this reason, and the next attempt follows after this pause.
    Retry(Duration, String),
    /// The attempt failed for this reason, and no further attempt follows.
    Dead(String),
}

/// The numbers of undelivered events of one receiver.
#[derive(Clone, Debug, sqlx_macros::FromRow)]
pub struct OpenDeliveries {
    /// The receiver's name.
    pub endpoint: String,
    /// Deliveries that wait for an attempt or are being attempted.
    pub pending: i64,
    /// Deliveries that will not be attempted again.
    pub dead: i64,
    /// The age of the oldest pending event in seconds, or 0 if no event is pending.
    pub oldest_seconds: f64,
}

/// Inserts the deliveries of these ended exports of no batch, and of those of the batches that have ended, in the
/// transaction that ends them.
pub(super) async fn plan(
    conn: &mut PgConnection,
    listeners: &[Listener],
    ended: &[&JobRow],
    batches: &[Uuid],
) -> Result<(), Error> {
    let (mut ids, mut jobs, mut endpoints, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut plan = |end: Status, job: Uuid, datasets: &[&str], consumer: Option<&str>| {
        for Listener { name, .. } in listeners.iter().filter(|it| it.wants(EventType { end }, datasets, consumer)) {
            ids.push(Uuid::now_v7());
            jobs.push(job);
            endpoints.push(name.clone());
            events.push(end.as_str());
        }
    };
    for row in ended {
        let Ok(end) = row.status.parse::<Status>() else { continue };
        plan(end, row.id, &[&row.dataset], row.consumer_id.as_deref());
    }
    if !batches.is_empty() {
        let statement = sqlx::query_as(include_str!("deliveries/ended_batches.sql")).bind(batches);
        let ended: Vec<EndedBatchRow> = statement.fetch_all(&mut *conn).await?;
        for EndedBatchRow { id, consumer_id, datasets: Json(datasets), status } in ended {
            let datasets: Vec<_> = datasets.iter().map(String::as_str).collect();
            plan(status.parse()?, id, &datasets, consumer_id.as_deref());
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    // An export or a batch ends once, so somebody else inserted a conflicting row. Such a row must not prevent the
    // export from ending.
    sqlx::query(
        "-- store.deliveries.plan
         insert into cdc_export.deliveries (id, job, endpoint, event)
         select * from unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[])
         on conflict (job, endpoint) do nothing",
    )
    .bind(ids)
    .bind(jobs)
    .bind(endpoints)
    .bind(events)
    .execute(conn)
    .await?;
    Ok(())
}

impl Store {
    /// Returns the store with these receivers. From then on, each end of an export inserts their deliveries.
    pub fn with_listeners(self, listeners: Vec<Listener>) -> Store {
        Store { listeners: listeners.into(), ..self }
    }

    pub(super) fn receivers(&self) -> Vec<&str> {
        self.listeners.iter().map(|listener| listener.name.as_str()).collect()
    }

    /// Claims up to `limit` due deliveries of a receiver, the oldest first. No other process can claim them during
    /// `lease`.
    ///
    /// With `only_manual`, claims only deliveries that were requested again and had no attempt since.
    pub async fn claim_deliveries(
        &self,
        endpoint: &str,
        limit: usize,
        lease: Duration,
        only_manual: bool,
    ) -> Result<Vec<ClaimedDelivery>, Error> {
        let pieces = [DELIVERY_COLUMNS, JOB_COLUMNS];
        let statement = with_pieces(include_str!("deliveries/claim.sql"), &pieces);
        let statement = sqlx::query_as(AssertSqlSafe(statement))
            .bind(endpoint)
            .bind(limit as i64)
            .bind(lease.as_secs_f64())
            .bind(only_manual);
        let rows: Vec<ClaimedDeliveryRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        let mut claimed = Vec::new();
        for ClaimedDeliveryRow { delivery, row } in rows {
            let both = Delivery::try_from(delivery).and_then(|delivery| Ok((delivery, Job::try_from(row)?)));
            let Some((delivery, job)) = skip_unreadable(both) else { continue };
            let ended = match delivery.batch {
                None => Some(Ended::Export(Box::new(job))),
                Some(id) => self.batch(id).await?.map(|batch| Ended::Batch(Box::new(batch))),
            };
            claimed.extend(ended.map(|ended| ClaimedDelivery { delivery, ended }));
        }
        Ok(claimed)
    }

    /// Returns false if the claim has ended because the delivery was claimed again, requested again or deleted.
    pub async fn record_attempt(&self, delivery: &Delivery, attempt: &Attempt) -> Result<bool, Error> {
        let (is_delivered, pause, error) = match &attempt.outcome {
            AttemptOutcome::Delivered => (true, None, None),
            AttemptOutcome::Retry(pause, why) => (false, Some(pause.as_secs_f64()), Some(why)),
            AttemptOutcome::Dead(why) => (false, None, Some(why)),
        };
        let statement = sqlx::query(
            "-- store.deliveries.record_attempt
             update cdc_export.deliveries set
               attempt = attempt + 1, manually_requested = false, rescheduled_at = clock_timestamp(),
               delivered_at = case when $3 then clock_timestamp() end,
               dead_at = case when not $3 and $4::float8 is null then clock_timestamp() end,
               run_at = case when $4::float8 is null then 'infinity' else clock_timestamp() + make_interval(secs => $4) end,
               last_status = $5, last_error = $6
             where id = $1 and run_at = $2",
        )
        .bind(delivery.id)
        .bind(delivery.next_attempt_at)
        .bind(is_delivered)
        .bind(pause)
        .bind(attempt.status.map(|status| status as i16))
        .bind(error);
        Ok(self.execute(statement).await? == 1)
    }

    /// Repairs due times of pending deliveries that lie in the future because the database's clock was set back.
    ///
    /// Each such delivery waits for its whole pause again, from now on.
    pub async fn repair_future_timestamps_of_deliveries(&self) -> Result<(), Error> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        let statement = sqlx::query(
            "-- store.deliveries.repair_future_timestamps
             with late as (
               select id from cdc_export.deliveries
               where endpoint = any($1) and delivered_at is null and run_at > clock_timestamp() and run_at < 'infinity'
                 and rescheduled_at > clock_timestamp()
               for update skip locked)
             update cdc_export.deliveries d set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + (d.run_at - d.rescheduled_at)
             from late where d.id = late.id",
        )
        .bind(self.receivers());
        self.execute(statement).await.map(drop)
    }

    /// Lists the deliveries that match a filter, newest first, up to `limit`.
    pub async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Delivery>, Error> {
        // Literal pieces for each filter let Postgres use an index: of a receiver's deliveries, or of undelivered ones.
        let endpoint = match &filter.endpoint {
            Some(_) => "d.endpoint = $2",
            None => "$2::text is null",
        };
        let status = match filter.status {
            None => "true",
            Some(DeliveryStatus::Pending) => "d.delivered_at is null and d.dead_at is null",
            Some(DeliveryStatus::Delivered) => "d.delivered_at is not null",
            Some(DeliveryStatus::Dead) => "d.delivered_at is null and d.dead_at is not null",
        };
        let condition = format!("{endpoint} and {status}");
        let pieces = [DELIVERY_COLUMNS, ("condition", &*condition)];
        let statement = with_pieces(include_str!("deliveries/list.sql"), &pieces);
        let statement = sqlx::query_as(AssertSqlSafe(statement))
            .bind(filter.before.unwrap_or(Uuid::max()))
            .bind(&filter.endpoint)
            .bind(i64::from(limit));
        let rows: Vec<DeliveryRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        rows.into_iter().map(Delivery::try_from).collect()
    }

    pub async fn delivery(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        let statement = sqlx::query_as(with_delivery_columns(include_str!("deliveries/get.sql"))).bind(id);
        let row: Option<DeliveryRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Delivery::try_from).transpose()
    }

    /// Makes a delivery due now, with its full number of attempts, whatever its status.
    pub async fn redeliver(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        let statement = sqlx::query_as(with_delivery_columns(include_str!("deliveries/redeliver.sql"))).bind(id);
        let row: Option<DeliveryRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Delivery::try_from).transpose()
    }

    /// Counts the undelivered events of each of these receivers. Omits receivers without such events.
    pub async fn open_deliveries(&self, endpoints: &[&str]) -> Result<Vec<OpenDeliveries>, Error> {
        let statement = sqlx::query_as(
            "-- store.deliveries.open
             select endpoint, count(*) filter (where run_at < 'infinity') as pending, count(*) filter (where run_at = 'infinity') as dead,
               greatest(extract(epoch from clock_timestamp() - min(created_at) filter (where run_at < 'infinity')), 0)::float8
                 as oldest_seconds
             from cdc_export.deliveries where endpoint = any($1) and delivered_at is null group by 1",
        )
        .bind(endpoints);
        self.with(async |conn| statement.fetch_all(conn).await).await
    }
}
