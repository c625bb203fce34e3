//! Brokers that speak AMQP 0-9-1, such as RabbitMQ: events are published to an exchange, and requests for exports come
//! from a queue.
//!
//! Declares no exchange, queue or binding: these are the operator's. A missing one is logged until it exists.
//! Publishing has a connection of its own, since a broker that is short of memory or disk stops reading from
//! connections that publish.

mod address;
mod backlog;
mod block;
mod broker;
mod connection;
mod exchange;
mod intake;
mod message_limits;
mod refused;
mod runtime;
mod sanitizing_stream;
#[cfg(test)]
mod test_broker;
mod transport;

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use crate::dataset::block::Block;
use crate::dataset::listener::Known;
use crate::delivery::Transport;
use crate::event::Listener;
use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::broker::Broker;
use crate::receiver::amqp::intake::RequestConsumer;
use crate::receiver::amqp::transport::ExchangeTransport;
use crate::receiver::{MissingSecret, ReceiverKind, SecretVariables, Submit};

/// Delivery mode of a message that the broker stores on disk.
const PERSISTENT: u8 = 2;

/// The brokers of the operator's file.
#[derive(Debug, Default)]
pub(super) struct Brokers(Vec<Broker>);

impl ReceiverKind for Brokers {
    fn block(&self) -> &'static str {
        "amqp"
    }

    fn plural(&self) -> &'static str {
        "brokers"
    }

    fn parse(&mut self, block: &mut Block<'_, '_>, known: &Known<'_>) {
        let Some(broker) = block::broker(block, known) else { return };
        for other in self.0.iter().filter(|other| other.url_env == broker.url_env) {
            if let Some((member, why)) = broker.clash(other) {
                block.wrong(member, why);
            }
        }
        self.0.push(broker);
    }

    fn listeners(&self) -> Vec<Listener> {
        self.0.iter().filter_map(|broker| Some(broker.exchange.as_ref()?.listener.clone())).collect()
    }

    fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<MissingSecret> {
        let mut missing = Vec::new();
        for at in 0..self.0.len() {
            let (others, broker) = (&self.0[..at], &self.0[at]);
            match read_address(broker, others, variables) {
                Ok(address) => self.0[at].address = Some(address),
                Err(why) => missing.push(MissingSecret {
                    why,
                    is_for_worker: broker.exchange.is_some(),
                    is_for_api: broker.intake.is_some(),
                }),
            }
        }
        missing
    }

    fn build(&self) -> Vec<(String, Box<dyn Transport>)> {
        let transport = |broker: &Broker| {
            let transport = ExchangeTransport::new(broker.exchange.as_ref()?, broker.address.as_ref()?);
            Some((broker.name.clone(), Box::new(transport) as Box<dyn Transport>))
        };
        self.0.iter().filter_map(transport).collect()
    }

    fn request_tasks(&self, submit: &Submit, shutdown: &CancellationToken) -> Vec<BoxFuture<'static, ()>> {
        let task = |broker: &Broker| {
            let intake = Arc::clone(broker.intake.as_ref()?);
            let requests = RequestConsumer::new(&broker.name, intake, broker.address.as_ref()?, Arc::clone(submit));
            Some(requests.run(shutdown.clone()).boxed())
        };
        self.0.iter().filter_map(task).collect()
    }
}

/// Reads a broker's address, and compares the broker with the `others` at the same address.
fn read_address(broker: &Broker, others: &[Broker], variables: &SecretVariables<'_>) -> Result<BrokerAddress, String> {
    let block = format!("amqp {}", broker.name);
    let address: BrokerAddress = variables.parse(&block, &broker.url_env, "address")?;
    // Blocks that name the same variable were compared when the file was read.
    let is_same_place = |other: &&Broker| other.address.as_ref().is_some_and(|other| other.is_same_place(&address));
    match others.iter().filter(is_same_place).find_map(|other| broker.clash(other)) {
        Some((member, why)) => Err(format!("{block}: {member}: {why}")),
        None => Ok(address),
    }
}
