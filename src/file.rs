//! The files of an export: the result of an attempt, and the record of a committed export.
//!
//! This module must not know the table that records them.

pub mod name;

use cdc_destination::{ExportFiles, Marker, Part};
use cdc_manifest::JobId;
use chrono::{DateTime, Utc};
use pg_rows::encoding::Encoding;

use crate::trace::TraceParent;

/// The result of a successful attempt: complete and durable files, still under their hidden names.
#[derive(Clone, Debug, Default)]
pub struct Exported {
    /// The number of rows in all files, without headers.
    pub rows: u64,
    /// The number of rows that the timestamps alone would have missed.
    pub late_rows: u64,
    /// The latest finite `updated_at` of the rows that are not deleted.
    pub last_updated_at: Option<DateTime<Utc>>,
    /// The files in the order of their parts. None if the export is skipped, because there is nothing to export.
    pub parts: Vec<Part>,
}

/// The files of a committed export as the database has them.
#[derive(Clone, Debug)]
pub struct FileRecord {
    pub files: ExportFiles,
    /// True if a service on this database wrote the files. A service on a copy of the database must not rename or
    /// remove the files of the original.
    pub is_own: bool,
    pub encoding: Encoding,
    /// The digest of the content: see [`content_sha256`](cdc_destination::content_sha256).
    pub sha256: String,
    /// The place of the export in its lane. `None` for an ad-hoc export.
    pub order: Option<i64>,
    /// The job of the export that the destination's marker of the lane named when the attempt began.
    pub marker_seen: Option<JobId>,
    /// The time of the commit. `None` in the process that has just committed.
    pub finished_at: Option<DateTime<Utc>>,
    pub is_published: bool,
    /// True if Postgres has a synchronous standby, which may lack the commit.
    pub awaits_standby: bool,
    pub trace: Option<TraceParent>,
}

impl FileRecord {
    /// Returns the marker that the destination stores for the lane before these files are published.
    pub fn marker(&self) -> Marker {
        Marker { job: self.files.job, sha256: self.sha256.clone(), order: self.order.unwrap_or_default() }
    }
}
