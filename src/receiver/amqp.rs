//! Brokers that speak AMQP 0-9-1, such as RabbitMQ: events are published to an exchange.
//!
//! Declares no exchange, queue or binding: these are the operator's. A missing exchange is logged until it exists.

mod address;
mod block;
mod broker;
mod connection;
mod stream;
mod transport;

use crate::dataset::block::Block;
use crate::dataset::listener::Known;
use crate::delivery::Transport;
use crate::event::Listener;
use crate::receiver::amqp::broker::Broker;
use crate::receiver::amqp::transport::ExchangeTransport;
use crate::receiver::{ReceiverKind, SecretVariables};

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
        self.0.extend(block::broker(block, known));
    }

    fn listeners(&self) -> Vec<Listener> {
        self.0.iter().map(|broker| broker.listener.clone()).collect()
    }

    fn read_secrets(&mut self, variables: &SecretVariables<'_>) -> Vec<String> {
        let mut missing = Vec::new();
        for broker in &mut self.0 {
            match variables.parse(&format!("amqp {}", broker.listener.name), &broker.url_env, "address") {
                Ok(address) => broker.address = Some(address),
                Err(why) => missing.push(why),
            }
        }
        missing
    }

    fn build(&self) -> Vec<(Listener, Box<dyn Transport>)> {
        let transport = |broker: &Broker| {
            let transport = ExchangeTransport::new(broker, broker.address.as_ref()?);
            Some((broker.listener.clone(), Box::new(transport) as Box<dyn Transport>))
        };
        self.0.iter().filter_map(transport).collect()
    }
}
