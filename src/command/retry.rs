//! `retry`: submits a failed or cancelled export again.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::JobId;
use clap::Args;
use serde_json::json;

use crate::command::server::ServerOption;
use crate::command::words::job_id;

/// The export to submit again.
#[derive(Args)]
pub(crate) struct Retry {
    /// The id of the export that failed or was cancelled
    #[arg(value_name = "EXPORT", value_parser = job_id)]
    job: JobId,
    /// Print the new export's id as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

impl Retry {
    /// Submits an export with the same request, and prints the id of the new export.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let id = self.job;
        self.at.run(CatalogFile::Read, async |api| {
            let new = api.retry(id).await?;
            if self.json {
                return outln!("{}", json!({ "jobId": new.to_string(), "retryOf": id.to_string() }));
            }
            outln!("{new} repeats the export {id}.")?;
            eprintln!("A running service or worker claims it; `cdc-export status{}` shows it.", api.server_option());
            Ok(())
        })
    }
}
