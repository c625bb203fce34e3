//! Why an attempt ended without a file, and what is tried again.

use crate::job::{Continuity, Failure, FailureCode};
use crate::store::queue::Settlement;
use crate::worker::heartbeat::Stop;
use crate::{pipeline, sink, source, store};

/// Why an attempt ended without a file.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Source(#[from] source::Error),
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Sink(#[from] sink::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the attempt was stopped: {0}")]
    Stopped(Stop),
    #[error("the consumer's watermark was changed while the export ran")]
    WatermarkChanged,
    #[error("the lease is somebody else's, or the job was cancelled")]
    NotOurs,
}

impl Error {
    /// What becomes of the job. An error is tried again if its cause may be gone next time: the database, locks, room on the disk.
    pub(super) fn settlement(&self) -> Settlement {
        use pipeline::Error as Pipe;
        let failure = |code| Failure { continuity: None, code, detail: self.to_string() };
        match self {
            Error::Stopped(Stop::Shutdown | Stop::CancelAsked | Stop::LeaseLost) | Error::NotOurs => {
                Settlement::Release
            }
            Error::Stopped(Stop::Silence) => Settlement::Retry(failure(FailureCode::SourceUnavailable)),
            Error::WatermarkChanged => Settlement::Retry(failure(FailureCode::WatermarkChanged)),
            Error::Store(
                store::Error::Unavailable(_) | store::Error::LockConflict(_) | store::Error::XidsSetBack(_),
            ) => Settlement::Retry(failure(FailureCode::SourceUnavailable)),
            Error::Store(store::Error::Denied(_)) => Settlement::Fail(failure(FailureCode::PermissionDenied)),
            Error::Store(store::Error::Sql(_) | store::Error::Unknown(_) | store::Error::Identity(_)) => {
                Settlement::Fail(failure(FailureCode::Internal))
            }
            Error::Source(cause) | Error::Pipeline(Pipe::Source(cause)) => match cause {
                source::Error::Unavailable(_) | source::Error::LockConflict(_) => {
                    Settlement::Retry(failure(FailureCode::SourceUnavailable))
                }
                source::Error::Standby => Settlement::Retry(failure(FailureCode::SourceUnavailable)),
                source::Error::FullExportNeeded { why, .. } => {
                    let failure = failure(FailureCode::FullExportNeeded);
                    Settlement::Fail(Failure { continuity: Some(*why), ..failure })
                }
                source::Error::JobRestored(_) => {
                    let failure = failure(FailureCode::FullExportNeeded);
                    Settlement::Fail(Failure { continuity: Some(Continuity::DatabaseRestored), ..failure })
                }
                source::Error::TableMissing { .. } => Settlement::Fail(failure(FailureCode::TableMissing)),
                source::Error::NotTracked(_) => Settlement::Fail(failure(FailureCode::NotTracked)),
                source::Error::Mismatch(faults) => Settlement::Fail(failure(match faults.0.as_slice() {
                    [fault] if fault.member == "table" => FailureCode::TableMissing,
                    _ => FailureCode::DatasetMismatch,
                })),
                source::Error::InvalidText { .. } => Settlement::Fail(failure(FailureCode::InvalidText)),
                source::Error::RowTooLarge { .. } | source::Error::RowBeyondPostgres { .. } => {
                    Settlement::Fail(failure(FailureCode::RowTooLarge))
                }
                source::Error::Unreadable { .. } => Settlement::Fail(failure(FailureCode::ValueUnreadable)),
                source::Error::NotReadable(_) | source::Error::Denied { .. } => {
                    Settlement::Fail(failure(FailureCode::PermissionDenied))
                }
                source::Error::Sql(_) | source::Error::Protocol(_) | source::Error::ReceiverGone => {
                    Settlement::Fail(failure(FailureCode::Internal))
                }
            },
            Error::Sink(cause) | Error::Pipeline(Pipe::Sink(cause)) => match cause {
                sink::Error::Full(_) => Settlement::Retry(failure(FailureCode::StorageFull)),
                sink::Error::ReadOnly(_) => Settlement::Fail(failure(FailureCode::StorageReadonly)),
                sink::Error::Missing(_) | sink::Error::Unused | sink::Error::Replaced(_) | sink::Error::Settings(_) => {
                    Settlement::Fail(failure(FailureCode::OutputMissing))
                }
                sink::Error::Unavailable(_) => Settlement::Retry(failure(FailureCode::StorageUnavailable)),
                sink::Error::TooLarge(_) => Settlement::Fail(failure(FailureCode::FileTooLarge)),
                sink::Error::Stopped => Settlement::Release,
                // An attempt writes to its own destination.
                sink::Error::Elsewhere | sink::Error::Gone => Settlement::Fail(failure(FailureCode::Internal)),
                // A disk that failed once gets another try, with a file written anew.
                sink::Error::Io(_) => Settlement::Retry(failure(FailureCode::Internal)),
            },
            Error::Pipeline(Pipe::InvalidText(_)) => Settlement::Fail(failure(FailureCode::InvalidText)),
            Error::Pipeline(Pipe::NotInFormat(_)) => Settlement::Fail(failure(FailureCode::NotInFormat)),
            Error::Pipeline(Pipe::WrongRow(_)) => Settlement::Fail(failure(FailureCode::Internal)),
            Error::Pipeline(Pipe::TooManyFiles) => Settlement::Fail(failure(FailureCode::FileTooLarge)),
            Error::Pipeline(Pipe::Compressor(_)) => Settlement::Retry(failure(FailureCode::Internal)),
            Error::Pipeline(Pipe::Panicked(_)) => Settlement::Fail(failure(FailureCode::Internal)),
        }
    }
}
