//! `status` and `healthcheck`: how it stands.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use cdc_export::config::Config;
use cdc_export::http;
use cdc_export::job::{Filter, Job, Status};
use cdc_export::postgres::Database;
use cdc_export::watermark::{COUNTED_ROWS, Standing, Waiting};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::command::wire;

/// Rows that are shown of each list.
const SHOWN: u32 = 200;

/// Prints where consumers stand, and the jobs that are open.
pub(crate) async fn status(config: &Config, database: &Database, json: bool) -> anyhow::Result<()> {
    let service = wire(config, database, 1, &CancellationToken::new()).service;
    let consumers = service.consumers(None, None, SHOWN).await?;
    let mut open = Vec::new();
    for status in [Status::Processing, Status::Pending] {
        open.extend(service.jobs(&Filter { status: Some(status), ..Filter::default() }, SHOWN).await?);
    }
    if json {
        let consumers: Vec<_> = consumers.into_iter().map(http::consumer_as_json).collect();
        let open: Vec<_> = open.into_iter().map(http::job_as_json).collect();
        println!("{}", serde_json::json!({ "consumers": consumers, "openJobs": open }));
        return Ok(());
    }
    println!(
        "{:<24} {:<16} {:<28} {:>8}  {:<20} LAST JOB",
        "CONSUMER", "DATASET", "WATERMARK", "WAITING", "CONTINUITY"
    );
    for (standing, job) in &consumers {
        println!("{}", consumer_line(standing, job.as_ref()));
    }
    println!("\n{:<37} {:<24} {:<16} {:<12} {:<11} {:>4}", "OPEN JOB", "CONSUMER", "DATASET", "TYPE", "STATUS", "%");
    for job in &open {
        let consumer = job.consumer.as_ref().map_or("-", |consumer| consumer.as_str());
        let Job { id, dataset, export_type, status, progress, .. } = job;
        println!("{id:<37} {consumer:<24} {dataset:<16} {export_type:<12} {status:<11} {progress:>4}");
    }
    Ok(())
}

fn consumer_line(standing: &Standing, job: Option<&Job>) -> String {
    let watermark = standing.last_exported_at.map_or("-".to_owned(), |time| time.format("%FT%T%.6fZ").to_string());
    let waiting = match standing.rows_waiting {
        Waiting::Exactly(rows) => rows.to_string(),
        Waiting::More => format!("{COUNTED_ROWS}+"),
        Waiting::Unknown => "?".to_owned(),
    };
    let continuity = standing.continuity.map_or("-", |why| why.as_str());
    let job = job.map_or("-".to_owned(), |job| format!("{} {}", job.export_type, job.status));
    format!(
        "{:<24} {:<16} {watermark:<28} {waiting:>8}  {continuity:<20} {job}",
        standing.consumer.as_str(),
        standing.dataset
    )
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
