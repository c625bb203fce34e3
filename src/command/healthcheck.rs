//! `healthcheck`: checks that the service on this machine is ready. The health check of a container runs it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use crate::config::CatalogFile;
use anyhow::{anyhow, ensure};

use crate::command::start::{Logs, block_on, settings};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let config = settings(CatalogFile::Unread, Logs::Errors)?;
    let host = if config.http.host.is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { config.http.host };
    let address = SocketAddr::from((host, config.http.port));
    let url = format!("http://{address}/health/ready");
    let not_ready = |cause| {
        let why = http_client::reason(&cause);
        anyhow!("{address} is not ready, or the service has another HOST and PORT: {why}")
    };
    block_on(async {
        // A proxy can't reach this machine.
        let client = http_client::client(&url).no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        let status = client.get(url).send().await.map_err(not_ready)?.status();
        ensure!(status.is_success(), "{address} is not ready: it answers {status}");
        outln!("{address} is ready.")?;
        Ok(ExitCode::SUCCESS)
    })
}
