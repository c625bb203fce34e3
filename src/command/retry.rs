//! `retry`: submits a failed or cancelled export or batch again.

use std::process::ExitCode;

use crate::config::CatalogFile;
use clap::Args;
use serde_json::json;

use crate::client::api::Subject;
use crate::command::server::ServerOption;
use crate::command::words::SubjectArgument;

/// The export or the batch to submit again.
#[derive(Args)]
pub(crate) struct Retry {
    #[command(flatten)]
    subject: SubjectArgument,
    /// Print the new id as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

impl Retry {
    /// Submits the same request, and prints the new id.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let subject = self.subject.subject();
        self.at.run(CatalogFile::Read, async |api| {
            let new = api.retry(subject).await?;
            let id = subject.id();
            let (member, what) = match subject {
                Subject::Export(_) => ("jobId", "export"),
                Subject::Batch(_) => ("batchId", "batch"),
            };
            if self.json {
                return outln!("{}", json!({ member: new.to_string(), "retryOf": id.to_string() }));
            }
            outln!("{new} repeats the {what} {id}.")?;
            eprintln!("A running service or worker claims it; `cdc-export status{}` shows it.", api.server_option());
            Ok(())
        })
    }
}
