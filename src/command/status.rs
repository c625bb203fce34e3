//! `status`: the consumers' positions, and the jobs that are open.

use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::CatalogFile;
use crate::telemetry::chain;
use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::command::answer::PlainText;
use crate::command::api::{Api, SHOWN};
use crate::command::server::Server;
use crate::command::signals::stop_on_signal;
use crate::command::view::{ConsumerView, JobView};

/// The members of [`Api::status`].
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Standings {
    consumers: Vec<ConsumerView>,
    open_jobs: Vec<JobView>,
}

/// The time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// What to show.
#[derive(Args)]
pub(crate) struct Status {
    /// Print it again every 2 seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Server,
}

impl Status {
    /// Prints the consumers and the open jobs; with `--watch`, again and again until Ctrl-C.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Read, async |api| status(api, &self).await)
    }
}

async fn status(api: &Api, what: &Status) -> anyhow::Result<()> {
    if !what.watch {
        return show(&api.status().await?, what.json, false);
    }
    let interrupted = stop_on_signal()?;
    let clear = std::io::stdout().is_terminal() && !what.json;
    let mut seen = false;
    loop {
        let status = tokio::select! { status = api.status() => status, () = interrupted.cancelled() => return Ok(()) };
        match status {
            Ok(status) => {
                show(&status, what.json, clear)?;
                seen = true;
            }
            // A watch goes on while the database or the service restarts.
            Err(error) if seen => eprintln!("cdc-export: {}", chain(error.as_ref())),
            Err(error) => return Err(error),
        }
        tokio::select! { () = tokio::time::sleep(WATCH_INTERVAL) => {}, () = interrupted.cancelled() => return Ok(()) }
    }
}

fn show(status: &Value, json: bool, clear: bool) -> anyhow::Result<()> {
    if json {
        return outln!("{status}");
    }
    let Standings { consumers, open_jobs } =
        Standings::deserialize(status).context("the status as the API shows it")?;
    let mut text = String::from(if clear { "\x1b[2J\x1b[H" } else { "" });
    writeln!(
        text,
        "{:<24} {:<16} {:<28} {:>8}  {:<20} LAST JOB",
        "CONSUMER", "DATASET", "WATERMARK", "WAITING", "CONTINUITY"
    )?;
    for consumer in &consumers {
        writeln!(text, "{}", consumer_line(consumer))?;
    }
    if consumers.len() >= SHOWN as usize {
        writeln!(text, "… and perhaps more: GET /consumers has all of them")?;
    }
    writeln!(
        text,
        "\n{:<37} {:<24} {:<16} {:<12} {:<11} {:>4}",
        "OPEN JOB", "CONSUMER", "DATASET", "TYPE", "STATUS", "%"
    )?;
    for job in &open_jobs {
        let JobView { job_id, consumer_id, dataset, export_type, status, progress, .. } = job;
        let consumer = consumer_id.as_deref().unwrap_or("-");
        writeln!(
            text,
            "{job_id:<37} {consumer:<24} {dataset:<16} {export_type:<12} {status:<11} {progress:>4}{}",
            job.remark()
        )?;
    }
    outln!("{}", text.trim_end_matches('\n'))
}

fn consumer_line(consumer: &ConsumerView) -> String {
    let ConsumerView {
        consumer_id,
        dataset,
        last_exported_at,
        rows_waiting,
        rows_waiting_capped,
        continuity,
        last_job,
        unacknowledged,
        unacknowledged_since,
    } = consumer;
    let waiting = match rows_waiting {
        Some(rows) => format!("{rows}{}", if *rows_waiting_capped { "+" } else { "" }),
        None => "?".to_owned(),
    };
    let or_none = |text: &Option<PlainText>| text.as_deref().unwrap_or("-").to_owned();
    let (watermark, continuity) = (or_none(last_exported_at), or_none(continuity));
    let job = last_job.as_ref().map_or("-".to_owned(), |job| format!("{} {}", job.export_type, job.status));
    let acknowledges = match (unacknowledged, unacknowledged_since) {
        (Some(exports), Some(since)) => format!("  ({exports} not acknowledged since {since})"),
        _ => String::new(),
    };
    format!("{consumer_id:<24} {dataset:<16} {watermark:<28} {waiting:>8}  {continuity:<20} {job}{acknowledges}")
}
