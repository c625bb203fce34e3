//! Publisher of messages to one exchange, over a connection that does nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ExchangeKind};

use crate::receiver::amqp::address::{BrokerAddress, MAX_FRAME};
use crate::receiver::amqp::connection::{BrokerConnection, CALL_TIMEOUT, within};

/// Timeout of the broker's confirmation of a message.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(12);

/// Publishes messages to one exchange.
pub(super) struct ExchangePublisher {
    exchange: String,
    address: BrokerAddress,
    open: Mutex<Option<Arc<OpenConnection>>>,
}

/// An open connection, and its channels.
struct OpenConnection {
    connection: BrokerConnection,
    /// The idle channels. A channel publishes one message at a time: lapin assigns a returned message to the next
    /// confirmation, and numbers messages apart from sending them.
    channels: Mutex<Vec<Channel>>,
}

impl ExchangePublisher {
    pub(super) fn new(exchange: &str, address: &BrokerAddress) -> ExchangePublisher {
        ExchangePublisher { exchange: exchange.to_owned(), address: address.clone(), open: Mutex::default() }
    }

    /// Connects, unless there is a connection already. A missing exchange is an error.
    ///
    /// # Errors
    /// With the reason why nothing can be published now.
    pub(super) async fn open(&self) -> Result<(), String> {
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

    /// Publishes a message, and returns when the broker has stored it in at least one queue.
    ///
    /// # Errors
    /// With the reason why the broker has not stored it, or why that is not known.
    pub(super) async fn publish(
        &self,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), String> {
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
        let limits = &open.connection.limits;
        // The broker returns the message if no queue is bound for it.
        limits.permit_body(body.len());
        limits.permit(1);
        let published = within(CONFIRM_TIMEOUT, "it did not take the message", async {
            channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await?.await
        });
        let confirmed = published.await.inspect_err(|_| self.drop_failed(&open))?;
        // The channel is idle only after the confirmation, which would otherwise be taken for the next message's.
        channels().push(channel);
        if let Confirmation::Ack(None) | Confirmation::Nack(None) = confirmed {
            limits.take();
        }
        match confirmed {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => {
                Err(format!("no queue is bound to the exchange {exchange} for {routing_key}"))
            }
            Confirmation::Nack(_) => Err("the broker refused the message: a queue is full".to_owned()),
            Confirmation::NotRequested => Err("the broker confirms nothing".to_owned()),
        }
    }

    /// Maximum size of a frame in bytes, which is also the maximum size of a message without its body.
    pub(super) fn frame_bytes(&self) -> usize {
        self.current().map_or(MAX_FRAME, |open| open.connection.lapin.configuration().frame_max()) as usize
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::receiver::amqp::test_broker::{Call, TestBroker, confirm, content, method, text};

    /// Returns a broker that answers the n-th publishing by the n-th function.
    async fn broker<const N: usize>(answers: [fn(&Call) -> Vec<u8>; N]) -> (TestBroker, ExchangePublisher) {
        let published = AtomicU64::new(0);
        let broker = TestBroker::start(move |call| match call.method {
            (60, 40) => answers[published.fetch_add(1, Ordering::SeqCst) as usize](call),
            _ => call.answer(),
        })
        .await;
        let publisher = ExchangePublisher::new("exchange", &broker.address);
        publisher.open().await.unwrap();
        (broker, publisher)
    }

    fn returned(call: &Call, body: &[u8]) -> Vec<u8> {
        let why = [&[1, 0x38][..], &text(b"NO_ROUTE"), &text(b"exchange"), &text(b"key")].concat();
        [method(call.channel, 60, 50, &why), content(call.channel, body)].concat()
    }

    async fn publish(publisher: &ExchangePublisher) -> Result<(), String> {
        publisher.publish("key", b"body", BasicProperties::default()).await
    }

    #[tokio::test]
    async fn each_message_is_returned_at_most_once() {
        let (mut broker, publisher) = broker([
            |call| [returned(call, b"body"), confirm(call.channel, 1)].concat(),
            |call| confirm(call.channel, 2),
            |call| [returned(call, b"body"), confirm(call.channel, 3)].concat(),
            |call| [returned(call, b"body"), returned(call, b"body"), confirm(call.channel, 4)].concat(),
        ])
        .await;
        for is_returned in [true, false, true] {
            assert_eq!(publish(&publisher).await.is_err(), is_returned);
        }
        let _ = publish(&publisher).await;
        broker.is_left().await;
    }

    #[tokio::test]
    async fn a_returned_message_is_no_larger_than_it_was() {
        let (mut broker, publisher) = broker([|call| returned(call, b"body+")]).await;
        let error = publish(&publisher).await.unwrap_err();
        assert!(error.contains("larger"), "{error}");
        broker.is_left().await;
    }
}
