//! Plans the manifests of committed exports.
//!
//! The text of a manifest is saved before any reader can see it. So a process that continues after a crash writes the
//! same manifest.

use sqlx::types::Json;

use crate::file::FileRecord;
use crate::job::Export;
use crate::job::json::rfc3339;
use crate::store::commit::Commit;
use crate::store::export_row::{ExportRow, with_export_columns};
use crate::store::lease::{Lease, LeasedExport};
use crate::store::{Error, Store};
use cdc_dataset::FileColumns;
use cdc_destination::{ExportFiles, content_sha256};
use cdc_manifest::{Chained, JobId, Manifest, ManifestDatasets, ManifestJob};

#[derive(Debug)]
pub enum Planned {
    /// The text is saved. The fields are its number and its text.
    Written(u64, String),
    /// The text is not saved yet. The fields are its number and the export that it describes, without the paths of the
    /// files.
    New(u64, Box<Chained>),
}

#[derive(sqlx_macros::FromRow)]
struct PlannedRow {
    #[sqlx(flatten)]
    export: ExportRow,
    next_number: i64,
    previous: Option<String>,
    manifest: Option<String>,
    with_files: i64,
    file_columns: Json<FileColumns>,
}

impl Store {
    /// Returns `None` if the export is published, was given up, or has no consumer.
    pub async fn planned_manifest(&self, record: &FileRecord) -> Result<Option<Planned>, Error> {
        let statement = sqlx::query_as(with_export_columns(include_str!("manifests/planned.sql")))
            .bind(record.files.job.as_uuid())
            .bind(&record.files.dataset)
            .bind(&record.files.name);
        let row: Option<PlannedRow> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        let Some(PlannedRow { export, next_number, previous, manifest, with_files, file_columns }) = row else {
            return Ok(None);
        };
        let number = next_number.unsigned_abs();
        Ok(Some(match manifest {
            Some(text) => Planned::Written(number, text),
            None => {
                let (export, with_files) = (Export::try_from(export)?, with_files.unsigned_abs());
                Planned::New(number, Box::new(chained(export, record, file_columns.0, previous, with_files)))
            }
        }))
    }

    /// Waits until the synchronous standby has the commit of this record, if the settings of the server and the role
    /// require that of a commit. The wait is that of a later commit.
    pub async fn await_standby(&self, record: &FileRecord) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.manifests.await_standby
             update cdc_export.exports set marker_seen = marker_seen
             where job = $1 and dataset = $2 and status = 'completed' and published_at is null",
        )
        .bind(record.files.job.as_uuid())
        .bind(&record.files.dataset);
        self.execute(statement).await.map(drop)
    }

    /// Saves a manifest. Does nothing if another process saved one before, or if the file has another name by now.
    pub async fn plan_manifest(&self, record: &FileRecord, manifest: &Manifest) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.manifests.plan
             update cdc_export.exports set manifest = $4, digest = $5
             where job = $1 and dataset = $2 and output_filename = $3 and status = 'completed' and published_at is null
               and manifest is null",
        )
        .bind(record.files.job.as_uuid())
        .bind(&record.files.dataset)
        .bind(&record.files.name)
        .bind(manifest.text())
        .bind(&manifest.digest);
        self.execute(statement).await.map(drop)
    }

    /// Continues the numbers of the lane after `number`, and discards the plan of this record's manifest.
    ///
    /// The destination has this number from another export, which the database lost in a restore.
    ///
    /// Returns false if another plan has replaced this one, or if the export is published or was given up.
    pub async fn skip_to(&self, record: &FileRecord, number: u64) -> Result<bool, Error> {
        let statement = sqlx::query(
            "-- store.manifests.skip_to
             with replanned as (
               update cdc_export.exports set manifest = null, digest = null
               where job = $1 and dataset = $4 and status = 'completed' and published_at is null and manifest = $3
               returning consumer_id, dataset)
             update cdc_export.lanes l set last_number = $2
             from replanned r where l.consumer_id = r.consumer_id and l.dataset = r.dataset and l.last_number < $2",
        )
        .bind(record.files.job.as_uuid())
        .bind(number as i64)
        .bind(&record.files.manifest)
        .bind(&record.files.dataset);
        Ok(self.execute(statement).await? > 0)
    }

    /// Returns the text of a published export's manifest, or `None` if it has none.
    pub async fn manifest(&self, job: JobId, dataset: &str) -> Result<Option<String>, Error> {
        let statement = sqlx::query_scalar(
            "-- store.manifests.get
             select manifest from cdc_export.exports where job = $1 and dataset = $2 and published_at is not null",
        )
        .bind(job.as_uuid())
        .bind(dataset);
        let text: Option<Option<String>> = self.with(async |conn| statement.fetch_optional(conn).await).await?;
        Ok(text.flatten())
    }
}

/// Returns the record that a commit will make of an attempt, and the content of its manifest. `with_files` is the
/// number of the attempt's exports that have files.
///
/// The content is `None` for a job without a consumer.
pub fn uncommitted(
    lease: &Lease,
    LeasedExport { export, link }: &LeasedExport,
    commit: &Commit<'_>,
    with_files: usize,
) -> (FileRecord, Option<Chained>) {
    let exported = commit.exported;
    let files = ExportFiles {
        job: export.job,
        consumer: export.consumer.clone(),
        database: lease.database.clone(),
        dataset: export.dataset.clone(),
        name: export.output_filename.clone(),
        parts: exported.parts.clone(),
        manifest: None,
    };
    let record = FileRecord {
        files,
        is_own: true,
        encoding: export.encoding,
        sha256: content_sha256(&exported.parts),
        order: export.order,
        marker_seen: commit.marker,
        finished_at: None,
        is_published: false,
        awaits_standby: false,
        trace: export.trace,
    };
    let chained = link.as_ref().map(|link| {
        let export = Export {
            report: commit.report.clone(),
            watermark_from: commit.position.last_exported_at,
            watermark_to: commit.position.advanced_to(exported.last_updated_at),
            rows_exported: exported.rows,
            ..export.clone()
        };
        chained(export, &record, commit.columns.clone(), link.previous.clone(), with_files as u64)
    });
    (record, chained)
}

/// Returns the content of a manifest, without the paths of the files. `with_files` is the number of the job's exports
/// that have files.
fn chained(
    export: Export,
    record: &FileRecord,
    columns: FileColumns,
    previous: Option<String>,
    with_files: u64,
) -> Chained {
    let (cluster, database) = record.files.database.as_str().split_once('-').unwrap_or_default();
    let FileColumns { columns, key, table, snapshot, begins } = columns;
    // Whoever has loaded earlier exports can't go on with it.
    let previous = previous.filter(|_| !begins);
    let file = |part: &cdc_destination::Part| cdc_manifest::ManifestFile {
        sha256: part.staged.sha256.clone(),
        bytes: part.staged.identity.bytes.to_string(),
        rows: part.rows.to_string(),
        path: None,
    };
    Chained {
        version: cdc_manifest::VERSION.to_owned(),
        job: match export.is_of_datasets {
            true => ManifestJob::OfSeveral(ManifestDatasets {
                id: export.job.to_string(),
                datasets: with_files.to_string(),
            }),
            false => ManifestJob::One(export.job.to_string()),
        },
        source: cdc_manifest::ManifestSource { cluster: cluster.to_owned(), database: database.to_owned() },
        consumer: export.consumer.map(|consumer| consumer.to_string()).unwrap_or_default(),
        dataset: export.dataset,
        table: Some(table),
        export_type: export.export_type.to_string(),
        key,
        columns: columns
            .into_iter()
            .map(|column| cdc_manifest::ManifestColumn {
                name: column.name,
                type_name: column.type_name,
                base: column.base,
                mask: column.mask,
                meta: column.meta,
            })
            .collect(),
        format: export.encoding.format.to_string(),
        compression: export.encoding.compression.to_string(),
        snapshot,
        continuity: export.report.continuity.map(|word| word.to_string()),
        watermark_from: export.watermark_from.map(rfc3339),
        watermark_to: export.watermark_to.map(rfc3339),
        rows: export.rows_exported.to_string(),
        files: record.files.parts.iter().map(file).collect(),
        previous,
        order: export.order.map(|order| order.to_string()),
    }
}
