//! A completed job's file: what is recorded of it, and its names, the hidden one and the final one.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::connection::statement::with_pieces;
use crate::file::name::{numbered, stem_and_number};
use crate::file::{FileIdentity, FileRecord, Part, StagedFile};
use crate::job::marker::Marker;
use crate::job::{Continuity, FailureCode, JobId};
use crate::store::job_row::{StoredFile, with_job_columns};
use crate::store::transitions::Transition;
use crate::store::{Error, Store};
use pg_rows::encoding::Encoding;

/// The columns of [`FileRow`], of a completed job `e`.
pub(super) const FILE_COLUMNS: (&str, &str) = ("files/columns.sql", include_str!("files/columns.sql"));

fn with_file_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[FILE_COLUMNS]))
}

/// A committed file that is missing in its destination for so long is lost: a process that was just renaming it has
/// long done so.
pub const LOST_AFTER: Duration = Duration::from_secs(10);

impl Store {
    /// Returns true if there is an export whose file was not removed, in any folder.
    pub async fn has_files(&self) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.files.has_files
             select (
               select destination_id
               from exports
               where status = 'completed' and published_at is not null and file_removed_at is null
               -- The order of an index: `exists` would read the table up to the first such job.
               order by destination_id
               limit 1) is not null",
        );
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// The files of this folder that are committed and have no final name yet, and those that another database has to
    /// name, wherever they are. A lane has one such file at most: a claim waits for it.
    pub async fn unpublished(&self, destination: Uuid) -> Result<Vec<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/unpublished.sql"))).bind(destination);
        let rows: Vec<FileRow> = self.with(async |conn| statement.fetch_all(conn).await).await?;
        rows.into_iter().map(FileRecord::try_from).collect()
    }

    /// Returns the location of the file of a completed job.
    pub async fn file(&self, id: JobId) -> Result<Option<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/get.sql"))).bind(id.as_uuid());
        let row: Option<FileRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(FileRecord::try_from).transpose()
    }

    /// Returns the location of the file of the last completed job in a file's lane: this job or a later one.
    pub async fn last_of_lane(&self, record: &FileRecord) -> Result<Option<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/last_of_lane.sql")))
            .bind(record.consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(&record.dataset);
        let row: Option<FileRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        row.map(FileRecord::try_from).transpose()
    }

    /// Returns true if a marker names an earlier export of the file's lane that the database knows.
    pub async fn is_after(&self, record: &FileRecord, marker: &Marker) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.files.is_after
             select exists (
               select from exports e join exports earlier using (consumer_id, dataset)
               where e.id = $1 and earlier.id = $2 and earlier.lane_sequence < e.lane_sequence
                 and (earlier.status = 'completed' and earlier.sha256 = $3 or earlier.error_code = 'file_lost'))",
        )
        .bind(record.job.as_uuid())
        .bind(marker.job.as_uuid())
        .bind(&marker.sha256);
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Records that the files have their final names and where each is, as a URL, and numbers the export among the
    /// published ones of its lane. `None`: another process did before, or plans the manifest anew.
    pub async fn published(
        &self,
        record: &FileRecord,
        locations: &[Option<String>],
    ) -> Result<Option<Transition>, Error> {
        let places: Vec<_> = record.parts.iter().map(|part| Json(&part.staged.identity.location)).collect();
        let statement = sqlx::query_as(with_job_columns(include_str!("files/published.sql")))
            .bind(record.job.as_uuid())
            .bind(&record.name)
            .bind(places)
            .bind(locations)
            .bind(&record.manifest);
        self.transition(statement, None).await
    }

    /// Fails a committed job whose file was lost before it had its name, and bars its consumer's position: only a full
    /// export goes on from there. `None`: it was published meanwhile, or was committed too recently, or has ended
    /// otherwise.
    pub async fn give_up(&self, record: &FileRecord) -> Result<Option<Transition>, Error> {
        // A file that another database names is not waited for.
        let after = if record.is_own { LOST_AFTER } else { Duration::ZERO };
        let statement = sqlx::query_as(with_job_columns(include_str!("files/give_up.sql")))
        .bind(record.job.as_uuid())
        .bind(&record.name)
        .bind(after.as_secs_f64())
        .bind(FailureCode::FileLost.as_str())
        .bind(match record.is_own {
            true => "its file was removed after the commit, before it had its name: what it held needs a full export",
            false => "the database is a copy of the one whose file this is, and which gives it its name: a full export goes on from here",
        })
        .bind(Continuity::FileLost.as_str());
        self.transition(statement, None).await
    }

    /// Gives a committed file another final name, since that one is taken in the folder. Recorded before the file is
    /// renamed, so that whoever goes on after a crash looks for it under the right name. Nothing happens if somebody
    /// else did it.
    pub async fn rename_output(&self, record: &FileRecord) -> Result<(), Error> {
        self.transaction(async |tx| {
            let (stem, present) = stem_and_number(&record.name, record.encoding);
            // Only forward: of two publishers one would else look for the file under the name that the other one went
            // back to.
            let mut number = (names_taken(tx, stem).await? + 1).max(present + 1);
            let mut name = numbered(stem, number, record.encoding);
            while is_taken(tx, &name).await? {
                number += 1;
                name = numbered(stem, number, record.encoding);
            }
            sqlx::query(
                "-- store.files.rename_output
                 update exports set output_filename = $3, manifest = null, digest = null
                 where id = $1 and output_filename = $2 and status = 'completed' and published_at is null",
            )
            .bind(record.job.as_uuid())
            .bind(&record.name)
            .bind(name)
            .execute(tx)
            .await?;
            Ok::<_, Error>(())
        })
        .await
    }
}

/// Returns true if an export's file has this name, in any case of letters.
async fn is_taken(conn: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.files.is_taken
         select exists (select from exports where lower(output_filename) = lower($1))",
    )
    .bind(name)
    .fetch_one(conn)
    .await
}

/// Names of a stem that are counted: what a second has at most. Of more, the next free number is found by trying.
const MAX_NAMES: i64 = 1_000;

/// Counts the files with this stem, in any case: those that go on after it with `-` or `.`, so that a consumer whose id
/// begins like another's whole stem isn't counted.
pub(crate) async fn names_taken(conn: &mut PgConnection, stem: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.files.names_taken
         select count(*) from (
           select from exports
           where lower(output_filename) >= lower($1) || '-' and lower(output_filename) < lower($1) || '/'
           limit $2) names",
    )
    .bind(stem)
    .bind(MAX_NAMES)
    .fetch_one(conn)
    .await
}

/// A row with the columns of `files/columns.sql`.
#[derive(sqlx_macros::FromRow)]
pub(crate) struct FileRow {
    id: Uuid,
    consumer_id: Option<String>,
    database: String,
    is_own: bool,
    dataset: String,
    format: String,
    compression: String,
    marker_seen: Option<Uuid>,
    destination_id: Uuid,
    finished_at: DateTime<Utc>,
    is_published: bool,
    traceparent: Option<String>,
    name: String,
    sha256: String,
    manifest: Option<String>,
    files: Json<Vec<StoredFile>>,
}

impl TryFrom<FileRow> for FileRecord {
    type Error = Error;

    fn try_from(row: FileRow) -> Result<FileRecord, Error> {
        let destination = row.destination_id;
        let part = |StoredFile { name, bytes, rows, sha256, place, .. }| {
            let identity = FileIdentity { bytes, location: place };
            Part { rows, staged: StagedFile { destination, name, sha256, identity } }
        };
        Ok(FileRecord {
            job: row.id.into(),
            consumer: row.consumer_id.and_then(|id| id.parse().ok()),
            database: row.database.parse()?,
            is_own: row.is_own,
            dataset: row.dataset,
            encoding: Encoding { format: row.format.parse()?, compression: row.compression.parse()? },
            name: row.name,
            sha256: row.sha256,
            manifest: row.manifest,
            parts: row.files.0.into_iter().map(part).collect(),
            marker_seen: row.marker_seen.map(JobId::from),
            finished_at: row.finished_at,
            is_published: row.is_published,
            trace: row.traceparent.and_then(|text| text.parse().ok()),
        })
    }
}
