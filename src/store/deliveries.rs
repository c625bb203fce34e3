//! What is to be told to receivers, and what became of it.
//!
//! The rows are made in the transaction that ends an export (`store::transitions`), so that no end is told that is not true, and none is
//! forgotten. Who takes a delivery has it until the time for which it put it off, and that time proves it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::event::{Delivery, DeliveryFilter, DeliveryStatus, Listener};
use crate::job::{Job, Status};
use crate::store::job_row::{JobRow, skip_unreadable};
use crate::store::{Error, Store};

/// The columns of [`DeliveryRow`], of a delivery `d`.
macro_rules! delivery_columns {
    () => {
        "d.id as delivery, d.endpoint, d.job, d.event,
         d.attempt as delivery_attempt, nullif(d.run_at, 'infinity') as run_at, d.delivered_at, d.dead_at, d.last_status, d.last_error,
         d.created_at as event_at"
    };
}

#[derive(sqlx_macros::FromRow)]
struct DeliveryRow {
    delivery: Uuid,
    endpoint: String,
    job: Uuid,
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
            event: row.event.parse()?,
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

/// A delivery that this process has taken, with the export that it tells of.
#[derive(Debug)]
pub struct Taken {
    /// The delivery.
    pub delivery: Delivery,
    /// The export, as it is by now.
    pub job: Job,
}

#[derive(sqlx_macros::FromRow)]
struct TakenRow {
    #[sqlx(flatten)]
    delivery: DeliveryRow,
    #[sqlx(flatten)]
    row: JobRow,
}

/// What became of a try.
#[derive(Clone, Debug)]
pub struct Try {
    /// The answer's status; `None`: there was no answer.
    pub status: Option<u16>,
    /// What follows.
    pub outcome: TryOutcome,
}

/// What follows a try.
#[derive(Clone, Debug)]
pub enum TryOutcome {
    /// The receiver has it.
    Delivered,
    /// It is tried again after this time. Why it failed.
    Again(Duration, String),
    /// It is not tried again. Why it failed.
    Dead(String),
}

/// How many deliveries to a receiver wait, and how many are dead.
#[derive(Clone, Debug, sqlx_macros::FromRow)]
pub struct OpenDeliveries {
    /// The receiver's name.
    pub endpoint: String,
    /// Those that are tried.
    pub pending: i64,
    /// Those that are not tried any more.
    pub dead: i64,
    /// Seconds since the event of the oldest pending one was made; 0 where none is pending.
    pub oldest_seconds: f64,
}

/// Writes down, in the transaction that ends these exports, who is to be told.
pub(super) async fn plan(conn: &mut PgConnection, listeners: &[Listener], ended: &[&JobRow]) -> Result<(), Error> {
    let (mut ids, mut jobs, mut endpoints, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in ended {
        let Ok(end) = row.status.parse::<Status>() else { continue };
        for listener in listeners.iter().filter(|it| it.wants(end, &row.dataset, row.consumer_id.as_deref())) {
            ids.push(Uuid::now_v7());
            jobs.push(row.id);
            endpoints.push(listener.name.as_str());
            events.push(end.as_str());
        }
    }
    if ids.is_empty() {
        return Ok(());
    }
    // An export ends once. What somebody else put there keeps none from its end.
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
    /// The same control plane, which writes down for these receivers what they are to be told.
    pub fn telling(self, listeners: Vec<Listener>) -> Store {
        Store { listeners: listeners.into(), ..self }
    }

    /// Takes deliveries to a receiver that are due, the oldest first. Nobody else takes them before `lease` has passed. With
    /// `asked_for` only those that somebody asked for again, and of which no try has ended since.
    pub async fn take_deliveries(
        &self,
        endpoint: &str,
        most: usize,
        lease: Duration,
        asked_for: bool,
    ) -> Result<Vec<Taken>, Error> {
        let statement = sqlx::query_as(concat!(
            "-- store.deliveries.take
             with due as materialized (
               select id from cdc_export.deliveries
               where endpoint = $1 and delivered_at is null and run_at <= statement_timestamp() and (manually_requested or not $4)
               order by run_at limit $2 for update skip locked),
             d as (
               update cdc_export.deliveries d set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + make_interval(secs => $3)
               from due where d.id = due.id returning d.*)
             select ",
            delivery_columns!(),
            ", j.* from d join cdc_export.jobs j on j.id = d.job"
        ))
        .bind(endpoint)
        .bind(most as i64)
        .bind(lease.as_secs_f64())
        .bind(asked_for);
        let rows: Vec<TakenRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        let taken = |row: TakenRow| Ok(Taken { delivery: row.delivery.try_into()?, job: row.row.try_into()? });
        Ok(rows.into_iter().filter_map(|row| skip_unreadable(taken(row))).collect())
    }

    /// Records what became of a try. False: somebody else has taken the delivery since, or it was asked for again, or it is gone.
    pub async fn tried(&self, delivery: &Delivery, tried: &Try) -> Result<bool, Error> {
        let (is_delivered, again, error) = match &tried.outcome {
            TryOutcome::Delivered => (true, None, None),
            TryOutcome::Again(after, why) => (false, Some(after.as_secs_f64()), Some(why)),
            TryOutcome::Dead(why) => (false, None, Some(why)),
        };
        let statement = sqlx::query(
            "-- store.deliveries.tried
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
        .bind(again)
        .bind(tried.status.map(|status| status as i16))
        .bind(error);
        Ok(self.execute(statement).await? == 1)
    }

    /// Has deliveries to these receivers that wait be due when they would have been, where the database's clock was set back since they were put off.
    pub async fn make_good_a_clock_set_back_for_deliveries(&self) -> Result<(), Error> {
        if self.listeners.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.listeners.iter().map(|listener| listener.name.as_str()).collect();
        let statement = sqlx::query(
            "-- store.deliveries.clock_set_back
             with late as (
               select id from cdc_export.deliveries
               where endpoint = any($1) and delivered_at is null and run_at > clock_timestamp() and run_at < 'infinity'
                 and rescheduled_at > clock_timestamp()
               for update skip locked)
             update cdc_export.deliveries d set rescheduled_at = clock_timestamp(), run_at = clock_timestamp() + (d.run_at - d.rescheduled_at)
             from late where d.id = late.id",
        )
        .bind(names);
        self.execute(statement).await.map(drop)
    }

    /// Deliveries that a filter lets through, newest first, `limit` of them at most.
    pub async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Delivery>, Error> {
        // Spelt out for each, so that what is not delivered is found by its index.
        let stands = match filter.status {
            None => "true",
            Some(DeliveryStatus::Pending) => "d.delivered_at is null and d.dead_at is null",
            Some(DeliveryStatus::Delivered) => "d.delivered_at is not null",
            Some(DeliveryStatus::Dead) => "d.delivered_at is null and d.dead_at is not null",
        };
        let statement = format!(
            "-- store.deliveries.list
             select {} from cdc_export.deliveries d
             where d.id < $1 and ($2::text is null or d.endpoint = $2) and {stands}
             order by d.id desc limit $3",
            delivery_columns!()
        );
        let statement = sqlx::query_as(AssertSqlSafe(statement))
            .bind(filter.before.unwrap_or(Uuid::max()))
            .bind(&filter.endpoint)
            .bind(i64::from(limit));
        let rows: Vec<DeliveryRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        rows.into_iter().map(Delivery::try_from).collect()
    }

    /// A delivery.
    pub async fn delivery(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        let statement = sqlx::query_as(concat!(
            "-- store.deliveries.get\n select ",
            delivery_columns!(),
            " from cdc_export.deliveries d where d.id = $1"
        ))
        .bind(id);
        let row: Option<DeliveryRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Delivery::try_from).transpose()
    }

    /// Makes a delivery due again, whatever became of it, with all its tries. `None`: there is no such one.
    pub async fn redeliver(&self, id: Uuid) -> Result<Option<Delivery>, Error> {
        // A try that is under way doesn't count any more: what becomes of it is not recorded.
        let statement = sqlx::query_as(concat!(
            "-- store.deliveries.redeliver
             with d as (
               update cdc_export.deliveries d
               set attempt = 0, manually_requested = true, rescheduled_at = clock_timestamp(), run_at = clock_timestamp(), delivered_at = null, dead_at = null
               where id = $1 returning d.*)
             select ",
            delivery_columns!(),
            " from d"
        ))
        .bind(id);
        let row: Option<DeliveryRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(Delivery::try_from).transpose()
    }

    /// How many deliveries to each of these receivers wait, and for how long, or are dead, where there are any.
    pub async fn open_deliveries(&self, endpoints: &[&str]) -> Result<Vec<OpenDeliveries>, Error> {
        let statement = sqlx::query_as(
            "-- store.deliveries.open
             select endpoint, count(*) filter (where run_at < 'infinity') as pending, count(*) filter (where run_at = 'infinity') as dead,
               greatest(extract(epoch from clock_timestamp() - min(created_at) filter (where run_at < 'infinity')), 0)::float8
                 as oldest_seconds
             from cdc_export.deliveries where endpoint = any($1) and delivered_at is null group by endpoint",
        )
        .bind(endpoints);
        self.with(async |conn| statement.fetch_all(conn).await).await
    }
}
