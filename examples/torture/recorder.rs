//! The recorder: triggers of our own on `exports` and `users`, so that the history of every attempt and of every row is known
//! exactly and not by sampling. It writes in the transactions that it watches: what is rolled back was never there.

use std::collections::BTreeMap;

use anyhow::Result;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Executor, PgConnection};

use crate::replica::Replica;
use crate::report::{Done, EXPIRE, Report};

/// Times are written as the service writes them: RFC 3339, UTC, microseconds.
const TIME: &str = r#"'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"#;

/// Begins to record. The tables must be there, and no job yet.
pub(crate) async fn install(conn: &mut PgConnection) -> Result<()> {
    let text = |column: &str| format!("to_char(new.{column} at time zone 'UTC', {TIME})");
    let (created, updated) = (text("created_at"), text("updated_at"));
    let sql = format!(
        "create schema torture;
         create table torture.steps (
           seq bigint generated always as identity primary key, at timestamptz not null default clock_timestamp(),
           job uuid, lane text, lane_seq bigint, was text, became text, token_was uuid, token uuid, owner text, staged text);
         create function torture.step() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           if tg_op = 'UPDATE' and new.status = old.status and new.lease_token is not distinct from old.lease_token then
             return null;
           end if;
           insert into torture.steps (job, lane, lane_seq, was, became, token_was, token, owner, staged)
           values (new.id, new.consumer_id, new.lane_seq, case tg_op when 'UPDATE' then old.status end, new.status,
             case tg_op when 'UPDATE' then old.lease_token end, new.lease_token, new.lease_owner, new.staged_name);
           return null;
         end $$;
         create trigger torture_step after insert or update on exports for each row execute function torture.step();
         create table torture.versions (
           seq bigint generated always as identity primary key, xid xid8 not null default pg_current_xact_id(),
           id bigint not null, gone boolean not null, name text, email text, created_at text, updated_at text);
         create function torture.version() returns trigger language plpgsql security definer set search_path = '' as $$
         begin
           if tg_op = 'DELETE' then
             insert into torture.versions (id, gone) values (old.id, true);
           else
             insert into torture.versions (id, gone, name, email, created_at, updated_at)
             values (new.id, new.is_deleted, new.name, new.email, {created}, {updated});
           end if;
           return null;
         end $$;
         create trigger torture_version after insert or update or delete on users
           for each row execute function torture.version();"
    );
    conn.execute(sqlx::AssertSqlSafe(sql)).await?;
    Ok(())
}

/// A row's columns as the service writes them, the key left out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) email: String,
    pub(crate) created_at: String,
    pub(crate) updated_at: String,
}

/// What a transaction left of a row, and when it committed. `row` is `None` where it is deleted, softly or not.
#[derive(Clone, Debug)]
pub(crate) struct Version {
    pub(crate) row: Option<Row>,
    pub(crate) committed: DateTime<Utc>,
}

/// Every version of every row, oldest first.
pub(crate) async fn versions(conn: &mut PgConnection) -> Result<BTreeMap<i64, Vec<Version>>> {
    type Recorded = (i64, bool, Option<String>, Option<String>, Option<String>, Option<String>, DateTime<Utc>);
    // Of a row that a transaction wrote more than once, the last version is what others see. Writers of one row wait for each
    // other, so the numbers of its versions are in the order of its commits.
    let recorded: Vec<Recorded> = sqlx::query_as(
        "select id, gone, name, email, created_at, updated_at, pg_xact_commit_timestamp(xid::xid)
         from (select distinct on (id, xid) * from torture.versions order by id, xid, seq desc) last
         order by id, seq",
    )
    .fetch_all(conn)
    .await?;
    let mut versions = BTreeMap::<i64, Vec<Version>>::new();
    for (id, gone, name, email, created_at, updated_at, committed) in recorded {
        let row = match (gone, name, email, created_at, updated_at) {
            (false, Some(name), Some(email), Some(created_at), Some(updated_at)) => {
                Some(Row { name, email, created_at, updated_at })
            }
            _ => None,
        };
        versions.entry(id).or_default().push(Version { row, committed });
    }
    Ok(versions)
}

/// The live rows of the table as it is.
pub(crate) async fn table(conn: &mut PgConnection) -> Result<BTreeMap<i64, Row>> {
    let text = |column: &str| format!("to_char({column} at time zone 'UTC', {TIME})");
    let (created, updated) = (text("created_at"), text("updated_at"));
    let sql = format!("select id, name, email, {created}, {updated} from users where not is_deleted");
    let rows: Vec<(i64, String, String, String, String)> =
        sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(conn).await?;
    let row = |(id, name, email, created_at, updated_at)| (id, Row { name, email, created_at, updated_at });
    Ok(rows.into_iter().map(row).collect())
}

/// One change of a job's status or lease.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(crate) struct Step {
    pub(crate) at: DateTime<Utc>,
    pub(crate) job: uuid::Uuid,
    pub(crate) lane: Option<String>,
    pub(crate) lane_seq: Option<i64>,
    pub(crate) was: Option<String>,
    pub(crate) became: String,
    pub(crate) token_was: Option<uuid::Uuid>,
    pub(crate) token: Option<uuid::Uuid>,
    pub(crate) owner: Option<String>,
    pub(crate) staged: Option<String>,
}

/// An attempt, from its claim to its end.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) owner: String,
    pub(crate) claimed: DateTime<Utc>,
    /// When, and what became of the job.
    pub(crate) ended: Option<(DateTime<Utc>, String)>,
}

/// Attempts that ended by a fault: see [`History::deaths`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Deaths {
    pub(crate) of: BTreeMap<&'static str, usize>,
    /// Of nothing but the early end of their leases.
    pub(crate) leases_ended: usize,
    /// While no fault was near: a machine so busy that a lease ran out.
    pub(crate) unexplained: usize,
}

impl Deaths {
    pub(crate) fn total(&self) -> usize {
        self.of.values().sum()
    }
}

pub(crate) struct History {
    pub(crate) steps: Vec<Step>,
    pub(crate) attempts: BTreeMap<uuid::Uuid, Attempt>,
}

impl History {
    pub(crate) async fn read(conn: &mut PgConnection) -> Result<History> {
        let steps: Vec<Step> = sqlx::query_as(
            "select at, job, lane, lane_seq, was, became, token_was, token, owner, staged from torture.steps order by seq",
        )
        .fetch_all(conn)
        .await?;
        let mut attempts = BTreeMap::<uuid::Uuid, Attempt>::new();
        for step in &steps {
            if let Some(attempt) = step.token_was.and_then(|token| attempts.get_mut(&token)) {
                attempt.ended = Some((step.at, step.became.clone()));
            }
            if let Some(token) = step.token {
                let owner = step.owner.clone().unwrap_or_default();
                attempts.insert(token, Attempt { owner, claimed: step.at, ended: None });
            }
        }
        Ok(History { steps, attempts })
    }

    /// Who died, and of what.
    ///
    /// A death is an attempt that began, that is a claim which was committed, and ended neither completed nor cancelled: its job
    /// went back to `pending` or on to `failed`. It counts only if between its claim and its end some act of the nemesis met
    /// the replica that ran it, or all of them. An act lasts until it is over: a stop until SIGCONT, a black hole until it is
    /// lifted. Killed processes that ran nothing count for nothing, and so do attempts that came through their fault. Two
    /// faults that meet one attempt are one death, of the later one. An attempt that met nothing but the early end of its lease
    /// has lost it, but harmed nobody's process or connection: it is told apart, and no death.
    pub(crate) fn deaths(&self, replicas: &[Replica], report: &Report) -> Deaths {
        let acts = report.acts();
        let mut deaths = Deaths::default();
        for attempt in self.attempts.values() {
            let Some((ended, became)) = &attempt.ended else { continue };
            if became == "completed" || became == "cancelled" {
                continue;
            }
            let met = |act: &&Done| {
                act.from <= *ended
                    && act.to >= attempt.claimed
                    && act.replica.is_none_or(|index| replicas[index].is(&attempt.owner))
            };
            let met: Vec<&Done> = acts.iter().filter(met).collect();
            let harm = met.iter().filter(|act| act.what != EXPIRE).max_by_key(|act| act.from);
            match (harm, met.is_empty()) {
                (Some(act), _) => *deaths.of.entry(act.what).or_default() += 1,
                (None, false) => deaths.leases_ended += 1,
                (None, true) => deaths.unexplained += 1,
            }
        }
        deaths
    }

    /// Stops during which an attempt of the stopped process was ended, which only somebody else can have done.
    pub(crate) fn zombies(&self, report: &Report) -> usize {
        let stops = report.stops();
        // What was on its way when the signal came is done by itself.
        let under_way = TimeDelta::milliseconds(300);
        let woken = stops.iter().filter(|stop| {
            self.attempts.values().any(|attempt| {
                let taken_over = attempt
                    .ended
                    .as_ref()
                    .is_some_and(|(at, became)| *at > stop.from + under_way && *at < stop.to && became != "completed");
                taken_over && attempt.claimed < stop.from && Replica::owns(stop.pid.as_raw(), &attempt.owner)
            })
        });
        woken.count()
    }
}
