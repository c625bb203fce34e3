//! `status`: prints the positions of the consumers, and the open jobs.

use std::fmt::Write;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::CatalogFile;
use crate::duration;
use clap::Args;
use pg_session::failure::chain;
use serde_json::Value;

use crate::command::server::ServerOption;
use crate::command::signals::stop_on_signal;
use cdc_client::{Api, JobView, PAGE_ITEMS, PlainText};

const WATCH_INTERVAL: Duration = Duration::from_secs(2);

/// The format of the status.
#[derive(Args)]
pub(crate) struct Status {
    /// Print the status again every 2 seconds, until Ctrl-C
    #[arg(long)]
    watch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

impl Status {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.at.run(CatalogFile::Read, async |api| status(api, &self).await)
    }
}

async fn status(api: &Api, arguments: &Status) -> anyhow::Result<()> {
    if !arguments.watch {
        return show(&api.status().await?, arguments.json, false);
    }
    let interrupted = stop_on_signal()?;
    let clear = std::io::stdout().is_terminal() && !arguments.json;
    let mut has_shown = false;
    loop {
        let status = tokio::select! { status = api.status() => status, () = interrupted.cancelled() => return Ok(()) };
        match status {
            Ok(status) => {
                show(&status, arguments.json, clear)?;
                has_shown = true;
            }
            // `--watch` continues while the database or the service restarts.
            Err(error) if has_shown => eprintln!("cdc-export: {}", chain(&error)),
            Err(error) => return Err(error.into()),
        }
        tokio::select! { () = tokio::time::sleep(WATCH_INTERVAL) => {}, () = interrupted.cancelled() => return Ok(()) }
    }
}

fn show(status: &Value, json: bool, clear: bool) -> anyhow::Result<()> {
    if json {
        return outln!("{status}");
    }
    let items = |name: &str| status[name].as_array().into_iter().flatten();
    let mut text = String::from(if clear { "\x1b[2J\x1b[H" } else { "" });
    text += "CONSUMER                 DATASET          STATE            BEHIND  CONTINUITY           LAST JOB\n";
    for consumer in items("consumers") {
        writeln!(text, "{}", consumer_line(consumer))?;
    }
    if items("consumers").count() >= PAGE_ITEMS as usize {
        writeln!(text, "… and perhaps more: GET /consumers has all of them")?;
    }
    text += "\nOPEN JOB                              CONSUMER                 DATASET          \
             TYPE         STATUS         %\n";
    for job in items("openJobs") {
        let dataset = match job["exports"].as_array().map(Vec::as_slice) {
            None => cell(job, "/dataset"),
            Some([only]) => cell(only, "/dataset"),
            Some(exports) => format!("{} datasets", exports.len()),
        };
        let (id, consumer, export_type) = (cell(job, "/jobId"), cell(job, "/consumerId"), cell(job, "/exportType"));
        let job: JobView = serde_json::from_value(job.clone())?;
        writeln!(
            text,
            "{id:<37} {consumer:<24} {dataset:<16} {export_type:<12} {:<11} {:>4}{}",
            job.status,
            job.progress,
            job.remark()
        )?;
    }
    outln!("{}", text.trim_end_matches('\n'))
}

fn consumer_line(consumer: &Value) -> String {
    let cell = |name| cell(consumer, name);
    let behind = match consumer["behindSeconds"].as_u64() {
        Some(seconds) => duration::display(Duration::from_secs(seconds)).replace(' ', ""),
        None => "?".to_owned(),
    };
    let job = match consumer["lastJob"].is_object() {
        true => format!("{} {}", cell("/lastJob/exportType"), cell("/lastJob/status")),
        false => "-".to_owned(),
    };
    let acknowledges = match consumer["unacknowledgedSince"].is_null() {
        true => String::new(),
        false => format!("  ({} not acknowledged since {})", cell("/unacknowledged"), cell("/unacknowledgedSince")),
    };
    format!(
        "{:<24} {:<16} {:<12} {behind:>10}  {:<20} {job}{acknowledges}",
        cell("/consumerId"),
        cell("/dataset"),
        cell("/state"),
        cell("/continuity"),
    )
}

/// Returns a member of a consumer or a job as text, without control characters. Returns `-` for null. `name` is a JSON
/// pointer (RFC 6901).
fn cell(item: &Value, name: &str) -> String {
    match item.pointer(name) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => PlainText::from(text.clone()).to_string(),
        Some(other) => other.to_string(),
    }
}
