//! Brokers that speak AMQP 0-9-1, such as RabbitMQ: events are published to an exchange.
//!
//! Declares no exchange, queue or binding: these are the operator's. A missing exchange is logged until it exists.

mod address;
mod block;
mod broker;
mod connection;
mod stream;
mod transport;

use crate::catalog::block::Block;
use crate::catalog::listener::KnownNames;
use crate::delivery::Transport;
use crate::event::Listener;
use crate::receiver::amqp::broker::Broker;
use crate::receiver::amqp::transport::ExchangeTransport;
use crate::receiver::{Receiver, SecretVariables};

pub(super) fn parse(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<Box<dyn Receiver>> {
    Some(Box::new(block::broker(block, known)?))
}

impl Receiver for Broker {
    fn listener(&self) -> &Listener {
        &self.listener
    }

    fn read_secret(&mut self, variables: &SecretVariables<'_>) -> Result<(), String> {
        self.address = Some(variables.parse(&format!("amqp {}", self.listener.name), &self.url_env, "address")?);
        Ok(())
    }

    fn transport(&self) -> Option<Box<dyn Transport>> {
        Some(Box::new(ExchangeTransport::new(self, self.address.as_ref()?)))
    }
}
