//! Commits an attempt: completes its jobs and moves the positions of their consumer, in the transaction whose snapshot
//! was exported.

use sqlx::PgConnection;
use sqlx::types::Json;

use crate::file::{Exported, Part, content_sha256};
use crate::job::columns::FileColumns;
use crate::job::{ConsumerId, ExportReport, Job, JobId, LeaseToken};
use crate::manifest::Manifest;
use crate::store::job_row::with_job_columns;
use crate::store::transitions::{TransitionRow, transition};
use crate::store::watermarks::{self, Advance};
use crate::store::{Error, Store};
use crate::watermark::{NewPosition, Position};

/// The facts that a commit compares and saves beside the file.
#[derive(Clone, Debug)]
pub struct CommitInput {
    /// The consumer's position, which the commit must find unchanged.
    pub position: Position,
    pub new_position: NewPosition,
    /// The report of the export, except for a change of its columns, which the commit finds.
    pub report: ExportReport,
    /// The names and types of the file's columns, for comparison with the lane's next export.
    pub signature: String,
    /// The columns of the file and the key, as saved with the job.
    pub columns: FileColumns,
    /// The export that the marker of the lane named at the destination. `None` if there was no marker.
    pub marker: Option<JobId>,
    pub newly_masked: Vec<String>,
    /// The manifest of the export. `None` if the job has no consumer.
    pub manifest: Option<Manifest>,
}

/// An export to commit: one of an attempt's jobs.
#[derive(Clone, Copy, Debug)]
pub struct Commit<'a> {
    pub job: &'a Job,
    pub found: &'a CommitInput,
    /// Without parts, the export found nothing, and makes no file.
    pub exported: &'a Exported,
}

/// The outcome of a commit. Unless it is `Done`, the caller must roll the transaction back.
pub enum Committed {
    /// All rows are written, and the caller sends `COMMIT`.
    Done(CommittedJobs),
    /// Another worker has the lease, or a job was cancelled.
    NotOurs,
    /// The consumer's position in a dataset changed since the export began.
    WatermarkChanged,
}

/// The number of times that a commit waits for a conflicting lock, because the export may have taken hours.
const MAX_ATTEMPTS: u32 = 3;

/// Completed jobs, in a transaction that may not be committed yet.
pub struct CommittedJobs {
    /// For each export with files, true if its row has the manifest.
    pub are_planned: Vec<bool>,
    skipped: Vec<TransitionRow>,
}

impl Store {
    /// Completes the jobs of an attempt and moves their consumer's positions, in the transaction whose snapshot was
    /// exported.
    ///
    /// Compares the token of the lease and ignores its expiry. Clocks decide when a job is taken over, and never decide
    /// who may commit.
    ///
    /// Waits [`MAX_ATTEMPTS`] times for a conflicting lock. The transaction must have the savepoint `writes`.
    ///
    /// # Errors
    /// If the database fails. The transaction can't be continued then.
    pub async fn commit(
        &self,
        conn: &mut PgConnection,
        token: LeaseToken,
        commits: &[Commit<'_>],
    ) -> Result<Committed, Error> {
        let mut attempt = 1;
        loop {
            match self.write_commits(conn, token, commits).await {
                Err(Error::LockConflict(_)) if attempt < MAX_ATTEMPTS => {
                    sqlx::raw_sql("-- store.commit.again\n rollback to savepoint writes").execute(&mut *conn).await?;
                    attempt += 1;
                }
                done => return done,
            }
        }
    }

    async fn write_commits(
        &self,
        conn: &mut PgConnection,
        token: LeaseToken,
        commits: &[Commit<'_>],
    ) -> Result<Committed, Error> {
        let (with_files, without): (Vec<_>, Vec<_>) =
            commits.iter().partition(|commit| !commit.exported.parts.is_empty());
        let mut are_planned = Vec::new();
        for commit in with_files {
            match complete(conn, token, commit).await? {
                Some(is_planned) => are_planned.push(is_planned),
                None => return Ok(Committed::NotOurs),
            }
        }
        remember_masks(conn, commits).await?;
        let Some(skipped) = self.skip(conn, token, &without).await? else { return Ok(Committed::NotOurs) };
        let advances: Vec<_> = commits.iter().filter_map(Commit::advance).collect();
        match watermarks::advance(conn, &advances).await? {
            true => Ok(Committed::Done(CommittedJobs { are_planned, skipped })),
            false => Ok(Committed::WatermarkChanged),
        }
    }

    /// Completes jobs without files, and removes earlier skipped jobs of their lanes. Returns `None` if one of them is
    /// not ours.
    async fn skip(
        &self,
        conn: &mut PgConnection,
        token: LeaseToken,
        commits: &[&Commit<'_>],
    ) -> Result<Option<Vec<TransitionRow>>, Error> {
        if commits.is_empty() {
            return Ok(Some(Vec::new()));
        }
        if let Some(commit) = commits.iter().find(|commit| commit.job.consumer.is_none()) {
            return Err(without_file(commit.job.id));
        }
        let skip = sqlx::query_as(with_job_columns(include_str!("commit/skip.sql")))
            .bind(commits.iter().map(|commit| commit.job.id.as_uuid()).collect::<Vec<_>>())
            .bind(token.as_uuid())
            .bind(commits.iter().map(|commit| commit.found.position.last_exported_at).collect::<Vec<_>>())
            .bind(commits.iter().map(|commit| Json(&commit.found.report)).collect::<Vec<_>>());
        let rows = transition(conn, &self.listeners, skip).await?;
        Ok(Some(rows).filter(|rows| rows.len() == commits.len()))
    }

    /// Announces the ends of jobs that found nothing, whose transaction is committed.
    ///
    /// # Errors
    /// As [`Store::announce`].
    pub fn announce_skipped(&self, committed: CommittedJobs) -> Result<(), Error> {
        committed.skipped.into_iter().try_for_each(|row| self.announce(row, None).map(drop))
    }

    /// For each dataset, returns true if the consumer's last export that has files has columns of this signature.
    pub async fn are_signatures_of_last(
        &self,
        consumer: &ConsumerId,
        datasets: &[&str],
        signatures: &[String],
    ) -> Result<Vec<bool>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.commit.are_signatures_of_last
             select coalesce((
               select e.columns_hash = md5(its.signature) from exports e
               where e.consumer_id = $1 and e.dataset = its.dataset and e.status = 'completed'
               order by e.lane_sequence desc limit 1), false)
             from unnest($2, $3) with ordinality as its (dataset, signature, place)
             order by its.place",
        )
        .bind(consumer.as_str())
        .bind(datasets)
        .bind(signatures);
        self.with(async |conn| statement.fetch_all(conn).await).await
    }
}

impl<'a> Commit<'a> {
    /// Returns the change of the consumer's position. `None` for an export without a consumer, and for a first one that
    /// found nothing: the next one starts from the beginning as well, so it misses nothing.
    fn advance(&self) -> Option<Advance<'a>> {
        let Commit { job, found: CommitInput { position, new_position, .. }, exported } = *self;
        let lane = job.lane()?;
        let to = match exported.parts.is_empty() {
            true => position.last_exported_at,
            false => position.advanced_to(exported.last_updated_at),
        };
        let advance = Advance { lane, export_type: job.export_type, position, new_position, to };
        (position.version.is_some() || exported.rows > 0).then_some(advance)
    }
}

fn without_file(job: JobId) -> Error {
    Error::Sql(sqlx::Error::Protocol(format!("the export {job} has no file, and no lane in which it can be skipped")))
}

async fn remember_masks(conn: &mut PgConnection, commits: &[Commit<'_>]) -> Result<(), Error> {
    let (mut datasets, mut names) = (Vec::new(), Vec::new());
    for commit in commits {
        for name in &commit.found.newly_masked {
            datasets.push(&*commit.job.dataset);
            names.push(name.as_str());
        }
    }
    if names.is_empty() {
        return Ok(());
    }
    let remember = sqlx::query(
        "-- store.commit.remember_masks
         insert into cdc_export.masked_columns (dataset, name)
         select * from unnest($1::text[], $2::text[]) on conflict do nothing",
    );
    remember.bind(datasets).bind(names).execute(conn).await?;
    Ok(())
}

/// Completes a job and records its files. Returns true if its row has the manifest, and `None` if the job is not ours.
async fn complete(
    conn: &mut PgConnection,
    token: LeaseToken,
    &Commit { job, found, exported }: &Commit<'_>,
) -> Result<Option<bool>, Error> {
    let parts = &exported.parts;
    let first = &parts[0];
    let column = |field: fn(&Part) -> i64| parts.iter().map(field).collect::<Vec<_>>();
    let texts = |field: fn(&Part) -> &str| parts.iter().map(field).collect::<Vec<_>>();
    let bytes = column(|part| part.staged.identity.bytes as i64);
    let places: Vec<_> = parts.iter().map(|part| Json(&part.staged.identity.location)).collect();
    let CommitInput { position, report, signature, columns, marker, manifest, .. } = found;
    let watermark_to = job.consumer.as_ref().and_then(|_| position.advanced_to(exported.last_updated_at));
    let completed: Option<bool> = sqlx::query_scalar(include_str!("commit/complete.sql"))
        .bind(job.id.as_uuid())
        .bind(token.as_uuid())
        .bind(exported.rows as i64)
        .bind(bytes.iter().sum::<i64>())
        .bind(content_sha256(parts))
        .bind(&first.staged.name)
        .bind(position.last_exported_at)
        .bind(watermark_to)
        .bind(first.staged.destination)
        .bind(Json(report))
        .bind(signature)
        .bind(marker.map(JobId::as_uuid))
        .bind(Json(columns))
        .bind(places)
        .bind(texts(|part| &part.staged.name))
        .bind(bytes)
        .bind(column(|part| part.rows as i64))
        .bind(texts(|part| &part.staged.sha256))
        .bind(manifest.as_ref().map(Manifest::text))
        .bind(manifest.as_ref().map(|manifest| &manifest.digest))
        .bind(manifest.as_ref().map(|manifest| manifest.number as i64))
        .fetch_optional(&mut *conn)
        .await?;
    // Announces nothing, because clients see another status only after the files are published.
    Ok(completed)
}
