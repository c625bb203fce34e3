//! The way of events to an exchange.

use lapin::{BasicProperties, Channel, Connection};
use tokio::sync::Mutex;

use crate::amqp::address::Address;
use crate::amqp::connection::{PERSISTENT, Standing, Unpublished, channel_to, connect, publish, standing};
use crate::broker::Publication;
use crate::delivery::{Answer, Event, Way};

/// Publishes the events of one broker.
pub(super) struct Publisher {
    publication: Publication,
    address: Address,
    open: Mutex<Option<(Connection, Channel)>>,
}

impl Publisher {
    pub(super) fn new(publication: Publication, address: Address) -> Publisher {
        Publisher { publication, address, open: Mutex::default() }
    }
}

impl Way for Publisher {
    /// Connects, unless it is connected.
    async fn open(&self) -> Result<(), String> {
        let mut open = self.open.lock().await;
        match open.as_ref().map_or(Standing::Lost, |(connection, channel)| standing(connection, channel)) {
            Standing::Open => return Ok(()),
            Standing::Blocked => return Err("the broker takes nothing now: it is short of memory or disk".to_owned()),
            Standing::Lost => {}
        }
        *open = None;
        let connection = connect(&self.address).await?;
        let channel = channel_to(&connection, &self.publication.exchange).await?;
        *open = Some((connection, channel));
        Ok(())
    }

    async fn tell(&self, event: Event) -> Answer {
        let Some(channel) = self.open.lock().await.as_ref().map(|(_, channel)| channel.clone()) else {
            return Answer::Failed(None, "the connection is lost".to_owned());
        };
        let Publication { exchange, routing_key, .. } = &self.publication;
        let routing_key = routing_key.of(event.end, &event.dataset, event.consumer.as_deref());
        let properties = BasicProperties::default()
            .with_content_type("application/cloudevents+json".into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(event.id.to_string().into())
            .with_type(event.kind.into())
            .with_app_id("cdc-export".into());
        match publish(&channel, exchange, &routing_key, event.body.as_bytes(), properties).await {
            Ok(()) => Answer::Taken(None),
            Err(Unpublished::Refused(why)) => Answer::Failed(None, why),
            Err(Unpublished::Unknown(why)) => {
                let mut open = self.open.lock().await;
                // One that is blocked says when it goes on. A new one wouldn't know that it is, and each event would lose a try to find out.
                open.take_if(|(connection, channel)| standing(connection, channel) != Standing::Blocked);
                Answer::Failed(None, why)
            }
        }
    }
}
