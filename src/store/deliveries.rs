//! Stores the deliveries of events: one row for each event and receiver, with the outcome of its attempts.
//!
//! The transaction that ends a job inserts the rows (`store::transitions`). So an event exists if and only if its job
//! ended. A claim moves `run_at` to the end of its lease. That time is also the token of
//! the claim: an outcome is recorded only while `run_at` is unchanged.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::event::{Delivery, DeliveryFilter, DeliveryStatus, EventType, Listener};
use crate::job::{Job, Status};
use crate::store::export_row::{ExportRow, parsed, skip_unreadable};
use crate::store::{Error, Store};
use pg_session::statement::with_pieces;

/// The columns of a [`Delivery`] `d`.
const DELIVERY_COLUMNS: (&str, &str) = ("deliveries/columns.sql", include_str!("deliveries/columns.sql"));

/// Returns a statement with the columns of a [`Delivery`] in place of the line that includes them.
fn with_delivery_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[DELIVERY_COLUMNS]))
}

/// Reads the columns of `deliveries/columns.sql`.
impl FromRow<'_, PgRow> for Delivery {
    fn from_row(row: &PgRow) -> Result<Delivery, sqlx::Error> {
        let (delivered_at, dead_at): (Option<_>, Option<_>) = (row.try_get("delivered_at")?, row.try_get("dead_at")?);
        let status = match (delivered_at, dead_at) {
            (Some(_), _) => DeliveryStatus::Delivered,
            (None, Some(_)) => DeliveryStatus::Dead,
            (None, None) => DeliveryStatus::Pending,
        };
        let run_at: Option<_> = row.try_get("run_at")?;
        Ok(Delivery {
            id: row.try_get("delivery")?,
            endpoint: row.try_get("endpoint")?,
            job: row.try_get::<Uuid, _>("job")?.into(),
            event: EventType { end: parsed(row, "event")? },
            status,
            attempt: row.try_get::<i32, _>("delivery_attempt")?.unsigned_abs(),
            next_attempt_at: run_at.filter(|_| status == DeliveryStatus::Pending),
            last_status: row.try_get::<Option<i16>, _>("last_status")?.map(i16::unsigned_abs),
            last_error: row.try_get("last_error")?,
            created_at: row.try_get("event_at")?,
            ended_at: delivered_at.or(dead_at),
        })
    }
}

#[derive(Debug)]
pub struct ClaimedDelivery {
    pub delivery: Delivery,
    /// The job that ended, in its current state.
    pub job: Job,
}

#[derive(Clone, Debug)]
pub struct Attempt {
    /// The HTTP status of the response. `None` if the receiver sent no response.
    pub status: Option<u16>,
    pub outcome: AttemptOutcome,
}

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
    pub endpoint: String,
    /// Deliveries that wait for an attempt or are being attempted.
    pub pending: i64,
    /// Deliveries that will not be attempted again.
    pub dead: i64,
    /// The age of the oldest pending event in seconds, or 0 if no event is pending.
    pub oldest_seconds: f64,
}

/// Inserts the deliveries of jobs that end, in the transaction that ends them. `last` are the exports that ended last.
/// A receiver that is bound to datasets gets the end of a job as if it had only those.
pub(super) async fn plan(conn: &mut PgConnection, listeners: &[Listener], last: &[&ExportRow]) -> Result<(), Error> {
    let (mut ids, mut jobs, mut endpoints, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (job, (consumer, exports)) in ended_jobs(conn, last).await? {
        for listener in listeners {
            if let Some(event) = listener.event_of(consumer.as_deref(), &exports) {
                ids.push(Uuid::now_v7());
                jobs.push(job);
                endpoints.push(&*listener.name);
                events.push(event.end.as_str());
            }
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    // A job ends once, so somebody else inserted a conflicting row. Such a row must not prevent the job from ending.
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

/// The consumer of a job, and the dataset and the status of each of its exports.
type EndedJob = (Option<String>, Vec<(String, Status)>);

/// Returns the jobs of these exports. Reads the other exports of a job of several datasets.
async fn ended_jobs(conn: &mut PgConnection, last: &[&ExportRow]) -> Result<BTreeMap<Uuid, EndedJob>, Error> {
    let mut ended = BTreeMap::new();
    for ExportRow { job, consumer_id, dataset, status, is_of_datasets, .. } in last {
        let (_, exports) = ended.entry(*job).or_insert_with(|| (consumer_id.clone(), Vec::new()));
        if !is_of_datasets {
            exports.push((dataset.clone(), status.parse()?));
        }
    }
    let of_datasets: Vec<_> =
        ended.iter().filter(|(_, (_, exports))| exports.is_empty()).map(|(job, _)| *job).collect();
    if !of_datasets.is_empty() {
        let read = sqlx::query_as(
            "-- store.deliveries.ended_exports
             select job, dataset, status from cdc_export.exports where job = any ($1) order by job, dataset",
        );
        let rows: Vec<(Uuid, String, String)> = read.bind(of_datasets).fetch_all(conn).await?;
        for (job, dataset, status) in rows {
            let status = status.parse()?;
            ended.entry(job).and_modify(|(_, exports)| exports.push((dataset, status)));
        }
    }
    Ok(ended)
}

impl Store {
    /// Returns the store with these receivers. From then on, each end of a job inserts their deliveries.
    pub fn with_listeners(self, listeners: Vec<Listener>) -> Store {
        Store { listeners: listeners.into(), ..self }
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
        let statement = sqlx::query(with_delivery_columns(include_str!("deliveries/claim.sql")))
            .bind(endpoint)
            .bind(limit as i64)
            .bind(lease.as_secs_f64())
            .bind(only_manual);
        let rows = self.with(async |conn| statement.fetch_all(conn).await).await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let read = |row: &PgRow| skip_unreadable(Delivery::from_row(row).map_err(Error::from));
        let claimed: Vec<_> = rows.iter().filter_map(read).collect();
        let ids: Vec<_> = claimed.iter().map(|delivery| delivery.job).collect();
        let mut jobs: HashMap<_, _> = self.jobs_by_id(&ids).await?.into_iter().map(|job| (job.id(), job)).collect();
        let with_job = |delivery: Delivery| Some(ClaimedDelivery { job: jobs.remove(&delivery.job)?, delivery });
        Ok(claimed.into_iter().filter_map(with_job).collect())
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
        self.with(async |conn| statement.fetch_all(conn).await).await
    }

    pub async fn delivery(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        let statement = sqlx::query_as(with_delivery_columns(include_str!("deliveries/get.sql"))).bind(id);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Makes a delivery due now, with its full number of attempts, whatever its status.
    pub async fn redeliver(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        let statement = sqlx::query_as(with_delivery_columns(include_str!("deliveries/redeliver.sql"))).bind(id);
        self.with(async |conn| statement.fetch_optional(conn).await).await
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
