//! `status` and `healthcheck`: how it stands.

use std::fmt::Write;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use cdc_export::config::Config;
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::command::arguments::Status;
use crate::command::backend::Backend;
use crate::command::backend::{ConsumerView, JobView, SHOWN};
use crate::command::client::Plain;
use crate::command::stop_on_signal;

/// What [`Backend::status`] has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Standings {
    consumers: Vec<ConsumerView>,
    open_jobs: Vec<JobView>,
}

/// How often it is looked again.
const AGAIN: Duration = Duration::from_secs(2);

/// Prints where consumers stand, and the jobs that are open; while it watches, again and again until it is interrupted.
pub(crate) async fn status(backend: &Backend, what: &Status) -> anyhow::Result<()> {
    if !what.watch {
        return show(&backend.status().await?, what.json, false);
    }
    let interrupted = stop_on_signal()?;
    let clear = std::io::stdout().is_terminal() && !what.json;
    let mut seen = false;
    loop {
        let status =
            tokio::select! { status = backend.status() => status, () = interrupted.cancelled() => return Ok(()) };
        match status {
            Ok(status) => {
                show(&status, what.json, clear)?;
                seen = true;
            }
            // A database that restarts is what somebody watches for.
            Err(error) if seen => eprintln!("cdc-export: {error:#}"),
            Err(error) => return Err(error),
        }
        tokio::select! { () = tokio::time::sleep(AGAIN) => {}, () = interrupted.cancelled() => return Ok(()) }
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
    for JobView { job_id, consumer_id, dataset, export_type, status, progress, .. } in &open_jobs {
        let consumer = consumer_id.as_deref().unwrap_or("-");
        writeln!(text, "{job_id:<37} {consumer:<24} {dataset:<16} {export_type:<12} {status:<11} {progress:>4}")?;
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
    } = consumer;
    let waiting = match rows_waiting {
        Some(rows) => format!("{rows}{}", if *rows_waiting_capped { "+" } else { "" }),
        None => "?".to_owned(),
    };
    let or_none = |text: &Option<Plain>| text.as_deref().unwrap_or("-").to_owned();
    let (watermark, continuity) = (or_none(last_exported_at), or_none(continuity));
    let job = last_job.as_ref().map_or("-".to_owned(), |job| format!("{} {}", job.export_type, job.status));
    format!("{consumer_id:<24} {dataset:<16} {watermark:<28} {waiting:>8}  {continuity:<20} {job}")
}

/// Asks the service on this machine whether it is ready: what a container's health check runs.
pub(crate) async fn healthcheck(config: &Config) -> anyhow::Result<ExitCode> {
    let host = if config.http.host.is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { config.http.host };
    let address = SocketAddr::from((host, config.http.port));
    let asked = tokio::time::timeout(Duration::from_secs(5), ask(address)).await;
    asked.context("no answer in 5 seconds")?.with_context(|| format!("{address} is not ready"))?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: SocketAddr) -> anyhow::Result<()> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/health/ready").header("host", address.to_string()).body(Body::empty())?;
    // Drives the connection until the process ends, which is at once.
    tokio::spawn(connection);
    let status = sender.send_request(request).await?.status();
    anyhow::ensure!(status.is_success(), "it answers {status}");
    Ok(())
}
