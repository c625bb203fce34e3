//! Publishes events to the exchange of one broker, over a connection that does nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ExchangeKind};

use crate::delivery::{DeliveryResult, Event, Transport};
use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::broker::{Broker, RoutingKey};
use crate::receiver::amqp::connection::{BrokerConnection, CALL_TIMEOUT, within};

const CONFIRM_TIMEOUT: Duration = Duration::from_secs(12);
/// Delivery mode of a message that the broker stores on disk.
const PERSISTENT: u8 = 2;

pub(super) struct ExchangeTransport {
    exchange: String,
    routing_key: RoutingKey,
    address: BrokerAddress,
    open: Mutex<Option<Arc<OpenConnection>>>,
}

struct OpenConnection {
    connection: BrokerConnection,
    /// The idle channels. A channel publishes one message at a time: lapin assigns a returned message to the next
    /// confirmation, and numbers messages apart from sending them.
    channels: Mutex<Vec<Channel>>,
}

impl ExchangeTransport {
    pub(super) fn new(broker: &Broker, address: &BrokerAddress) -> ExchangeTransport {
        ExchangeTransport {
            exchange: broker.exchange.clone(),
            routing_key: broker.routing_key.clone(),
            address: address.clone(),
            open: Mutex::default(),
        }
    }

    /// Connects, unless there is a connection already. A missing exchange is an error.
    async fn connect(&self) -> Result<(), String> {
        let open = self.current();
        // lapin reports a connection that was lost while blocked as blocked for ever.
        if let Some(open) = open.filter(|open| open.connection.lapin.status().connected()) {
            return if open.connection.lapin.status().blocked() {
                Err("the broker takes nothing now: it is short of memory or disk".to_owned())
            } else {
                Ok(())
            };
        }
        let connection = BrokerConnection::open(&self.address).await?;
        let channels = Mutex::new(vec![self.channel(&connection.lapin).await?]);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Arc::new(OpenConnection { connection, channels }));
        Ok(())
    }

    /// Publishes an event, and returns when the broker has stored it in at least one queue.
    ///
    /// # Errors
    /// With the reason why the broker has not stored it, or why that is not known.
    async fn publish(&self, event: Event) -> Result<(), String> {
        let routing_key = self.routing_key.for_event(event.event.end, &event.dataset, event.consumer.as_deref());
        let open = self.current().ok_or("the connection is lost")?;
        let channels = || open.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = channels().pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.channel(&open.connection.lapin).await?,
        };
        // Without this option the broker drops, and confirms, a message that no queue is bound for.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = self.exchange.as_str();
        let (body, properties) = (event.body.as_bytes(), properties(&event));
        let published = within(CONFIRM_TIMEOUT, "it did not take the message", async {
            channel.basic_publish(exchange.into(), routing_key.as_str().into(), options, body, properties).await?.await
        });
        let confirmed = published.await.inspect_err(|_| self.drop_failed(&open))?;
        // The channel is idle only after the confirmation, which would otherwise be taken for the next message's.
        channels().push(channel);
        match confirmed {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => {
                Err(format!("no queue is bound to the exchange {exchange} for {routing_key}"))
            }
            Confirmation::Nack(_) => Err("the broker refused the message: a queue is full".to_owned()),
            Confirmation::NotRequested => Err("the broker confirms nothing".to_owned()),
        }
    }

    /// Drops a failed connection, so that the next call opens a new one. A blocked connection is kept: the broker
    /// unblocks it later, while a new connection would learn only by an attempt that the broker blocks.
    fn drop_failed(&self, failed: &Arc<OpenConnection>) {
        if !failed.connection.lapin.status().blocked() {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // Another call may have replaced it already.
            open.take_if(|open| Arc::ptr_eq(open, failed));
        }
    }

    fn current(&self) -> Option<Arc<OpenConnection>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn channel(&self, connection: &Connection) -> Result<Channel, String> {
        within(CALL_TIMEOUT, &format!("the exchange {}", self.exchange), async {
            let channel = connection.create_channel().await?;
            // A passive declaration checks that the exchange exists, and ignores its kind.
            let passive = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let (exchange, any) = (self.exchange.as_str().into(), ExchangeKind::Topic);
            channel.exchange_declare(exchange, any, passive, FieldTable::default()).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        })
        .await
    }
}

impl Transport for ExchangeTransport {
    fn open(&self) -> BoxFuture<'_, Result<(), String>> {
        self.connect().boxed()
    }

    fn deliver(&self, event: Event) -> BoxFuture<'_, DeliveryResult> {
        async {
            match self.publish(event).await {
                Ok(()) => DeliveryResult::Delivered(None),
                Err(why) => DeliveryResult::Failed(None, why),
            }
        }
        .boxed()
    }
}

fn properties(event: &Event) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_content_type("application/cloudevents+json".into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(event.id.to_string().into())
        .with_type(event.kind.as_str().into())
        .with_app_id("cdc-export".into());
    let Some(place) = &event.trace else { return properties };
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString(place.to_string().into()));
    properties.with_headers(headers)
}
