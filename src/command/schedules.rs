//! `schedules`: the exports that the service asks for by itself, with their times.

use std::fmt::Write;
use std::process::ExitCode;

use crate::config::CatalogFile;
use anyhow::Context;
use clap::{Args, Subcommand};
use serde::Deserialize;

use crate::command::answer::PlainText;
use crate::command::api::Api;
use crate::command::server::Server;

/// What to do with schedules.
#[derive(Subcommand)]
pub(crate) enum Schedules {
    /// List the schedules of the dataset file, with their last and next times
    List(ListSchedules),
}

/// How to list them.
#[derive(Args)]
pub(crate) struct ListSchedules {
    /// Print each schedule as JSON, one on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Server,
}

/// A schedule, as far as the list shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ScheduleView {
    name: PlainText,
    consumer_id: PlainText,
    dataset: PlainText,
    export_type: PlainText,
    every: Option<PlainText>,
    cron: Option<PlainText>,
    timezone: Option<PlainText>,
    next_at: Option<PlainText>,
    last_run_at: Option<PlainText>,
    last_job: Option<LastJob>,
    skipped: u64,
    refused: Option<PlainText>,
    refused_since: Option<PlainText>,
}

#[derive(Deserialize)]
struct LastJob {
    status: PlainText,
}

impl Schedules {
    /// Prints the schedules.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Schedules::List(list) = self;
        list.at.run(CatalogFile::Read, async |api| list.list(api).await)
    }
}

impl ListSchedules {
    async fn list(&self, api: &Api) -> anyhow::Result<()> {
        let schedules = api.schedules().await?;
        if self.json {
            return schedules.iter().try_for_each(|schedule| outln!("{schedule}"));
        }
        let mut text = String::new();
        writeln!(
            text,
            "{:<20} {:<24} {:<16} {:<12} {:<32} {:<20}  {:<20}  LAST EXPORT",
            "SCHEDULE", "CONSUMER", "DATASET", "TYPE", "WHEN", "LAST RUN", "NEXT"
        )?;
        for schedule in schedules {
            let view = ScheduleView::deserialize(schedule).context("a schedule as the API shows it was expected")?;
            writeln!(text, "{}", line(&view))?;
        }
        outln!("{}", text.trim_end_matches('\n'))
    }
}

fn line(schedule: &ScheduleView) -> String {
    let ScheduleView {
        name,
        consumer_id,
        dataset,
        export_type,
        every,
        cron,
        timezone,
        next_at,
        last_run_at,
        last_job,
        skipped,
        refused,
        refused_since,
    } = schedule;
    let when = match (every, cron) {
        (Some(every), _) => format!("every {every}"),
        (None, cron) => format!("{} {}", cron.as_deref().unwrap_or("-"), timezone.as_deref().unwrap_or_default()),
    };
    let second = |time: &Option<PlainText>| match time.as_deref() {
        // Of a time with microseconds.
        Some(time) => time.split_once('.').map_or(time.to_owned(), |(second, _)| format!("{second}Z")),
        None => "-".to_owned(),
    };
    let (next, last) = (second(next_at), second(last_run_at));
    let job = last_job.as_ref().map_or("-", |job| &*job.status);
    let remark = match refused {
        Some(why) => format!("  (refused since {}: {why})", second(refused_since)),
        None if *skipped > 0 => format!("  ({skipped} skipped since)"),
        None => String::new(),
    };
    format!(
        "{name:<20} {consumer_id:<24} {dataset:<16} {export_type:<12} {when:<32} {last:<20}  {next:<20}  {job}{remark}"
    )
}
