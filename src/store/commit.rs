//! Commits an attempt: completes its job and moves the positions of the consumer, in the transaction whose snapshot was
//! exported.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use sqlx::types::Json;

use crate::file::Exported;
use crate::job::Export;
use crate::store::export_row::with_export_columns;
use crate::store::lease::Lease;
use crate::store::transitions::{TransitionRow, plan_deliveries};
use crate::store::watermarks::{self, Advance};
use crate::store::{Error, Store};
use cdc_capture::{ExportReport, NewPosition, Position};
use cdc_dataset::FileColumns;
use cdc_destination::{Part, content_sha256};
use cdc_manifest::{ConsumerId, JobId, Manifest};

/// An export to commit: its files, and the facts that the commit compares and saves beside them.
#[derive(Clone, Debug)]
pub struct Commit<'a> {
    pub export: &'a Export,
    /// Without parts, the export found nothing, and makes no file.
    pub exported: &'a Exported,
    /// The consumer's position, which the commit must find unchanged.
    pub position: Position,
    pub new_position: NewPosition,
    /// The report of the export, except for a change of its columns, which the commit finds.
    pub report: ExportReport,
    /// The names and types of the file's columns, for comparison with the lane's next export.
    pub signature: String,
    /// The columns of the file and the key, as saved with the export.
    pub columns: FileColumns,
    /// The job of the export that the marker of the lane named at the destination. `None` if there was no marker.
    pub marker: Option<JobId>,
    pub newly_masked: Vec<String>,
    /// The manifest of the export. `None` if the job has no consumer.
    pub manifest: Option<Manifest>,
}

/// The outcome of a commit. Unless it is `Done`, the caller must roll the transaction back.
pub enum Committed {
    /// All rows are written, and the caller sends `COMMIT`.
    Done(CommittedJob),
    /// Another worker has the lease, or the job was cancelled.
    NotOurs,
    /// The consumer's position in a dataset changed since the export began.
    WatermarkChanged,
}

/// The number of times that a commit waits for a conflicting lock, because the export may have taken hours.
const MAX_ATTEMPTS: u32 = 3;

/// A completed job, in a transaction that may not be committed yet.
pub struct CommittedJob {
    /// The datasets of the exports whose rows have their manifests.
    planned: HashSet<String>,
    rows: Vec<TransitionRow>,
}

impl CommittedJob {
    /// Returns true if the row of this dataset's export has the manifest.
    pub fn is_planned(&self, dataset: &str) -> bool {
        self.planned.contains(dataset)
    }
}

#[derive(sqlx_macros::FromRow)]
struct CommittedRow {
    #[sqlx(flatten)]
    transition: TransitionRow,
    is_planned: bool,
}

impl Store {
    /// Completes the job of an attempt and moves its consumer's positions, in the transaction whose snapshot was
    /// exported. `commits` has each export of the job.
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
        lease: &Lease,
        commits: &[Commit<'_>],
    ) -> Result<Committed, Error> {
        if let Some(commit) =
            commits.iter().find(|commit| commit.parts().is_empty() && commit.export.consumer.is_none())
        {
            let job = commit.export.job;
            let why = format!("the job {job} has no file, and no lane in which it can be skipped");
            return Err(Error::Sql(sqlx::Error::Protocol(why)));
        }
        let mut attempt = 1;
        loop {
            match self.write_commits(conn, lease, commits).await {
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
        lease: &Lease,
        commits: &[Commit<'_>],
    ) -> Result<Committed, Error> {
        let rows = complete(conn, lease, commits).await?;
        if rows.is_empty() {
            return Ok(Committed::NotOurs);
        }
        let planned =
            rows.iter().filter(|row| row.is_planned).map(|row| row.transition.export.dataset.clone()).collect();
        let rows: Vec<_> = rows.into_iter().map(|row| row.transition).collect();
        plan_deliveries(conn, &self.listeners, &rows).await?;
        remember_masks(conn, commits).await?;
        let advances: Vec<_> = commits.iter().filter_map(Commit::advance).collect();
        match watermarks::advance(conn, &advances).await? {
            true => Ok(Committed::Done(CommittedJob { planned, rows })),
            false => Ok(Committed::WatermarkChanged),
        }
    }

    /// Announces the ends of exports that found nothing, whose transaction is committed. Clients see another status of
    /// the others only after their files are published.
    pub fn announce_committed(&self, committed: CommittedJob) {
        self.announce_all(committed.rows, None);
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
               select e.columns_hash = md5(lane.signature) from cdc_export.exports e
               where e.consumer_id = $1 and e.dataset = lane.dataset and e.number is not null
               order by e.number desc limit 1), false)
             from unnest($2, $3) with ordinality as lane (dataset, signature, place)
             order by lane.place",
        )
        .bind(consumer.as_str())
        .bind(datasets)
        .bind(signatures);
        self.with(async |conn| statement.fetch_all(conn).await).await
    }
}

impl Commit<'_> {
    fn parts(&self) -> &[Part] {
        &self.exported.parts
    }

    /// Returns the change of the consumer's position. `None` for an export without a consumer, and for a first one that
    /// found nothing: the next one starts from the beginning as well, so it misses nothing.
    fn advance(&self) -> Option<Advance<'_>> {
        let Commit { export, exported, ref position, ref new_position, .. } = *self;
        let lane = export.lane()?;
        let advance =
            Advance { lane, export_type: export.export_type, position, new_position, to: self.watermark_to() };
        (position.version.is_some() || exported.rows > 0).then_some(advance)
    }

    /// Returns the watermark after the export: the one before if it found nothing, and `None` without a consumer.
    fn watermark_to(&self) -> Option<DateTime<Utc>> {
        let to = match self.parts().is_empty() {
            true => self.position.last_exported_at,
            false => self.position.advanced_to(self.exported.last_updated_at),
        };
        to.filter(|_| self.export.consumer.is_some())
    }
}

async fn remember_masks(conn: &mut PgConnection, commits: &[Commit<'_>]) -> Result<(), Error> {
    let (mut datasets, mut names) = (Vec::new(), Vec::new());
    for commit in commits {
        for name in &commit.newly_masked {
            datasets.push(&*commit.export.dataset);
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

/// Completes a job and records its files. Returns its exports, or none if the job is not ours.
async fn complete(conn: &mut PgConnection, lease: &Lease, commits: &[Commit<'_>]) -> Result<Vec<CommittedRow>, Error> {
    fn each<'a, T>(commits: &'a [Commit<'a>], value: impl Fn(&'a Commit<'a>) -> T) -> Vec<T> {
        commits.iter().map(value).collect()
    }
    // The members of an export's files are null if it found nothing.
    fn of_files<'a, T>(commits: &'a [Commit<'a>], value: impl Fn(&'a Commit<'a>) -> T) -> Vec<Option<T>> {
        commits.iter().map(|commit| (!commit.parts().is_empty()).then(|| value(commit))).collect()
    }
    let files: Vec<_> = commits
        .iter()
        .flat_map(|commit| (1..).zip(commit.parts()).map(|(number, part)| (&*commit.export.dataset, number, part)))
        .collect();
    let bytes_of = |part: &Part| part.staged.identity.bytes as i64;
    let destination = files.first().map(|(_, _, part)| part.staged.destination);
    let committed = sqlx::query_as(with_export_columns(include_str!("commit/commit.sql")))
        .bind(lease.id().as_uuid())
        .bind(lease.token().as_uuid())
        .bind(each(commits, |commit| &*commit.export.dataset))
        .bind(each(commits, |commit| commit.exported.rows as i64))
        .bind(each(commits, |commit| commit.parts().iter().map(bytes_of).sum::<i64>()))
        .bind(of_files(commits, |commit| content_sha256(commit.parts())))
        .bind(of_files(commits, |commit| &*commit.parts()[0].staged.name))
        .bind(each(commits, |commit| commit.position.last_exported_at))
        .bind(each(commits, Commit::watermark_to))
        .bind(each(commits, |commit| Json(&commit.report)))
        .bind(each(commits, |commit| &*commit.signature))
        .bind(each(commits, |commit| commit.marker.map(JobId::as_uuid)))
        .bind(of_files(commits, |commit| Json(&commit.columns)))
        .bind(each(commits, |commit| commit.manifest.as_ref().map(Manifest::text)))
        .bind(each(commits, |commit| commit.manifest.as_ref().map(|manifest| &*manifest.digest)))
        .bind(each(commits, |commit| commit.manifest.as_ref().map(|manifest| manifest.number as i64)))
        .bind(destination)
        .bind(files.iter().map(|(dataset, ..)| *dataset).collect::<Vec<_>>())
        .bind(files.iter().map(|(_, number, _)| *number).collect::<Vec<i32>>())
        .bind(files.iter().map(|(.., part)| &*part.staged.name).collect::<Vec<_>>())
        .bind(files.iter().map(|(.., part)| Json(&part.staged.identity.location)).collect::<Vec<_>>())
        .bind(files.iter().map(|(.., part)| bytes_of(part)).collect::<Vec<_>>())
        .bind(files.iter().map(|(.., part)| part.rows as i64).collect::<Vec<_>>())
        .bind(files.iter().map(|(.., part)| &*part.staged.sha256).collect::<Vec<_>>());
    Ok(committed.fetch_all(conn).await?)
}
