//! Publishes events to the exchange of one broker.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::delivery::{DeliveryResult, Event, Transport};
use crate::receiver::amqp::PERSISTENT;
use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::broker::{Exchange, RoutingKey};
use crate::receiver::amqp::exchange::ExchangePublisher;

/// The transport of one broker.
pub(super) struct ExchangeTransport {
    routing_key: RoutingKey,
    publisher: ExchangePublisher,
}

impl ExchangeTransport {
    pub(super) fn new(exchange: &Exchange, address: &BrokerAddress) -> ExchangeTransport {
        let publisher = ExchangePublisher::new(&exchange.name, address);
        ExchangeTransport { routing_key: exchange.routing_key.clone(), publisher }
    }

    async fn publish(&self, event: Event) -> DeliveryResult {
        let routing_key = self.routing_key.for_event(event.event.end, &event.dataset, event.consumer.as_deref());
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
        match self.publisher.publish(&routing_key, event.body.as_bytes(), properties).await {
            Ok(()) => DeliveryResult::Delivered(None),
            Err(why) => DeliveryResult::Failed(None, why),
        }
    }
}

impl Transport for ExchangeTransport {
    fn open(&self) -> BoxFuture<'_, Result<(), String>> {
        self.publisher.open().boxed()
    }

    fn deliver(&self, event: Event) -> BoxFuture<'_, DeliveryResult> {
        self.publish(event).boxed()
    }
}
