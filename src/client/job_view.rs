//! Jobs and list items as the API shows them: the members that clients use.

use std::fmt::{self, Display};

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::client::answer::PlainText;
use crate::client::{About, Error};
use crate::file::plain_name::{NotPlain, PlainName};
use crate::job::{JobId, Status};

/// A job.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct JobView {
    pub(crate) job_id: PlainText,
    pub(crate) consumer_id: Option<PlainText>,
    pub(crate) dataset: PlainText,
    pub(crate) export_type: PlainText,
    pub(crate) status: PlainText,
    pub(crate) phase: Option<PlainText>,
    pub(crate) progress: u8,
    pub(crate) rows_exported: u64,
    /// None if the export was skipped.
    pub(crate) output_filename: Option<ServedName>,
    pub(crate) sha256: Option<PlainText>,
    pub(crate) number: Option<u64>,
    pub(crate) digest: Option<PlainText>,
    pub(crate) files: Vec<FileView>,
    pub(crate) attempt: u32,
    pub(crate) continuity: Option<PlainText>,
    pub(crate) error: Option<FailureView>,
    pub(crate) next_attempt_at: Option<PlainText>,
    pub(crate) cancel_requested_at: Option<PlainText>,
    /// True if the columns differ from those of the export before.
    pub(super) schema_changed: Option<bool>,
    /// The whole job as the API shows it.
    #[serde(skip)]
    pub(crate) json: Value,
}

/// The name that a service gives to a file. It can be shown. Only a [`PlainName`] can become part of a path.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct ServedName(String);

impl ServedName {
    /// Returns the name if it is that of one visible file, because the service must not choose the folder.
    pub(crate) fn plain(&self) -> Result<PlainName, NotPlain> {
        self.0.parse()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Display for ServedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PlainText::from(self.0.clone()).fmt(f)
    }
}

/// A file of a job.
#[derive(Clone, Deserialize)]
pub(crate) struct FileView {
    pub(crate) part: u32,
    pub(crate) name: ServedName,
    pub(crate) location: Option<PlainText>,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
    pub(crate) sha256: PlainText,
}

impl FileView {
    /// Returns the URL of the file. Returns its name if the URL is a local path, which is useless on another machine.
    pub(crate) fn place(&self) -> String {
        let location = self.location.as_ref().filter(|location| !location.starts_with("file:"));
        location.map_or_else(|| self.name.to_string(), ToString::to_string)
    }
}

/// The reason why a job failed.
#[derive(Clone, Deserialize)]
pub(crate) struct FailureView {
    pub(crate) code: PlainText,
    pub(crate) detail: PlainText,
}

impl JobView {
    pub(crate) fn from_json(json: Value) -> Result<JobView, Error> {
        let view: JobView = serde_json::from_value(json.clone()).about(|| "a job as the API shows it was expected")?;
        Ok(JobView { json, ..view })
    }

    pub(crate) fn id(&self) -> Result<JobId, Error> {
        let id: Uuid = self.job_id.parse().map_err(|_| Error::refused("an export has no id"))?;
        Ok(id.into())
    }

    /// Returns true if the job has ended. A status that only a later version knows counts as open.
    pub(crate) fn has_ended(&self) -> bool {
        self.status.parse::<Status>().is_ok_and(Status::is_terminal)
    }

    /// Returns a remark on an open job: that its cancellation was requested, or why its last attempt failed and when
    /// the next one begins.
    pub(crate) fn remark(&self) -> String {
        if self.cancel_requested_at.is_some() {
            return "  (a cancel was asked for)".to_owned();
        }
        let Some(FailureView { code, detail }) = &self.error else { return String::new() };
        let next = self.next_attempt_at.as_ref().map(|at| format!("; the next one comes at {at}")).unwrap_or_default();
        // An attempt that gave way is given back.
        let attempt =
            if self.attempt == 0 { "the last attempt".to_owned() } else { format!("attempt {}", self.attempt) };
        format!("  ({attempt} failed: {code}: {detail}{next})")
    }

    pub(crate) fn has_status(&self, status: Status) -> bool {
        &*self.status == status.as_str()
    }
}
