//! The API that a command calls: that of a remote service, or that of a service inside this process.

use std::ffi::OsStr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;

use crate::command::database_handle::{CreateMissing, DatabaseHandle, OR_SERVER};
use crate::command::start::{Logs, arm, block_on, settings};
use crate::command::terminal::{Terminal, print_notice};
use crate::command::wiring::wire_service;
use crate::config::{CatalogFile, Environment};
use crate::http::in_process::InProcess;
use crate::service::Service;
use cdc_client::{Api, ApiTransport, Observer, RemoteService, ServiceAddress};
use nix::unistd::{Uid, User};

/// The option `--server`.
#[derive(Args)]
pub(super) struct ServerOption {
    /// Use the service at this address. The key in CDC_EXPORT_KEY is sent to it [default: use the database of
    /// DATABASE_URL]
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: Option<ServiceAddress>,
}

/// Parses a [`ServiceAddress`]. Unlike clap's own parsers, it doesn't quote a refused text, because the text may
/// contain a password.
#[derive(Clone)]
pub(super) struct AddressParser;

impl TypedValueParser for AddressParser {
    type Value = ServiceAddress;

    fn parse_ref(
        &self,
        cmd: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<ServiceAddress, clap::Error> {
        let name = arg.and_then(clap::Arg::get_long).unwrap_or_default();
        let refusal = |why| clap::Error::raw(ErrorKind::ValueValidation, format!("--{name}: {why}\n")).with_cmd(cmd);
        value.to_str().unwrap_or_default().parse().map_err(refusal)
    }
}

impl ServerOption {
    /// Returns the API of the remote service. Returns `None` if `--server` is not given.
    pub(super) fn remote_api(&self) -> anyhow::Result<Option<Api>> {
        self.server.as_ref().map(|address| remote_api(address, Terminal::shared())).transpose()
    }

    /// Runs a command with the API of the remote service, or of a service inside this process.
    pub(super) fn run(
        &self,
        catalog: CatalogFile,
        command: impl AsyncFnOnce(&Api) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        if let Some(api) = self.remote_api()? {
            return block_on(async { command(&api).await.map(|()| ExitCode::SUCCESS) });
        }
        let config = settings(catalog, Logs::Errors)?;
        block_on(async {
            let handle = DatabaseHandle::open(&config, CreateMissing::Nothing, OR_SERVER).await?;
            let service = wire_service(&config, &handle.database)?;
            let done = command(&local_api(service)).await;
            handle.close().await;
            done.map(|()| ExitCode::SUCCESS)
        })
    }
}

pub(super) fn local_api(service: Service) -> Api {
    Api::new(ApiTransport::InProcess(Box::new(InProcess::new(service, &user_name()))), Terminal::shared())
}

/// Returns the name of the user who runs this process, or the user's number if it has no name.
fn user_name() -> String {
    let uid = Uid::effective();
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

/// Returns the API of the service at this address. Warns if the key is sent unencrypted over a network.
pub(super) fn remote_api(address: &ServiceAddress, terminal: Arc<Terminal>) -> anyhow::Result<Api> {
    let environment = Environment::read()?;
    arm(&environment)?;
    let key = environment.key()?;
    if key.is_some() && address.is_unencrypted_remote() {
        print_notice(&format!("warning: the key is sent to {address} unencrypted: use https://"));
    }
    let service = RemoteService::new(address.clone(), key, Arc::clone(&terminal) as Arc<dyn Observer>)?;
    Ok(Api::new(ApiTransport::Http(service), terminal))
}
