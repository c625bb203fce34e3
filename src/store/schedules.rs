//! Records the progress of schedules: their used slots, and the jobs of these slots.
//!
//! The transaction that inserts the job of a slot also marks the slot as used, with the schedule's row locked. So one
//! process creates the job. If that process dies before the commit, the slot is still due.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{Connection, FromRow, PgConnection, Postgres, Row};
use uuid::Uuid;

use crate::job::datasets::DatasetsRequest;
use crate::job::{Job, Request, Terms};
use crate::schedule::{Refusal, Schedule, ScheduleState};
use crate::store::export_row::parsed;
use crate::store::jobs::{Insertion, NewJob, SubmitOutcome, enter_lanes, finish};
use crate::store::{Error, Store};
use cdc_manifest::{ConsumerId, JobId};
use failpoint::failpoint;

#[derive(Debug)]
pub struct ScheduledExports {
    /// The request for each, in the order of their datasets.
    pub requests: Vec<Request>,
    /// The request of a schedule with `datasets`. `None` if the schedule has one dataset.
    pub datasets: Option<DatasetsRequest>,
}

#[derive(Debug)]
pub enum RunOutcome {
    Job(Job),
    /// Another process was first, or nothing is due any more.
    Settled,
    Busy,
    TooManyOpen,
}

impl FromRow<'_, PgRow> for ScheduleState {
    fn from_row(row: &PgRow) -> Result<ScheduleState, sqlx::Error> {
        let refused_at: Option<_> = row.try_get("refused_at")?;
        Ok(ScheduleState {
            slot: row.try_get("slot")?,
            timing: row.try_get("timing")?,
            last_job: row.try_get::<Option<Uuid>, _>("last_job")?.map(JobId::from),
            last_run_at: row.try_get("last_run_at")?,
            skipped: row.try_get::<i64, _>("skipped")?.unsigned_abs(),
            skipped_at: row.try_get("skipped_at")?,
            refused: refused_at.map(|at| Ok::<_, sqlx::Error>((parsed(row, "refused")?, at))).transpose()?,
        })
    }
}

impl Store {
    /// Returns the time of the database, and the states of these schedules by their names. Omits schedules without a
    /// row.
    pub async fn schedule_states(
        &self,
        schedules: &[Arc<Schedule>],
    ) -> Result<(DateTime<Utc>, HashMap<String, ScheduleState>), Error> {
        if schedules.is_empty() {
            return Ok((Utc::now(), HashMap::new()));
        }
        let names: Vec<_> = schedules.iter().map(|schedule| schedule.name.as_str()).collect();
        let states = sqlx::query(
            "-- store.schedules.states
             select clock_timestamp() as now, s.name, s.slot, s.timing, s.last_job, s.last_run_at,
               s.skipped, s.skipped_at, s.refused, s.refused_at
             from (select) one
             left join cdc_export.schedules s on s.name = any($1)",
        )
        .bind(names);
        let rows = self.with(async |conn| states.fetch_all(conn).await).await?;
        let now = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get("now")?;
        let mut states = HashMap::new();
        for row in &rows {
            // There is one row without a name if no schedule has a row.
            if let Some(name) = row.try_get("name")? {
                states.insert(name, ScheduleState::from_row(row)?);
            }
        }
        Ok((now, states))
    }

    /// Marks all slots up to this one as used if the schedule is new or its timing changed. The new timing has no claim
    /// on earlier slots.
    pub async fn adopt_timing(&self, schedule: &Schedule, slot: DateTime<Utc>) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.schedules.adopt
             insert into cdc_export.schedules as s (name, slot, timing) values ($1, $2, $3)
             on conflict (name) do update set timing = excluded.timing, slot = greatest(s.slot, excluded.slot)
             where s.timing <> excluded.timing",
        );
        let statement = bind_slot(statement, schedule, slot);
        self.execute(statement).await.map(drop)
    }

    /// Creates the job of a due slot, and marks the slot as used, in one transaction.
    pub async fn run_slot(
        &self,
        schedule: &Schedule,
        slot: DateTime<Utc>,
        exports: &ScheduledExports,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<RunOutcome, Error> {
        let statement = sqlx::query(
            "-- store.schedules.claim
             insert into cdc_export.schedules as s (name, slot, timing) values ($1, $2, $3)
             on conflict (name) do update set slot = excluded.slot, timing = excluded.timing
             where s.slot is null or s.slot < excluded.slot",
        );
        let statement = bind_slot(statement, schedule, slot);
        self.with(async |conn| {
            let mut tx = conn.begin().await?;
            let inserted = match statement.execute(&mut *tx).await?.rows_affected() {
                0 => Insertion::Refused(RunOutcome::Settled),
                _ => self.insert_scheduled(&mut tx, schedule, exports, destination, terms).await?,
            };
            failpoint!("schedules.claimed");
            finish(tx, inserted, RunOutcome::Job).await
        })
        .await
    }

    /// Inserts the job of a schedule, unless a lane is busy. The schedule's row must be locked.
    async fn insert_scheduled<'s>(
        &'s self,
        tx: &mut PgConnection,
        schedule: &Schedule,
        ScheduledExports { requests, datasets }: &ScheduledExports,
        destination: Option<Uuid>,
        terms: Terms,
    ) -> Result<Insertion<'s, RunOutcome>, Error> {
        let lane_sequences = enter_lanes(tx, requests).await?;
        if is_any_busy(tx, requests).await? {
            return Ok(Insertion::Refused(RunOutcome::Busy));
        }
        let new = NewJob { requests, datasets: datasets.as_ref(), destination, terms };
        Ok(match self.insert(tx, new, &lane_sequences).await? {
            Insertion::Made(job, submissions) => {
                record_last_job(tx, schedule, job.id()).await?;
                Insertion::Made(job, submissions)
            }
            Insertion::Refused(
                SubmitOutcome::TooManyOpen(_) | SubmitOutcome::QueueFull(_) | SubmitOutcome::KeyFull(_),
            ) => Insertion::Refused(RunOutcome::TooManyOpen),
            // Unreachable: the request has no idempotency key and no `after`.
            Insertion::Refused(_) => Insertion::Refused(RunOutcome::Settled),
        })
    }

    /// Marks a slot as used without a job. Returns false if another process was first.
    pub async fn skip_slot(&self, schedule: &Schedule, slot: DateTime<Utc>) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.schedules.skip
             insert into cdc_export.schedules as s (name, slot, timing, skipped, skipped_at)
             values ($1, $2, $3, 1, clock_timestamp())
             on conflict (name) do update set slot = excluded.slot, timing = excluded.timing, skipped = s.skipped + 1,
               skipped_at = excluded.skipped_at, refused = null, refused_at = null
             where s.slot is null or s.slot < excluded.slot",
        );
        let statement = bind_slot(statement, schedule, slot);
        Ok(self.execute(statement).await? == 1)
    }

    /// Records the reason why a due slot has no job yet. The slot stays due. Returns false if the reason is recorded
    /// already or the slot is used.
    pub async fn refuse_slot(&self, schedule: &Schedule, slot: DateTime<Utc>, why: Refusal) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.schedules.refuse
             insert into cdc_export.schedules as s (name, timing, refused, refused_at)
             values ($1, $3, $4, clock_timestamp())
             on conflict (name) do update set refused = excluded.refused, refused_at = coalesce(s.refused_at, excluded.refused_at)
             where (s.slot is null or s.slot < $2) and s.refused is distinct from excluded.refused",
        );
        let statement = bind_slot(statement, schedule, slot).bind(why.as_str());
        Ok(self.execute(statement).await? == 1)
    }

    /// Replaces the last used slot `from`, which lies far in the future, with `slot`. Returns false if another process
    /// was first.
    pub async fn set_slot_back(
        &self,
        schedule: &Schedule,
        from: DateTime<Utc>,
        slot: DateTime<Utc>,
    ) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.schedules.set_back
             update cdc_export.schedules set slot = $3 where name = $1 and slot = $2",
        )
        .bind(&schedule.name)
        .bind(from)
        .bind(slot);
        Ok(self.execute(statement).await? == 1)
    }
}

/// Binds a schedule and one of its slots to a statement: `$1` is the schedule's name, `$2` the slot, `$3` the
/// schedule's timing.
fn bind_slot<'q>(
    statement: Query<'q, Postgres, PgArguments>,
    schedule: &'q Schedule,
    slot: DateTime<Utc>,
) -> Query<'q, Postgres, PgArguments> {
    statement.bind(&schedule.name).bind(slot).bind(schedule.timing.to_string())
}

/// Returns true if an export of one of the lanes is open or unpublished. The lanes' rows must be locked.
async fn is_any_busy(conn: &mut PgConnection, requests: &[Request]) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.schedules.is_any_busy
         select exists (
           select from cdc_export.exports
           where consumer_id = $1 and dataset = any ($2) and published_at is null and status in ('open', 'completed'))",
    )
    .bind(requests[0].consumer.as_ref().map(ConsumerId::as_str))
    .bind(requests.iter().map(|request| &*request.dataset).collect::<Vec<_>>())
    .fetch_one(conn)
    .await
}

async fn record_last_job(conn: &mut PgConnection, schedule: &Schedule, job: JobId) -> Result<(), Error> {
    sqlx::query(
        "-- store.schedules.record_last_job
         update cdc_export.schedules s
         set last_job = $2, last_run_at = clock_timestamp(), skipped = 0, skipped_at = null, refused = null, refused_at = null
         where s.name = $1",
    )
    .bind(&schedule.name)
    .bind(job.as_uuid())
    .execute(conn)
    .await?;
    Ok(())
}
