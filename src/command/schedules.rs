//! `schedules`: lists the schedules, by which the service submits exports.

use std::process::ExitCode;

use crate::config::CatalogFile;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::api::Api;
use crate::client::job_view::cell;
use crate::command::server::ServerOption;

/// The actions on schedules.
#[derive(Subcommand)]
pub(crate) enum SchedulesCommand {
    /// List the schedules of the dataset file, with their last and next times
    List(ListSchedules),
}

/// The format of the list.
#[derive(Args)]
pub(crate) struct ListSchedules {
    /// Print each schedule as JSON, one on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

impl SchedulesCommand {
    /// Prints the schedules.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let SchedulesCommand::List(list) = self;
        list.at.run(CatalogFile::Read, async |api| list.list(api).await)
    }
}

impl ListSchedules {
    async fn list(&self, api: &Api) -> anyhow::Result<()> {
        let schedules = api.schedules().await?;
        if self.json {
            return schedules.iter().try_for_each(|schedule| outln!("{schedule}"));
        }
        outln!(
            "{:<20} {:<24} {:<16} {:<12} {:<32} {:<20}  {:<20}  LAST EXPORT",
            "SCHEDULE",
            "CONSUMER",
            "DATASET",
            "TYPE",
            "WHEN",
            "LAST RUN",
            "NEXT"
        )?;
        schedules.iter().try_for_each(|schedule| outln!("{}", line(schedule)))
    }
}

fn line(schedule: &Value) -> String {
    let cell = |name| cell(schedule, name);
    let when = match cell("/every").as_str() {
        "-" => format!("{} {}", cell("/cron"), cell("/timezone")),
        every => format!("every {every}"),
    };
    // Cuts off the microseconds of a time.
    let second = |name| cell(name).split_once('.').map_or_else(|| cell(name), |(second, _)| format!("{second}Z"));
    let remark = match (schedule["refused"].is_null(), schedule["skipped"].as_u64()) {
        (false, _) => format!("  (refused since {}: {})", second("/refusedSince"), cell("/refused")),
        (true, Some(skipped @ 1..)) => format!("  ({skipped} skipped since)"),
        (true, _) => String::new(),
    };
    let datasets = match schedule["datasets"].as_array().map(Vec::as_slice) {
        None => cell("/dataset"),
        Some([_]) => cell("/datasets/0"),
        Some(several) => format!("{} datasets", several.len()),
    };
    format!(
        "{:<20} {:<24} {:<16} {:<12} {when:<32} {:<20}  {:<20}  {}{remark}",
        cell("/name"),
        cell("/consumerId"),
        datasets,
        cell("/exportType"),
        second("/lastRunAt"),
        second("/nextAt"),
        cell("/lastJob/status"),
    )
}
