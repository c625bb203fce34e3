//! Which service a command talks to, as its arguments say.

use std::process::ExitCode;

use crate::config::{CatalogFile, Environment};
use clap::Args;

use crate::command::api::Api;
use crate::command::client::{Address, AddressParser, Client};
use crate::command::database_handle::{DatabaseHandle, Makes, OtherWays};
use crate::command::start::{Logs, block_on, settings};
use crate::command::wiring::wire_service;

/// Which service.
#[derive(Args)]
pub(super) struct Server {
    /// Ask the service at this address, with the key in CDC_EXPORT_KEY if it wants one [default: use the database of
    /// DATABASE_URL]
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: Option<Address>,
}

impl Server {
    /// The client of the remote service; `None`: no service was named, so the command uses the database.
    pub(super) fn client(&self) -> anyhow::Result<Option<Client>> {
        self.server.as_ref().map(client_of).transpose()
    }

    /// Runs a command at the remote service, or at one that is wired over the database.
    pub(super) fn run(
        &self,
        catalog: CatalogFile,
        command: impl AsyncFnOnce(&Api) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        if let Some(client) = self.client()? {
            return block_on(async { command(&Api::remote(client)).await.map(|()| ExitCode::SUCCESS) });
        }
        let config = settings(catalog, Logs::Errors)?;
        block_on(async {
            let handle = DatabaseHandle::open(&config, Makes::Nothing, OtherWays::DataDirOrServer).await?;
            let service = wire_service(&config, &handle.database)?;
            let done = command(&Api::in_process(service)).await;
            handle.close().await;
            done.map(|()| ExitCode::SUCCESS)
        })
    }
}

/// Arms the failpoints of a command that reads no other settings.
pub(super) fn arm(environment: &Environment) -> anyhow::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(list) = environment.failpoints() {
        crate::failpoint::arm(list)?;
    }
    let _ = environment;
    Ok(())
}

/// The client of the service at this address.
pub(super) fn client_of(address: &Address) -> anyhow::Result<Client> {
    let environment = Environment::read()?;
    environment.misspelt().iter().for_each(|misspelt| eprintln!("cdc-export: {misspelt}"));
    arm(&environment)?;
    Client::new(address.clone(), environment.key()?)
}
