//! An era as the database records it: its exports, the tables of the recorder, and the exported tables.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use anyhow::Result;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use crate::log_bound;
use crate::recorder::{self, Commits, History, MoveMade, Row, Step, Versions};
use crate::replay::Window;

pub(crate) const FILE_LOST: &str = "file_lost";
/// The torture's own error code for the exports of a failed job that did not fail themselves.
pub(crate) const OTHER_FAILED: &str = "other_dataset_failed";

/// A job and a lane, which identify an export: a job has at most one export in a lane.
pub(crate) type ExportId = (Uuid, String);

#[derive(Debug, sqlx_macros::FromRow)]
pub(crate) struct Export {
    pub(crate) job: Uuid,
    /// `consumer/dataset`. Empty for an ad-hoc export.
    pub(crate) lane: String,
    /// Empty for an ad-hoc export.
    pub(crate) consumer_id: String,
    pub(crate) is_of_datasets: bool,
    pub(crate) dataset: String,
    pub(crate) lane_sequence: Option<i64>,
    pub(crate) number: Option<i64>,
    /// Highest key that an ad-hoc export may have.
    pub(crate) up_to: Option<i64>,
    pub(crate) export_type: String,
    pub(crate) status: String,
    pub(crate) removed: bool,
    pub(crate) skip_empty: Option<bool>,
    pub(crate) skipped_by: Option<Uuid>,
    pub(crate) error_code: Option<String>,
    pub(crate) continuity: Option<String>,
    pub(crate) schema_changed: Option<bool>,
    pub(crate) rows_exported: i64,
    pub(crate) bytes_written: i64,
    pub(crate) output_filename: String,
    pub(crate) sha256: Option<String>,
    pub(crate) staged_name: Option<String>,
    pub(crate) location: Option<String>,
    pub(crate) digest: Option<String>,
    pub(crate) published: bool,
    pub(crate) watermark_from: Option<DateTime<Utc>>,
    pub(crate) watermark_to: Option<DateTime<Utc>>,
    pub(crate) after_job: Option<Uuid>,
    pub(crate) after_sha256: Option<String>,
}

/// An export of a lane as its consumer received it. After a restore of the database, a job may make another file under
/// its old id, or be skipped again.
pub(crate) type Delivered = (Uuid, String);

impl Export {
    pub(crate) fn id(&self) -> ExportId {
        (self.job, self.lane.clone())
    }

    pub(crate) fn delivered(&self) -> Delivered {
        let skipped_by = || self.skipped_by.map(|token| token.to_string());
        (self.job, self.sha256.clone().or_else(skipped_by).unwrap_or_default())
    }

    pub(crate) fn after(&self) -> Option<Delivered> {
        Some((self.after_job?, self.after_sha256.clone()?))
    }

    /// Returns true if the file of a committed export was gone before it got its name. The position stays moved.
    pub(crate) fn has_lost_its_file(&self) -> bool {
        self.error_code.as_deref() == Some(FILE_LOST)
    }

    /// Returns true if the export moved its position, with a file or without one.
    pub(crate) fn has_committed(&self) -> bool {
        ["completed", "skipped"].contains(&self.status.as_str()) || self.has_lost_its_file()
    }
}

pub(crate) struct Era {
    pub(crate) exports: Vec<Export>,
    pub(crate) history: History,
    pub(crate) moves: Vec<MoveMade>,
    pub(crate) versions: BTreeMap<String, Versions>,
    pub(crate) tables: BTreeMap<&'static str, BTreeMap<i64, Row>>,
    /// The refused exports whose positions may have been given up because of the bound of the change log.
    pub(crate) given_up: HashSet<ExportId>,
    pub(crate) commits: Commits,
}

#[derive(Default)]
pub(crate) struct Job<'e> {
    pub(crate) is_of_datasets: bool,
    pub(crate) exports: Vec<&'e Export>,
    /// `committed` for each export that moved its consumer's position, otherwise its status.
    pub(crate) states: BTreeSet<&'e str>,
    pub(crate) commits: BTreeSet<i64>,
    pub(crate) snapshots: BTreeSet<&'e str>,
}

impl Era {
    pub(crate) async fn read(conn: &mut PgConnection) -> Result<Era> {
        let exports = sqlx::query_as(
            "select job, lane, coalesce(consumer_id, '') as consumer_id, is_of_datasets, dataset, lane_sequence, number,
               (selection->'filter'->0->>'value')::bigint as up_to, export_type, status, error_code,
               report->>'continuity' as continuity, (report->>'schemaChanged')::boolean as schema_changed,
               rows_exported, bytes_written, output_filename, sha256, staged_name,
               (select location from cdc_export.files f where (f.job, f.dataset, f.part) = (e.job, e.dataset, 1)),
               digest, published_at is not null as published, watermark_from, watermark_to, after_job, after_sha256,
               removed, skip_empty,
               (select token_was from torture.steps s where (s.job, s.lane, s.became) = (e.job, e.lane, 'skipped'))
                 as skipped_by
             from torture.exports e order by lane, lane_sequence",
        );
        let exports: Vec<Export> = exports.fetch_all(&mut *conn).await?;
        let (history, versions) = (History::read(conn).await?, recorder::versions(conn).await?);
        let mut tables = BTreeMap::new();
        for table in recorder::TABLES {
            tables.insert(table, recorder::table(conn, table).await?);
        }
        let moves = recorder::moves(conn).await?;
        let given_up = log_bound::given_up(&exports, &history, &recorder::written(conn).await?);
        let commits = recorder::commits(conn).await?;
        Ok(Era { exports, history, moves, versions, tables, given_up, commits })
    }

    pub(crate) fn completed(&self) -> impl Iterator<Item = &Export> {
        self.exports.iter().filter(|export| export.status == "completed")
    }

    pub(crate) fn of_lane(&self, lane: &str) -> impl Iterator<Item = &Export> {
        self.exports.iter().filter(move |export| export.lane == lane)
    }

    /// Returns true if an export leaves its lane without a position: it has no rows, and the lane had none before.
    pub(crate) fn leaves_no_position(&self, export: &Export) -> bool {
        let Some((xid, None)) = self.commits.get(&export.id()) else { return false };
        let moved = |other: &Export| self.commits.get(&other.id()).is_some_and(|(at, to)| at < xid && to.is_some());
        export.rows_exported == 0 && !self.of_lane(&export.lane).any(moved)
    }

    pub(crate) fn jobs(&self) -> BTreeMap<Uuid, Job<'_>> {
        let mut jobs = BTreeMap::<Uuid, Job<'_>>::new();
        for export in &self.exports {
            let job = jobs.entry(export.job).or_default();
            job.is_of_datasets = export.is_of_datasets;
            job.exports.push(export);
            job.states.insert(if export.has_committed() { "committed" } else { &export.status });
            if let Some((xid, snapshot)) = self.commits.get(&export.id()).filter(|_| export.has_committed()) {
                job.commits.insert(*xid);
                job.snapshots.extend(snapshot.as_deref());
            }
        }
        jobs
    }

    /// Returns the window from the claim of the attempt that completed or skipped an export to its commit.
    pub(crate) fn window(&self, export: &Export) -> Option<Window> {
        let attempts = &self.history.attempts;
        let (attempt, end) = match export.skipped_by {
            Some(token) => (attempts.get(&token)?, "skipped"),
            None => {
                let staged = export.staged_name.as_deref()?;
                let written = attempts.iter().find(|(token, _)| staged.contains(&token.to_string()))?;
                (written.1, "completed")
            }
        };
        let is_commit = |step: &&Step| (step.job, &step.lane) == (export.job, &export.lane) && step.became == end;
        let committed = self.history.steps.iter().find(is_commit)?;
        Some(Window { from: attempt.saw.clone(), to: committed.snapshot.clone() })
    }
}
