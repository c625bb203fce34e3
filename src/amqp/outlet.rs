//! The way to an exchange: a connection that publishes, and nothing else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection, ExchangeKind};

use crate::amqp::address::Address;
use crate::amqp::connection::{CALL_TIMEOUT, Connector, within};

/// How long the broker may take to say that it has a message.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(12);

/// Publishes to one exchange.
pub(super) struct Outlet {
    exchange: String,
    connector: Connector,
    open: Mutex<Option<Arc<Open>>>,
}

/// What is open.
struct Open {
    connection: Connection,
    /// Those that nobody is using. On one channel one message is under way at a time: lapin gives what the broker returns to whichever
    /// confirmation comes next, and numbers messages apart from sending them.
    channels: Mutex<Vec<Channel>>,
}

impl Outlet {
    pub(super) fn new(exchange: &str, address: &Address) -> Outlet {
        Outlet { exchange: exchange.to_owned(), connector: Connector::new(address), open: Mutex::default() }
    }

    /// Connects, unless it is connected. Tells that the exchange isn't there.
    ///
    /// # Errors
    /// With the reason why nothing can be published now.
    pub(super) async fn open(&self) -> Result<(), String> {
        let open = self.now_open();
        // One that was blocked when it was lost is called blocked for ever.
        if let Some(open) = open.filter(|open| open.connection.status().connected()) {
            return if open.connection.status().blocked() {
                Err("the broker takes nothing now: it is short of memory or disk".to_owned())
            } else {
                Ok(())
            };
        }
        let connection = self.connector.connect().await?;
        let channels = Mutex::new(vec![self.channel(&connection).await?]);
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(Open { connection, channels }));
        Ok(())
    }

    /// Publishes a message, and returns when the broker has it, in a queue at least.
    ///
    /// # Errors
    /// With the reason why it has not, or why nobody knows.
    pub(super) async fn publish(
        &self,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<(), String> {
        let open = self.now_open().ok_or("the connection is lost")?;
        let channels = || open.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = channels().pop();
        let channel = match idle.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.channel(&open.connection).await?,
        };
        // Otherwise the broker would drop, and confirm, what no queue is bound for.
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let exchange = self.exchange.as_str();
        let published = within(CONFIRM_TIMEOUT, "it did not take the message", async {
            channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties).await?.await
        });
        let confirmed = published.await.inspect_err(|_| self.give_up(&open))?;
        // Only now: an answer that was not waited for would be taken for the next message's.
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

    /// How many bytes a frame may have, and so all of a message but its body.
    pub(super) fn frame_bytes(&self) -> usize {
        let most = self.now_open().map(|open| open.connection.configuration().frame_max());
        // 0 is no bound.
        most.filter(|bytes| *bytes > 0).map_or(usize::MAX, |bytes| bytes as usize)
    }

    /// Leaves a connection for a new one, unless it is blocked: it says when it goes on, while a new one wouldn't know that it is, and each
    /// message would be tried to find out.
    fn give_up(&self, failed: &Arc<Open>) {
        if !failed.connection.status().blocked() {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // Another may be there by now.
            open.take_if(|open| Arc::ptr_eq(open, failed));
        }
    }

    fn now_open(&self) -> Option<Arc<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn channel(&self, connection: &Connection) -> Result<Channel, String> {
        within(CALL_TIMEOUT, &format!("the exchange {}", self.exchange), async {
            let channel = connection.create_channel().await?;
            // Its kind doesn't matter to a question.
            let asks = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
            let (exchange, any) = (self.exchange.as_str().into(), ExchangeKind::Topic);
            channel.exchange_declare(exchange, any, asks, FieldTable::default()).await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok(channel)
        })
        .await
    }
}
