//! `healthcheck`: whether the service on this machine is ready. A container's health check runs it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use crate::config::CatalogFile;
use anyhow::{anyhow, ensure};
use ureq::Agent;

use crate::command::client::unreachable;
use crate::command::start::{Logs, settings};

/// How long the service may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the service on HOST and PORT whether it is ready.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let config = settings(CatalogFile::Unread, Logs::Errors)?;
    let host = if config.http.host.is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { config.http.host };
    let address = SocketAddr::from((host, config.http.port));
    let agent: Agent = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        // No proxy knows a way to this machine.
        .proxy(None)
        .timeout_global(Some(ANSWER_TIMEOUT))
        .build()
        .into();
    let answer = agent.get(format!("http://{address}/health/ready")).call();
    let not_ready =
        |cause| anyhow!("{address} is not ready, or the service has another HOST and PORT: {}", unreachable(&cause));
    let status = answer.map_err(not_ready)?.status();
    ensure!(status.is_success(), "{address} is not ready: it answers {status}");
    outln!("{address} is ready.")?;
    Ok(ExitCode::SUCCESS)
}
