//! `download`: fetches the files of a completed export.

use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;

use crate::client::api::Api;
use crate::client::download::{self, Output};
use crate::command::BadUsage;
use crate::command::output::{check, output};
use crate::command::server::ServerOption;
use crate::command::words::job_id;
use crate::config::CatalogFile;
use crate::job::{JobId, Status};

/// The export, and the destination of its files.
#[derive(Args)]
pub(crate) struct Download {
    /// The id of the export
    #[arg(value_parser = job_id)]
    job: JobId,
    /// The destination. A name with an extension is a file. Any other name is a folder, which is created if it is
    /// missing. - is standard output [default: the current folder]
    #[arg(long, short, value_name = "PATH", value_parser = output)]
    output: Option<Output>,
    #[command(flatten)]
    at: ServerOption,
}

impl Download {
    /// Downloads the files of a completed job, and prints their paths.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Unread, async |api| fetch(api, self.job, self.output.as_ref()).await)
    }
}

async fn fetch(api: &Api, id: JobId, output: Option<&Output>) -> anyhow::Result<()> {
    if let Some(output) = output {
        check(output).map_err(|why| BadUsage(format!("--output: {why}")))?;
    }
    let job = api.job(id).await?;
    if !job.has_ended() {
        bail!("the export is {}, at {} %: its file is there once it has completed", job.status, job.progress);
    }
    ensure!(job.has_status(Status::Completed), "the export is {}, so it has no file", job.status);
    ensure!(job.output_filename.is_some(), "the export found nothing and was skipped, so it has no file");
    Ok(download::save(api, id, &job, output).await?)
}
