//! `ack`: acknowledges an export and all exports before it as loaded.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::JobId;
use clap::Args;

use crate::command::server::ServerOption;
use crate::command::words::job_id;

/// The last loaded export.
#[derive(Args)]
pub(crate) struct Ack {
    /// The id of the export that was loaded last
    #[arg(value_name = "EXPORT", value_parser = job_id)]
    job: JobId,
    #[command(flatten)]
    at: ServerOption,
}

impl Ack {
    /// Acknowledges the export, and prints a confirmation.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let id = self.job;
        self.at.run(CatalogFile::Unread, async |api| {
            api.ack(id).await?;
            let consumer = api.job(id).await?.consumer_id;
            let whose = consumer.as_deref().unwrap_or("its consumer");
            outln!("{id} and all exports of {whose} before it are acknowledged.")
        })
    }
}
