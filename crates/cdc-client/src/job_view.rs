//! Jobs and exports as the API shows them: the members that clients use.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};

use serde::Deserialize;
use serde_json::Value;

use crate::answer::PlainText;
use crate::{About, Error};
use cdc_manifest::{JobId, NotPlain, PlainName};

/// A job, in the form of any request.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView {
    #[serde(rename = "jobId")]
    pub id: JobId,
    pub consumer_id: Option<PlainText>,
    pub status: PlainText,
    pub progress: u8,
    pub attempt: u32,
    pub error: Option<FailureView>,
    pub next_attempt_at: Option<PlainText>,
    pub cancel_requested_at: Option<PlainText>,
}

/// A job whose request had `datasets`.
#[derive(Deserialize)]
pub struct JobOfDatasets {
    #[serde(flatten)]
    pub job: JobView,
    exports: Vec<ExportState>,
}

/// The progress of a job.
pub struct JobProgress<'j> {
    pub job: &'j JobView,
    /// The phase of its export, or that of the one that is furthest. Its status if it has none.
    pub phase: &'j str,
    pub rows: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExportState {
    dataset: PlainText,
    phase: Option<PlainText>,
    rows_exported: u64,
    number: Option<u64>,
    skipped: bool,
}

/// An export, and what it has of its job.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExportView {
    /// The job, with the status of the export.
    #[serde(flatten)]
    pub job: JobView,
    pub dataset: PlainText,
    pub phase: Option<PlainText>,
    pub rows_exported: u64,
    /// None if the export was skipped.
    pub output_filename: Option<ServedName>,
    pub sha256: Option<PlainText>,
    pub number: Option<u64>,
    pub digest: Option<PlainText>,
    pub files: Vec<FileView>,
    pub continuity: Option<PlainText>,
    /// True if the columns differ from those of the export before.
    pub(super) schema_changed: Option<bool>,
    /// The whole export as the API shows it.
    #[serde(skip)]
    pub json: Value,
}

/// The name that a service gives to a file. It can be shown. Only a [`PlainName`] can become part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ServedName(String);

impl ServedName {
    /// Returns the name if it is that of one visible file, because the service must not choose the folder.
    pub fn plain(&self) -> Result<PlainName, NotPlain> {
        self.0.parse()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for ServedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PlainText::from(self.0.clone()).fmt(f)
    }
}

#[derive(Clone, Deserialize)]
pub struct FileView {
    pub part: u32,
    pub name: ServedName,
    pub location: Option<PlainText>,
    pub bytes: u64,
    pub rows: u64,
    pub sha256: PlainText,
}

impl FileView {
    /// Returns the URL of the file. Returns its name if the URL is a local path, which is useless on another machine.
    pub fn place(&self) -> String {
        let location = self.location.as_ref().filter(|location| !location.starts_with("file:"));
        location.map_or_else(|| self.name.to_string(), ToString::to_string)
    }
}

#[derive(Clone, Deserialize)]
pub struct FailureView {
    pub code: PlainText,
    pub detail: PlainText,
    /// The dataset whose export failed, if the job has several.
    dataset: Option<PlainText>,
}

/// The codes of failures of the service's output folder or bucket.
const OF_OUTPUT: [&str; 4] = ["output_missing", "storage_full", "storage_readonly", "storage_unavailable"];

impl FailureView {
    fn is_of_output(&self) -> bool {
        OF_OUTPUT.contains(&&*self.code)
    }
}

/// The code and the detail. A failure of the service's output reads unlike one of this machine's disk.
impl Display for FailureView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whose = if self.is_of_output() { "at the service, " } else { "" };
        write!(f, "{whose}{}: {}", self.code, self.detail)
    }
}

impl JobView {
    /// Returns true if the job has ended. A status that only a later version knows counts as open.
    pub fn has_ended(&self) -> bool {
        matches!(&*self.status, "completed" | "skipped" | "failed" | "cancelled")
    }

    pub fn has_status(&self, status: &str) -> bool {
        &*self.status == status
    }

    /// Returns a remark on an open job: that its cancellation was requested, or why its last attempt failed and when
    /// the next one begins.
    pub fn remark(&self) -> String {
        if self.cancel_requested_at.is_some() {
            return "  (a cancel was asked for)".to_owned();
        }
        let Some(failure) = &self.error else { return String::new() };
        if &*failure.code == "not_published" {
            return format!("  ({failure})");
        }
        let next = self.next_attempt_at.as_ref().map(|at| format!("; the next one comes at {at}")).unwrap_or_default();
        // An attempt that gave way is given back.
        let attempt =
            if self.attempt == 0 { "the last attempt".to_owned() } else { format!("attempt {}", self.attempt) };
        format!("  ({attempt} failed: {failure}{next})")
    }
}

impl JobOfDatasets {
    pub(super) fn numbers(&self) -> BTreeMap<String, u64> {
        self.exports.iter().filter_map(|export| Some((export.dataset.to_string(), export.number?))).collect()
    }

    /// Returns the number of exports of these datasets that are published, or will be unless their files are lost.
    pub(super) fn files_of(&self, datasets: &BTreeSet<String>) -> u64 {
        let is_open = !self.job.has_ended();
        let is_counted = |export: &&ExportState| {
            datasets.contains(&*export.dataset) && (export.number.is_some() || is_open && !export.skipped)
        };
        self.exports.iter().filter(is_counted).count() as u64
    }

    /// Returns the datasets whose exports are committed and have lost no file. A failed job has some only if others
    /// lost their files.
    pub fn completed(&self) -> BTreeSet<&str> {
        let completed = self.exports.iter().filter(|export| export.number.is_some() || export.skipped);
        completed.map(|export| &*export.dataset).collect()
    }

    pub fn failed_dataset(&self) -> Option<&str> {
        self.job.error.as_ref()?.dataset.as_deref()
    }

    /// Returns true if the job failed because the service's output folder or bucket takes no file.
    pub fn is_of_destination(&self) -> bool {
        self.failed_dataset().is_none() && self.job.error.as_ref().is_some_and(FailureView::is_of_output)
    }

    pub(super) fn progress(&self) -> JobProgress<'_> {
        let phases = self.exports.iter().filter_map(|export| export.phase.as_deref());
        let phase = phases.reduce(|one, other| if one == "waiting" || other == "publishing" { other } else { one });
        let rows = self.exports.iter().map(|export| export.rows_exported).sum();
        JobProgress { job: &self.job, phase: phase.unwrap_or(&self.job.status), rows }
    }

    /// Returns the reason why the job is not completed. `None`: it is.
    pub fn failure(&self) -> Option<String> {
        let dataset = self.failed_dataset().map(|dataset| format!("{dataset}: ")).unwrap_or_default();
        let failed = self.job.error.as_ref().map(|error| match error.is_of_output() {
            true => format!("{dataset}{error}"),
            false => format!("{dataset}{}", error.detail),
        });
        let is_completed = self.job.has_status("completed");
        (!is_completed).then(|| failed.unwrap_or_else(|| format!("it was {}", self.job.status)))
    }
}

impl ExportView {
    pub fn progress(&self) -> JobProgress<'_> {
        let phase = self.phase.as_ref().unwrap_or(&self.job.status);
        JobProgress { job: &self.job, phase, rows: self.rows_exported }
    }

    /// Reads the export of a dataset from a job in either form. Without a dataset, reads the only export.
    ///
    /// # Errors
    /// If the job has no export of the dataset, or has several and no dataset is given.
    pub fn from_job(mut job: Value, dataset: Option<&str>) -> Result<ExportView, Error> {
        let exports = match job.as_object_mut().and_then(|job| job.remove("exports")) {
            Some(Value::Array(exports)) => exports,
            _ => vec![job.clone()],
        };
        let is_wanted = |export: &&Value| dataset.is_none_or(|dataset| export["dataset"] == dataset);
        let wanted: Vec<_> = exports.iter().filter(is_wanted).collect();
        let [export] = wanted[..] else {
            let names: Vec<_> = exports.iter().filter_map(|export| export["dataset"].as_str()).collect();
            let names = PlainText::from(names.join(", "));
            return Err(Error::Refused(format!("the job has exports of {names}: --dataset names one of them")));
        };
        // The files of a job are published in any order.
        if !export["number"].is_null() || export["skipped"] == true {
            job["status"] = "completed".into();
        }
        for (name, value) in export.as_object().into_iter().flatten() {
            job[name] = value.clone();
        }
        let view: ExportView =
            serde_json::from_value(job.clone()).about(|| "a job as the API shows it was expected")?;
        Ok(ExportView { json: job, ..view })
    }
}
