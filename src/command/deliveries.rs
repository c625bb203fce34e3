//! `deliveries`: tries a receiver of export events.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::delivery::{DeliveryResult, Event};
use anyhow::bail;
use cdc_dataset::hint;
use clap::{Args, Subcommand};

use crate::command::BadUsage;
use crate::command::start::{Logs, block_on, settings};

/// The actions on deliveries.
#[derive(Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// Send a test event to a webhook or broker of the dataset file, from this process, and print the answer
    Test(TestReceiver),
}

/// The receiver to try.
#[derive(Args)]
pub(crate) struct TestReceiver {
    /// The name of the webhook or broker
    #[arg(value_name = "NAME")]
    receiver: String,
}

impl DeliveriesCommand {
    /// Sends one event, as a process that runs exports sends it. It isn't stored, and isn't sent again.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let DeliveriesCommand::Test(TestReceiver { receiver: name }) = self;
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let transports = config.receivers.build();
            let Some((_, transport)) = transports.iter().find(|(listener, _)| listener.name == name) else {
                let missing = config.missing_secrets();
                let blocks = [format!("webhook {name}: "), format!("amqp {name}: ")];
                let why = missing.into_iter().find(|why| blocks.iter().any(|block| why.starts_with(block)));
                let unknown = || {
                    let names: Vec<_> = config.receivers.names().flat_map(|(_, names)| names).collect();
                    let hint = hint(&name, names.iter().copied());
                    format!("no receiver of events has the name {name}{hint}; there are: {}", names.join(", "))
                };
                return Err(BadUsage(why.unwrap_or_else(unknown)).into());
            };
            let result = match transport.open().await {
                Ok(()) => transport.deliver(Event::test()).await,
                Err(why) => DeliveryResult::Failed(None, why),
            };
            match result {
                DeliveryResult::Delivered(Some(status)) => outln!("{name} answered {status}.")?,
                DeliveryResult::Delivered(None) => outln!("{name} has taken the event.")?,
                DeliveryResult::Gone(status) => {
                    bail!("{name}: it answered {status}, so it would get no further events")
                }
                DeliveryResult::Failed(_, why) => bail!("{name}: {why}"),
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}
