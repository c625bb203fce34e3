//! `download`: fetches the files of a completed export.

use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;

use crate::command::output::{check, output};
use crate::command::server::ServerOption;
use crate::command::words::job_id;
use crate::config::CatalogFile;
use crate::job::Status;
use cdc_client::{Api, Output};
use cdc_manifest::JobId;

/// The export, and the destination of its files.
#[derive(Args)]
pub(crate) struct Download {
    /// The id of the job
    #[arg(value_parser = job_id)]
    job: JobId,
    /// The dataset whose export to download. Needed if the job has several
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// The destination. A name with an extension is a file. Any other name is a folder, which is created if it is
    /// missing. - is standard output [default: the current folder]
    #[arg(long, short, value_name = "PATH", value_parser = output)]
    output: Option<Output>,
    #[command(flatten)]
    at: ServerOption,
}

impl Download {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Unread, async |api| self.fetch(api).await)
    }

    async fn fetch(&self, api: &Api) -> anyhow::Result<()> {
        check(self.output.as_ref())?;
        let export = api.export(self.job, self.dataset.as_deref()).await?;
        let job = &export.job;
        if !job.has_ended() {
            bail!("the export is {}, at {} %: its file is there once it has completed", job.status, job.progress);
        }
        ensure!(job.has_status(Status::Completed.as_str()), "the export is {}, so it has no file", job.status);
        ensure!(export.output_filename.is_some(), "the export found nothing and was skipped, so it has no file");
        Ok(api.save(&export, self.output.as_ref()).await?)
    }
}
