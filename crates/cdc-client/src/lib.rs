#![doc = include_str!("../README.md")]

mod answer;
mod api;
mod apply;
mod download;
mod job_view;
mod job_wait;
mod lane_group;
mod lane_reader;
mod manifest_folder;
mod manifest_index;
mod observer;
mod own_file;
mod pull_folder;
mod ready_export;
mod remote;
mod request;
mod spool;
mod table_mirror;
mod verifier;

pub use answer::{AnswerBody, Cause, LocalService, PlainText};
pub use api::{Api, ApiTransport, DatasetView, PAGE_ITEMS};
pub use apply::{Target, TargetConnections, TargetSettings};
pub use download::Output;
pub use job_view::{ExportView, FileView, JobProgress, JobView};
pub use lane_group::{LaneGroup, Turn};
pub use lane_reader::LaneReader;
pub use manifest_folder::ManifestFolder;
pub use observer::Observer;
pub use pull_folder::{PullFolder, WhenLocked};
pub use remote::{RemoteService, ServiceAddress};
pub use request::ExportRequest;
pub use table_mirror::TableMirror;
pub use verifier::{ExportId, Finding, Verification, Verifier};

use std::fmt::Display;
use std::io;

use tokio::task::JoinError;

use crate::answer::CallError;
use crate::api::RefusedExport;
use cdc_manifest::{Broken, NotPlain};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    ExportRefused(#[from] RefusedExport),
    /// An argument is invalid, regardless of the exports in the service or the place.
    #[error("{0}")]
    Usage(String),
    /// The exports don't fit the data at their destination, or are invalid.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("its job is not applied, because of another dataset")]
    JobStopped,
    /// An export's job was requested after the round began. The next round applies it.
    #[error("its job is newer than this round")]
    NextRound,
    #[error(transparent)]
    Name(#[from] NotPlain),
    #[error(transparent)]
    Archive(#[from] cdc_destination::Error),
    #[error(transparent)]
    Manifest(#[from] cdc_manifest::InvalidManifest),
    #[error(transparent)]
    Changed(#[from] Broken),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A result can't be printed.
    #[error(transparent)]
    Output(io::Error),
    #[error(transparent)]
    Thread(#[from] JoinError),
    /// An error with the file, folder or export that it concerns.
    #[error("{subject}")]
    About {
        subject: String,
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    pub fn refused(why: impl Into<String>) -> Error {
        Error::Refused(why.into())
    }

    /// Returns the innermost error, without the names of files and exports around it.
    pub fn root(&self) -> &Error {
        match self {
            Error::About { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// Returns true if the target's Postgres refused the rows of an export, or another statement.
    fn is_of_target(&self) -> bool {
        matches!(self.root(), Error::Apply(apply::Error::Sql { .. }))
    }

    fn is_of_another_lane(&self) -> bool {
        matches!(self.root(), Error::Apply(error) if error.is_of_another_lane())
    }

    fn is_gone(&self) -> bool {
        matches!(self.root(), Error::Call(CallError::Refused { status: 410, .. }))
    }

    /// Returns true if the file of an export is in another folder or bucket than the service has.
    fn is_elsewhere(&self) -> bool {
        matches!(self.root(), Error::Call(error) if error.has_code("file_on_other_host"))
    }
}

/// Adds to an error the name of the file, folder or export that it concerns.
trait About<T> {
    fn about<S: Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<Error>> About<T> for Result<T, E> {
    fn about<S: Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|cause| Error::About { subject: subject().to_string(), cause: Box::new(cause.into()) })
    }
}
