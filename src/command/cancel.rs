//! `cancel`: stops an export that is waiting or running.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::{JobId, Status};
use anyhow::bail;
use clap::Args;
use uuid::Uuid;

use crate::command::api::Api;
use crate::command::server::Server;
use crate::command::words::job_id;

/// Which export to cancel.
#[derive(Args)]
pub(crate) struct Cancel {
    /// The id of the export
    #[arg(value_name = "EXPORT")]
    #[arg(value_parser = job_id)]
    job: Uuid,
    #[command(flatten)]
    at: Server,
}

impl Cancel {
    /// Cancels the export, and prints what became of it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Read, async |api| cancel(api, self.job.into()).await)
    }
}

async fn cancel(api: &Api, id: JobId) -> anyhow::Result<()> {
    let is_asked = api.cancel(id).await?;
    let job = api.job(id).await?;
    match is_asked {
        true if job.has_status(Status::Cancelled) => outln!("{id} is cancelled."),
        true => outln!("{id} is {}, and its worker was asked to stop.", job.status),
        false if job.has_ended() => bail!("{id} is {} already", job.status),
        false => bail!("{id} is being committed: it is too late to cancel it"),
    }
}
