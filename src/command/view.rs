//! Jobs, and items of lists, as the API shows them, as far as commands look at them.

use crate::job::Status;
use anyhow::Context;
use serde::Deserialize;
use serde_json::Value;

use crate::command::answer::PlainText;

/// A job, as far as the commands look at it.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobView {
    pub(crate) job_id: PlainText,
    pub(crate) consumer_id: Option<PlainText>,
    pub(crate) dataset: PlainText,
    pub(crate) export_type: PlainText,
    pub(crate) status: PlainText,
    pub(crate) progress: u8,
    pub(crate) rows_exported: u64,
    pub(crate) output_filename: PlainText,
    pub(crate) sha256: Option<PlainText>,
    pub(crate) number: Option<u64>,
    pub(crate) digest: Option<PlainText>,
    pub(crate) files: Vec<FileView>,
    pub(crate) attempt: u32,
    pub(crate) continuity: Option<PlainText>,
    pub(crate) error: Option<FailureView>,
    pub(crate) next_attempt_at: Option<PlainText>,
    pub(crate) cancel_requested_at: Option<PlainText>,
    /// The whole job as the API shows it.
    #[serde(skip)]
    pub(crate) json: Value,
}

/// A file of a job.
#[derive(Clone, Deserialize)]
pub(crate) struct FileView {
    pub(crate) part: u32,
    pub(crate) name: PlainText,
    pub(crate) location: Option<PlainText>,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) sha256: PlainText,
}

impl FileView {
    /// Its address, or its name if the address is a path, which says nothing to another machine.
    pub(crate) fn place(&self) -> String {
        let location = self.location.as_ref().filter(|location| !location.starts_with("file:"));
        location.unwrap_or(&self.name).to_string()
    }
}

/// The reason of a failed job.
#[derive(Clone, Deserialize)]
pub(crate) struct FailureView {
    pub(crate) code: PlainText,
    pub(crate) detail: PlainText,
}

/// A member of an item of a list, named as by RFC 6901, as the list prints it: without control characters, `-` for null.
pub(crate) fn cell(item: &Value, name: &str) -> String {
    match item.pointer(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => PlainText::from(text.clone()).to_string(),
        Some(other) => other.to_string(),
    }
}

impl JobView {
    pub(crate) fn of(json: Value) -> anyhow::Result<JobView> {
        let view: JobView = serde_json::from_value(json.clone()).context("a job as the API shows it was expected")?;
        Ok(JobView { json, ..view })
    }

    /// Returns true if the job has ended. A status that only a later version knows counts as open.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.parse::<Status>().is_ok_and(Status::is_terminal)
    }

    /// The remark behind an open job's figures: that it was asked to stop, or why its last attempt has failed, and when the
    /// next one comes.
    pub(crate) fn remark(&self) -> String {
        if self.cancel_requested_at.is_some() {
            return "  (a cancel was asked for)".to_owned();
        }
        let Some(FailureView { code, detail }) = &self.error else { return String::new() };
        let next = self.next_attempt_at.as_ref().map(|at| format!("; the next one comes at {at}")).unwrap_or_default();
        format!("  (attempt {} failed: {code}: {detail}{next})", self.attempt)
    }

    pub(crate) fn has_status(&self, status: Status) -> bool {
        &*self.status == status.as_str()
    }
}
