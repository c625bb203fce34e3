//! Records the files of completed exports: their hidden and final names, and their locations.

use std::time::Duration;

use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, Row};
use uuid::Uuid;

use crate::file::FileRecord;
use crate::file::name::{numbered, stem_and_number};
use crate::job::FailureCode;
use crate::store::export_row::{StoredFile, parsed, with_export_columns};
use crate::store::transitions::Transition;
use crate::store::{Error, Store};
use cdc_capture::Continuity;
use cdc_destination::{ExportFiles, FileIdentity, Marker, Part, StagedFile};
use cdc_manifest::{JobId, stem_of};
use pg_rows::encoding::Encoding;
use pg_session::statement::with_pieces;

/// The columns of [`FileRecord`], of a completed export.
pub(super) const FILE_COLUMNS: (&str, &str) = ("files/columns.sql", include_str!("files/columns.sql"));

/// Returns a statement with the columns of [`FileRecord`] in place of the line that includes them.
fn with_file_columns(statement: &'static str) -> AssertSqlSafe<String> {
    AssertSqlSafe(with_pieces(statement, &[FILE_COLUMNS]))
}

/// The time after which a committed file that is missing at its destination counts as lost. A process that was renaming
/// the file has finished by then.
pub const LOST_AFTER: Duration = Duration::from_secs(10);

impl Store {
    /// Returns true if the file of any published export was not removed, at any destination.
    pub async fn has_files(&self) -> Result<bool, Error> {
        let statement = sqlx::query_scalar(
            "-- store.files.has_files
             select (
               select destination_id
               from cdc_export.exports
               where published_at is not null and file_removed_at is null
               -- This order makes Postgres use an index. `exists` would scan the table up to the first such export.
               order by destination_id
               limit 1) is not null",
        );
        self.with(async |conn| statement.fetch_one(conn).await).await
    }

    /// Returns the committed files of this destination that have no final name yet, and all such files that belong to
    /// another database. Leaves out those of a job whose worker has gone on within the last two seconds. Returns also
    /// an export of each job that has waited for a minute at another destination.
    ///
    /// A lane has at most one such file, because a claim waits for it.
    pub async fn unpublished(&self, destination: Uuid) -> Result<Vec<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/unpublished.sql"))).bind(destination);
        self.with(async |conn| statement.fetch_all(conn).await).await
    }

    /// Returns the files of a job's export of a dataset. Returns `None` if there is no such export that is completed.
    pub async fn file(&self, job: JobId, dataset: &str) -> Result<Option<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/get.sql")));
        let statement = statement.bind(job.as_uuid()).bind(dataset);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Returns true if a job's export of a dataset has failed. Returns `None` if there is no such export.
    pub async fn has_failed(&self, job: JobId, dataset: &str) -> Result<Option<bool>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.files.has_failed
             select status = 'failed' from cdc_export.exports where job = $1 and dataset = $2",
        );
        let statement = statement.bind(job.as_uuid()).bind(dataset);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Returns the files of the last completed export in the lane of `record`: `record` itself, or a later one.
    pub async fn last_of_lane(&self, record: &FileRecord) -> Result<Option<FileRecord>, Error> {
        let statement = sqlx::query_as(with_file_columns(include_str!("files/last_of_lane.sql")))
            .bind(record.files.consumer.as_ref().map(|consumer| consumer.as_str()))
            .bind(&record.files.dataset);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Returns true if a marker names an earlier export of the same lane, and false if it names a later one. Returns
    /// `None` if the database doesn't know the export.
    pub async fn is_after(&self, record: &FileRecord, marker: &Marker) -> Result<Option<bool>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.files.is_after
             select other.lane_sequence < e.lane_sequence
             from cdc_export.exports e
             join cdc_export.exports other using (consumer_id, dataset)
             where e.job = $1 and dataset = $4 and other.job = $2
               and (other.status = 'completed' and other.sha256 = $3
                 -- A failed export that was committed lost its file.
                 or other.status = 'failed' and other.columns_hash is not null)",
        )
        .bind(record.files.job.as_uuid())
        .bind(marker.job.as_uuid())
        .bind(&marker.sha256)
        .bind(&record.files.dataset);
        self.with(async |conn| statement.fetch_optional(conn).await).await
    }

    /// Records that the files have their final names and locations, as URLs, and numbers the export in its lane.
    ///
    /// Returns `None` if another process did so before, or plans the manifest anew.
    pub async fn published(
        &self,
        record: &FileRecord,
        locations: &[Option<String>],
    ) -> Result<Option<Transition>, Error> {
        let places: Vec<_> = record.files.parts.iter().map(|part| Json(&part.staged.identity.location)).collect();
        let statement = sqlx::query_as(with_export_columns(include_str!("files/published.sql")))
            .bind(record.files.job.as_uuid())
            .bind(&record.files.dataset)
            .bind(&record.files.name)
            .bind(places)
            .bind(locations)
            .bind(&record.files.manifest);
        Ok(self.transition(statement, None).await?.pop())
    }

    /// Fails a committed export whose file was lost before it was published, and blocks its consumer's position. Only a
    /// full export continues from there.
    ///
    /// Returns `None` if the export was published, was committed too recently, or has ended otherwise.
    pub async fn give_up(&self, record: &FileRecord) -> Result<Option<Transition>, Error> {
        // A file that belongs to another database is given up at once.
        let after = if record.is_own { LOST_AFTER } else { Duration::ZERO };
        let statement = sqlx::query_as(with_export_columns(include_str!("files/give_up.sql")))
        .bind(record.files.job.as_uuid())
        .bind(&record.files.dataset)
        .bind(&record.files.name)
        .bind(after.as_secs_f64())
        .bind(FailureCode::FileLost.as_str())
        .bind(match record.is_own {
            true => "the file was removed after the commit and before it was published: request a full export",
            false => "this database is a copy, and the file belongs to the original database, which publishes it: request a full export",
        })
        .bind(Continuity::FileLost.as_str());
        Ok(self.transition(statement, None).await?.pop())
    }

    /// Gives a committed file another final name, because its name is taken at the destination. Does nothing if another
    /// process did so before.
    ///
    /// The name is recorded before the file is renamed. So a process that continues after a crash looks for the file
    /// under the right name.
    pub async fn rename_output(&self, record: &FileRecord) -> Result<(), Error> {
        self.transaction(async |tx| {
            let (stem, present) = stem_and_number(&record.files.name, record.encoding);
            // The number only grows. Otherwise one of two publishers could look for the file under a name that the
            // other one went back to.
            let mut number = (names_taken(tx, stem).await? + 1).max(present + 1);
            let mut name = numbered(stem, number, record.encoding);
            while is_taken(tx, stem_of(&name)).await? {
                number += 1;
                name = numbered(stem, number, record.encoding);
            }
            sqlx::query(
                "-- store.files.rename_output
                 update cdc_export.exports set output_filename = $4, manifest = null, digest = null
                 where job = $1 and dataset = $2 and output_filename = $3 and status = 'completed' and published_at is null",
            )
            .bind(record.files.job.as_uuid())
            .bind(&record.files.dataset)
            .bind(&record.files.name)
            .bind(name)
            .execute(tx)
            .await?;
            Ok::<_, Error>(())
        })
        .await
    }
}

/// Returns true if the file of an export has this name with any extension, in upper or lower case.
async fn is_taken(conn: &mut PgConnection, name: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.files.is_taken
         select exists (
           select from cdc_export.exports
           where lower(output_filename) >= lower($1 collate \"C\") || '.'
             and lower(output_filename) < lower($1 collate \"C\") || '/')",
    )
    .bind(name)
    .fetch_one(conn)
    .await
}

/// The limit on counted names of a stem, which is the most that one second brings. Beyond it, the next free number is
/// found by trying.
const MAX_NAMES: i64 = 1_000;

/// Counts the files with this stem, in upper or lower case.
///
/// Counts only names in which `-` or `.` follows the stem. So a consumer whose id begins with another's whole stem
/// isn't counted.
pub(crate) async fn names_taken(conn: &mut PgConnection, stem: &str) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar(
        "-- store.files.names_taken
         select count(*) from (
           select from cdc_export.exports
           where lower(output_filename) >= lower($1 collate \"C\") || '-'
             and lower(output_filename) < lower($1 collate \"C\") || '/'
           limit $2) names",
    )
    .bind(stem)
    .bind(MAX_NAMES)
    .fetch_one(conn)
    .await
}

/// Reads the columns of `files/columns.sql`.
impl FromRow<'_, PgRow> for FileRecord {
    fn from_row(row: &PgRow) -> Result<FileRecord, sqlx::Error> {
        let destination = row.try_get("destination_id")?;
        let Json(files): Json<Vec<StoredFile>> = row.try_get("files")?;
        let part = |StoredFile { name, bytes, rows, sha256, place, .. }| {
            let identity = FileIdentity { bytes, location: place };
            Part { rows, staged: StagedFile { destination, name, sha256, identity } }
        };
        let files = ExportFiles {
            job: row.try_get::<Uuid, _>("job")?.into(),
            consumer: row.try_get::<Option<&str>, _>("consumer_id")?.and_then(|id| id.parse().ok()),
            database: parsed(row, "database")?,
            dataset: row.try_get("dataset")?,
            name: row.try_get("name")?,
            parts: files.into_iter().map(part).collect(),
            manifest: row.try_get("manifest")?,
        };
        Ok(FileRecord {
            files,
            is_own: row.try_get("is_own")?,
            encoding: Encoding { format: parsed(row, "format")?, compression: parsed(row, "compression")? },
            sha256: row.try_get("sha256")?,
            order: row.try_get("lane_sequence")?,
            marker_seen: row.try_get::<Option<Uuid>, _>("marker_seen")?.map(JobId::from),
            finished_at: Some(row.try_get("finished_at")?),
            is_published: row.try_get("is_published")?,
            awaits_standby: row.try_get("awaits_standby")?,
            trace: row.try_get::<Option<&str>, _>("traceparent")?.and_then(|text| text.parse().ok()),
        })
    }
}
