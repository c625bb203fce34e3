//! The clients of a service: calls of its API, `pull`, `apply`, `download`, and the reading side of `verify`.
//!
//! Knows neither arguments nor a terminal: an [`Observer`](observer::Observer) shows the user what happens. Knows no
//! SQL.

pub(crate) mod answer;
pub(crate) mod api;
pub(crate) mod download;
pub(crate) mod job_view;
pub(crate) mod lane_reader;
pub(crate) mod manifest_folder;
pub(crate) mod observer;
pub(crate) mod pull_folder;
pub(crate) mod remote;
pub(crate) mod table_mirror;
pub(crate) mod verifier;

use std::fmt::Display;
use std::io;

use tokio::task::JoinError;

use crate::apply;
use crate::client::answer::CallError;
use crate::client::api::RefusedExport;
use crate::manifest::{self, seal};
use crate::sink;

/// The errors of a client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A call of the API failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The service refused to make an export.
    #[error(transparent)]
    ExportRefused(#[from] RefusedExport),
    /// An argument can't be used, whatever the service or the place has.
    #[error("{0}")]
    Usage(String),
    /// The exports don't fit what is there already, or are not as they have to be.
    #[error("{0}")]
    Refused(String),
    /// The target of `apply` refused an export, or is not available.
    #[error(transparent)]
    Apply(#[from] apply::Error),
    /// A folder or bucket of exports can't be read.
    #[error(transparent)]
    Archive(#[from] sink::Error),
    /// A text is not a manifest.
    #[error(transparent)]
    Manifest(#[from] manifest::InvalidManifest),
    /// A manifest was changed.
    #[error(transparent)]
    Changed(#[from] seal::Broken),
    /// A text is not JSON of the expected form.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The system refused to read or write a file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The user can't be shown a result.
    #[error(transparent)]
    Output(io::Error),
    /// A thread panicked.
    #[error(transparent)]
    Thread(#[from] JoinError),
    /// An error, with the file, folder or export that it is about.
    #[error("{subject}")]
    About {
        /// The path or the name.
        subject: String,
        /// The cause.
        #[source]
        cause: Box<Error>,
    },
}

impl Error {
    pub(crate) fn refused(why: impl Into<String>) -> Error {
        Error::Refused(why.into())
    }

    /// Returns the error below all names of files and exports.
    pub(crate) fn root(&self) -> &Error {
        match self {
            Error::About { cause, .. } => cause.root(),
            other => other,
        }
    }

    /// Returns true if the service has removed the file.
    fn is_gone(&self) -> bool {
        matches!(self.root(), Error::Call(CallError::Refused { status: 410, .. }))
    }
}

/// Names the file, folder or export that an error is about.
trait About<T> {
    fn about<S: Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<Error>> About<T> for Result<T, E> {
    fn about<S: Display>(self, subject: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|cause| Error::About { subject: subject().to_string(), cause: Box::new(cause.into()) })
    }
}
