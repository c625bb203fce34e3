//! The way of events to an exchange.

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::amqp::PERSISTENT;
use crate::amqp::address::Address;
use crate::amqp::outlet::Outlet;
use crate::broker::{Publication, RoutingKey};
use crate::delivery::{Answer, Event, Way};

/// Publishes the events of one broker.
pub(super) struct Publishes {
    routing_key: RoutingKey,
    outlet: Outlet,
}

impl Publishes {
    pub(super) fn new(publication: Publication, address: &Address) -> Publishes {
        let Publication { exchange, routing_key, .. } = publication;
        Publishes { routing_key, outlet: Outlet::new(&exchange, address) }
    }
}

impl Way for Publishes {
    async fn open(&self) -> Result<(), String> {
        self.outlet.open().await
    }

    async fn tell(&self, event: Event) -> Answer {
        let routing_key = self.routing_key.of(event.end, &event.dataset, event.consumer.as_deref());
        let properties = BasicProperties::default()
            .with_content_type("application/cloudevents+json".into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(event.id.to_string().into())
            .with_type(event.kind.into())
            .with_app_id("cdc-export".into());
        let properties = match event.trace {
            Some(place) => {
                let mut headers = FieldTable::default();
                headers.insert("traceparent".into(), AMQPValue::LongString(place.to_string().into()));
                properties.with_headers(headers)
            }
            None => properties,
        };
        match self.outlet.publish(&routing_key, event.body.as_bytes(), properties).await {
            Ok(()) => Answer::Taken(None),
            Err(why) => Answer::Failed(None, why),
        }
    }
}
