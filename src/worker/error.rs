//! The reasons why an attempt ended without a file, and the decision about a retry.

use crate::job::{Failure, FailureCode};
use crate::store::queue::Settlement;
use crate::worker::heartbeat::Stop;
use crate::{pipeline, store};
use cdc_capture::{Continuity, Refused};
use cdc_dataset::Fault;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Source(#[from] cdc_capture::Error),
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Sink(#[from] cdc_destination::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the attempt was stopped: {0}")]
    Stopped(Stop),
    #[error("the consumer's watermark was changed while the export ran")]
    WatermarkChanged,
    #[error("another worker has the lease, or the job was cancelled")]
    NotOurs,
    #[error("the database was restored: the job got a place behind the exports that the destination has")]
    LaneRaised,
}

#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct Failed {
    /// The place of the export that ended it, or the places of all that a full export would help. None if it concerns
    /// all of them.
    pub(super) at: Box<[usize]>,
    #[source]
    pub(super) error: Error,
}

impl Failed {
    /// Returns an error as that of the export at this place.
    pub(super) fn at<E: Into<Error>>(at: usize) -> impl Fn(E) -> Failed {
        move |error| Failed { at: Box::new([at]), error: error.into() }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { at: Box::default(), error }
    }
}

impl From<Refused> for Failed {
    fn from(Refused { at, error }: Refused) -> Failed {
        Failed { at, error: error.into() }
    }
}

impl Failed {
    /// Returns the place of the export that ended the attempt. Returns `None` if the error concerns all exports. Most
    /// errors of the destination do, but a full one may have room for the other exports.
    pub(super) fn export(&self) -> Option<usize> {
        let concerns_all = match &self.error {
            Error::Sink(cause) | Error::Pipeline(pipeline::Error::Sink(cause)) => {
                !matches!(cause, cdc_destination::Error::Full(_) | cdc_destination::Error::TooLarge(_))
            }
            _ => false,
        };
        self.at.first().copied().filter(|_| !concerns_all)
    }

    pub(super) fn need_full_exports(&self) -> &[usize] {
        match &self.error {
            Error::Source(cause) | Error::Pipeline(pipeline::Error::Source(cause)) if cause.needs_full_export() => {
                &self.at
            }
            _ => &[],
        }
    }
}

impl Error {
    /// An error is retried if its cause may be temporary: the database, locks, or a full disk. `dataset` is that of the
    /// export that ended the attempt, if one did.
    pub(super) fn settlement(&self, dataset: Option<&str>) -> Settlement {
        use pipeline::Error as Pipe;
        let dataset = || dataset.map(str::to_owned);
        let failure = |code, continuity| Failure { continuity, code, detail: self.to_string(), dataset: dataset() };
        let retry = |code| Settlement::Retry(failure(code, None));
        let fail = |code| Settlement::Fail(failure(code, None));
        match self {
            Error::Stopped(Stop::Shutdown | Stop::CancelAsked | Stop::LeaseLost)
            | Error::NotOurs
            | Error::LaneRaised => Settlement::Release,
            Error::Stopped(Stop::Silence) => retry(FailureCode::SourceUnavailable),
            Error::WatermarkChanged => retry(FailureCode::WatermarkChanged),
            Error::Store(
                store::Error::Unavailable(_) | store::Error::LockConflict(_) | store::Error::StandbyMissing,
            ) => retry(FailureCode::SourceUnavailable),
            Error::Store(store::Error::Denied(_)) => fail(FailureCode::PermissionDenied),
            Error::Store(store::Error::Sql(_) | store::Error::Unknown(_) | store::Error::Identity(_)) => {
                fail(FailureCode::Internal)
            }
            Error::Source(cause) | Error::Pipeline(Pipe::Source(cause)) => match cause {
                cdc_capture::Error::Unavailable(_) => retry(FailureCode::SourceUnavailable),
                cdc_capture::Error::TooManyLocks { .. } => fail(FailureCode::TooManyLocks),
                cdc_capture::Error::GaveWay { .. } => Settlement::GiveWay(failure(FailureCode::GaveWay, None)),
                cdc_capture::Error::ForeignServer { code, .. } if may_pass(code) => {
                    retry(FailureCode::SourceUnavailable)
                }
                cdc_capture::Error::ForeignServer { .. } => fail(FailureCode::SourceUnavailable),
                cdc_capture::Error::LockConflict { .. } => {
                    Settlement::RetryLocked(failure(FailureCode::SourceUnavailable, None))
                }
                cdc_capture::Error::FullExportNeeded { why, .. } => {
                    Settlement::Fail(failure(FailureCode::FullExportNeeded, Some(*why)))
                }
                cdc_capture::Error::JobRestored(_) => {
                    let why = Some(Continuity::DatabaseRestored);
                    Settlement::Fail(failure(FailureCode::FullExportNeeded, why))
                }
                cdc_capture::Error::TableMissing { .. } => fail(FailureCode::TableMissing),
                cdc_capture::Error::NotTracked(_) => fail(FailureCode::NotTracked),
                cdc_capture::Error::FullOnly(_) => fail(FailureCode::FullOnly),
                cdc_capture::Error::Mismatch(faults) => match faults.0.as_slice() {
                    faults if faults.iter().any(Fault::is_of_removed_mask) => {
                        Settlement::Fail(failure(FailureCode::DatasetMismatch, Some(Continuity::MaskRemoved)))
                    }
                    [fault] if fault.member == "table" => fail(FailureCode::TableMissing),
                    _ => fail(FailureCode::DatasetMismatch),
                },
                cdc_capture::Error::CantPlan(_) => fail(FailureCode::DatasetMismatch),
                cdc_capture::Error::InvalidText { .. } => fail(FailureCode::InvalidText),
                cdc_capture::Error::RowTooLarge { .. } | cdc_capture::Error::RowBeyondPostgres { .. } => {
                    fail(FailureCode::RowTooLarge)
                }
                cdc_capture::Error::Unreadable { .. } => fail(FailureCode::ValueUnreadable),
                cdc_capture::Error::NotReadable(_) | cdc_capture::Error::Denied { .. } => {
                    fail(FailureCode::PermissionDenied)
                }
                cdc_capture::Error::Sql(_) | cdc_capture::Error::Protocol(_) | cdc_capture::Error::ReceiverGone => {
                    fail(FailureCode::Internal)
                }
            },
            Error::Sink(cause) | Error::Pipeline(Pipe::Sink(cause)) => match cause {
                cdc_destination::Error::Full(_) => retry(FailureCode::StorageFull),
                cdc_destination::Error::ReadOnly(_) => fail(FailureCode::StorageReadonly),
                cdc_destination::Error::Missing(_)
                | cdc_destination::Error::Unused
                | cdc_destination::Error::Replaced(_)
                | cdc_destination::Error::Settings(_) => fail(FailureCode::OutputMissing),
                cdc_destination::Error::Unavailable(_) | cdc_destination::Error::Stalled(_) => {
                    retry(FailureCode::StorageUnavailable)
                }
                cdc_destination::Error::TooLarge(_) => fail(FailureCode::FileTooLarge),
                // Unreachable: an attempt writes only to its own destination, and ends before its drafts are stopped.
                cdc_destination::Error::Elsewhere | cdc_destination::Error::Gone | cdc_destination::Error::Stopped => {
                    fail(FailureCode::Internal)
                }
                // After an I/O error, the job is retried with a new file.
                cdc_destination::Error::Io(_) => retry(FailureCode::Internal),
            },
            Error::Pipeline(Pipe::InvalidText(_)) => fail(FailureCode::InvalidText),
            Error::Pipeline(Pipe::NotInFormat(_)) => fail(FailureCode::NotInFormat),
            Error::Pipeline(Pipe::WrongRow(_)) => fail(FailureCode::Internal),
            // Another process may have the secret that the database accepts.
            Error::Pipeline(Pipe::NoMaskSecret) => retry(FailureCode::DatasetMismatch),
            Error::Pipeline(Pipe::TooManyFiles) => fail(FailureCode::FileTooLarge),
            Error::Pipeline(Pipe::Compressor(_)) => retry(FailureCode::Internal),
            Error::Pipeline(Pipe::Panicked(_)) => fail(FailureCode::Internal),
        }
    }
}

/// Returns true if another attempt may succeed after this error of a foreign server: it could not be reached, had no
/// memory, or says no more than that it failed. The other errors are of the foreign table's definition.
fn may_pass(sqlstate: &str) -> bool {
    sqlstate.starts_with("08") || ["HV000", "HV001", "HV00L", "HV00M", "HV00N"].contains(&sqlstate)
}
