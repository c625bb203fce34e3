//! `list`: lists exports, newest first, or the exports of a consumer after a given one.

use std::fmt::Write;
use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::job::{ConsumerId, ExportType, Filter, JobId, Status};
use clap::Args;

use crate::client::api::Api;
use crate::client::job_view::JobView;
use crate::command::server::ServerOption;
use crate::command::terminal::print_if_more;
use crate::command::words::{job_id, words};

/// The filters of the list.
#[derive(Args)]
pub(crate) struct ListExports {
    /// List the exports of this consumer only
    #[arg(long, value_name = "ID")]
    consumer: Option<ConsumerId>,
    /// List the exports of this dataset only
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// List the exports with this status only
    #[arg(long, value_parser = words::<Status>(Status::ALL.iter().map(|it| it.as_str())))]
    status: Option<Status>,
    /// List the exports of this type only
    #[arg(long = "type", value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    export_type: Option<ExportType>,
    /// List the exports that remain to be loaded after this export, oldest first. Needs --consumer and --dataset
    #[arg(long, value_name = "JOB", value_parser = last_loaded_id, requires_all = ["consumer", "dataset"], conflicts_with_all = ["status", "export_type"])]
    after: Option<JobId>,
    /// List the exports of this batch, all of them
    #[arg(long, value_name = "ID", value_parser = job_id, conflicts_with_all = ["consumer", "dataset", "status", "export_type", "limit"])]
    batch: Option<JobId>,
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Print each export as JSON, one on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

/// Parses the id of the last loaded export.
fn last_loaded_id(text: &str) -> Result<JobId, &'static str> {
    match text {
        "none" => Err("not the id of an export: without --after every export is listed, newest first"),
        id => job_id(id),
    }
}

impl ListExports {
    /// Prints the exports.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Read, async |api| self.list(api).await)
    }

    async fn list(&self, api: &Api) -> anyhow::Result<()> {
        if let Some(batch) = self.batch {
            return self.print(&api.batch(batch).await?.jobs()?);
        }
        // The API client returns one more export than the limit if there are more.
        let listed = match (self.after, &self.consumer, &self.dataset) {
            (Some(after), Some(consumer), Some(dataset)) => {
                api.published_after(consumer, dataset, after, self.limit).await
            }
            _ => {
                let filter = Filter {
                    consumer: self.consumer.clone(),
                    dataset: self.dataset.clone(),
                    status: self.status,
                    export_type: self.export_type,
                    ..Filter::default()
                };
                api.jobs(&filter, self.limit).await
            }
        };
        // A dataset that was removed from the catalog may still have exports.
        if let Some(dataset) = &self.dataset
            && !listed.as_ref().is_ok_and(|jobs| !jobs.is_empty())
        {
            api.require_dataset(dataset).await?;
        }
        let mut jobs = listed?;
        let has_more = jobs.len() > self.limit as usize;
        jobs.truncate(self.limit as usize);
        self.print(&jobs)?;
        print_if_more(has_more);
        Ok(())
    }

    fn print(&self, jobs: &[JobView]) -> anyhow::Result<()> {
        if self.json {
            return jobs.iter().try_for_each(|job| outln!("{}", job.json));
        }
        outln!("{}", table(jobs).trim_end_matches('\n'))
    }
}

fn table(jobs: &[JobView]) -> String {
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{:<37} {:<24} {:<16} {:<12} {:<11} {:>12}  FILE",
        "EXPORT", "CONSUMER", "DATASET", "TYPE", "STATUS", "ROWS"
    );
    for JobView { job_id, consumer_id, dataset, export_type, status, rows_exported, output_filename, error, .. } in jobs
    {
        let consumer = consumer_id.as_deref().unwrap_or("-");
        let file = || output_filename.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        let last = error.as_ref().map_or_else(file, |error| error.code.to_string());
        let _ = writeln!(
            text,
            "{job_id:<37} {consumer:<24} {dataset:<16} {export_type:<12} {status:<11} {rows_exported:>12}  {last}"
        );
    }
    text
}
