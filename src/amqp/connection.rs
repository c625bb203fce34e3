//! Connections to a broker, and one message published for certain.

use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind};
use tokio::time::timeout;

use crate::amqp::address::Address;
use crate::telemetry::chain;

/// How long connecting may take, or opening a channel.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the broker may take to say that it has a message.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(15);

/// The delivery mode of a message that is kept on disk.
pub(super) const PERSISTENT: u8 = 2;

/// Why a message was not published.
pub(super) enum Unpublished {
    /// The broker said so: the channel is as good as before.
    Refused(String),
    /// Nobody knows: the broker may have it.
    Unknown(String),
}

/// Connects to a broker.
pub(super) async fn connect(address: &Address) -> Result<Connection, String> {
    // An error means that the process has a provider already, which will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let named = ConnectionProperties::default().with_connection_name("cdc-export".into());
    let connecting = Connection::connect_uri(address.0.clone(), named);
    within(CONNECT_TIMEOUT, "it can't be connected to", connecting).await
}

/// A channel that publishes to an exchange, which has to be there.
pub(super) async fn channel_to(connection: &Connection, exchange: &str) -> Result<Channel, String> {
    let why = format!("the exchange {exchange}");
    within(CONNECT_TIMEOUT, &why, async {
        let channel = connection.create_channel().await?;
        // Its kind doesn't matter to a question.
        let asks = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(exchange.into(), ExchangeKind::Topic, asks, FieldTable::default()).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    })
    .await
}

/// Publishes a message, and returns when the broker has it, in a queue at least.
pub(super) async fn publish(
    channel: &Channel,
    exchange: &str,
    routing_key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> Result<(), Unpublished> {
    // Otherwise the broker would drop, and confirm, what no queue is bound for.
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published = within(CONFIRM_TIMEOUT, "it did not take the message", async {
        channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await?.await
    });
    match published.await.map_err(Unpublished::Unknown)? {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(_)) => {
            Err(Unpublished::Refused(format!("no queue is bound to the exchange {exchange} for {routing_key}")))
        }
        Confirmation::Nack(_) => {
            Err(Unpublished::Refused("the broker refused the message: a queue is full".to_owned()))
        }
        Confirmation::NotRequested => Err(Unpublished::Unknown("the broker confirms nothing".to_owned())),
    }
}

/// How a connection stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Messages can be published.
    Open,
    /// The broker reads nothing now. It says when it goes on.
    Blocked,
    /// It has to be made anew.
    Lost,
}

pub(super) fn standing(connection: &Connection, channel: &Channel) -> Standing {
    // One that was blocked when it was lost is called blocked for ever.
    if !connection.status().connected() || !channel.status().connected() {
        Standing::Lost
    } else if connection.status().blocked() {
        Standing::Blocked
    } else {
        Standing::Open
    }
}

/// What a call returns within this time. An error says what couldn't be, and why.
pub(super) async fn within<T>(
    time: Duration,
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, String> {
    match timeout(time, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("{what}: {}", chain(&error))),
        Err(_) => Err(format!("{what}: no answer in time")),
    }
}
