//! `cancel`: cancels an export or a batch that is waiting or running.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::Status;
use anyhow::bail;
use clap::Args;

use crate::client::api::Subject;
use crate::command::server::ServerOption;
use crate::command::words::SubjectArgument;

/// The export or the batch to cancel.
#[derive(Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    subject: SubjectArgument,
    #[command(flatten)]
    at: ServerOption,
}

impl Cancel {
    /// Cancels the export or the batch, and prints the new status.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let subject = self.subject.subject();
        self.at.run(CatalogFile::Read, async |api| {
            let is_requested = api.cancel(subject).await?;
            let id = subject.id();
            let (status, is_cancelled, has_ended) = match subject {
                Subject::Export(id) => {
                    let job = api.job(id).await?;
                    (job.status.clone(), job.has_status(Status::Cancelled), job.has_ended())
                }
                Subject::Batch(id) => {
                    let batch = api.batch(id).await?;
                    (batch.status.clone(), batch.has_status(Status::Cancelled), batch.has_ended())
                }
            };
            match is_requested {
                true if is_cancelled => outln!("{id} is cancelled."),
                true => outln!("{id} is {status}, and its worker was asked to stop."),
                false if has_ended => bail!("{id} is {status} already"),
                false => bail!("{id} is being committed: it is too late to cancel it"),
            }
        })
    }
}
