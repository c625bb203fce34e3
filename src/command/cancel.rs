//! `cancel`: cancels an export that is waiting or running.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::{JobId, Status};
use anyhow::bail;
use clap::Args;

use crate::command::server::ServerOption;
use crate::command::words::job_id;

/// The export to cancel.
#[derive(Args)]
pub(crate) struct Cancel {
    /// The id of the export
    #[arg(value_name = "EXPORT", value_parser = job_id)]
    job: JobId,
    #[command(flatten)]
    at: ServerOption,
}

impl Cancel {
    /// Cancels the export, and prints its new status.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let id = self.job;
        self.at.run(CatalogFile::Read, async |api| {
            let is_requested = api.cancel(id).await?;
            let job = api.job(id).await?;
            match is_requested {
                true if job.has_status(Status::Cancelled) => outln!("{id} is cancelled."),
                true => outln!("{id} is {}, and its worker was asked to stop.", job.status),
                false if job.has_ended() => bail!("{id} is {} already", job.status),
                false => bail!("{id} is being committed: it is too late to cancel it"),
            }
        })
    }
}
