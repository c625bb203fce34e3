//! `deliveries`: lists the deliveries of export events to receivers, redelivers events, and tries a receiver.

use std::process::ExitCode;

use crate::config::CatalogFile;
use crate::dataset::name::hint;
use crate::delivery::{DeliveryResult, Event};
use crate::event::{DeliveryFilter, DeliveryStatus};
use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::client::api::Api;
use crate::client::job_view::cell;
use crate::command::BadUsage;
use crate::command::server::ServerOption;
use crate::command::start::{Logs, block_on, settings};
use crate::command::terminal::print_if_more;
use crate::command::words::words;

/// The actions on deliveries.
#[derive(Subcommand)]
pub(crate) enum DeliveriesCommand {
    /// List the deliveries to the webhooks and brokers of the dataset file, newest first
    List(ListDeliveries),
    /// Deliver events to their receivers again, whatever the status of the delivery is
    Redeliver(Redeliver),
    /// Send a test event to a webhook or broker of the dataset file, from this process, and print the answer
    Test(TestReceiver),
}

/// The deliveries to list.
#[derive(Args)]
pub(crate) struct ListDeliveries {
    /// List the deliveries with this status only
    #[arg(long, value_parser = words::<DeliveryStatus>(DeliveryStatus::ALL.iter().map(|it| it.as_str())))]
    status: Option<DeliveryStatus>,
    /// List the deliveries to this webhook or broker only
    #[arg(long, value_name = "NAME")]
    endpoint: Option<String>,
    /// List at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// Print each delivery as JSON, one on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

/// The deliveries to repeat.
#[derive(Args)]
pub(crate) struct Redeliver {
    /// The ids of the deliveries
    #[arg(value_name = "DELIVERY", value_parser = delivery_id, required = true)]
    deliveries: Vec<Uuid>,
    #[command(flatten)]
    at: ServerOption,
}

/// The receiver to try.
#[derive(Args)]
pub(crate) struct TestReceiver {
    /// The name of the webhook or broker
    #[arg(value_name = "NAME")]
    receiver: String,
}

fn delivery_id(text: &str) -> Result<Uuid, &'static str> {
    text.parse().map_err(|_| "not the id of a delivery: `cdc-export deliveries list` shows the ids")
}

impl DeliveriesCommand {
    /// Lists deliveries, requests redeliveries, or tries a receiver.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            DeliveriesCommand::List(list) => list.at.run(CatalogFile::Read, async |api| list.list(api).await),
            DeliveriesCommand::Redeliver(again) => again.at.run(CatalogFile::Read, async |api| {
                for id in &again.deliveries {
                    api.redeliver(*id).await.with_context(|| id.to_string())?;
                    outln!("{id} is told again.")?;
                }
                Ok(())
            }),
            DeliveriesCommand::Test(test) => test.run(),
        }
    }
}

impl TestReceiver {
    /// Sends one event, as a process that runs exports sends it. It isn't stored, and isn't sent again.
    fn run(self) -> anyhow::Result<ExitCode> {
        let name = self.receiver;
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let transports = config.receivers.build();
            let Some((_, transport)) = transports.iter().find(|(own, _)| *own == name) else {
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

impl ListDeliveries {
    async fn list(&self, api: &Api) -> anyhow::Result<()> {
        let filter = DeliveryFilter { status: self.status, endpoint: self.endpoint.clone(), before: None };
        let (deliveries, has_more) = api.deliveries(&filter, self.limit).await?;
        if self.json {
            deliveries.iter().try_for_each(|delivery| outln!("{delivery}"))?;
        } else {
            outln!(
                "{:<37} {:<20} {:<17} {:<37} {:<9} {:>5}  LAST ERROR",
                "DELIVERY",
                "ENDPOINT",
                "EVENT",
                "EXPORT",
                "STATUS",
                "TRIES"
            )?;
            for delivery in &deliveries {
                let [id, endpoint, event, job, status, tries, error] =
                    ["deliveryId", "endpoint", "event", "jobId", "status", "attempt", "lastError"]
                        .map(|name| cell(delivery, &format!("/{name}")));
                outln!("{id:<37} {endpoint:<20} {event:<17} {job:<37} {status:<9} {tries:>5}  {error}")?;
            }
        }
        print_if_more(has_more);
        Ok(())
    }
}
