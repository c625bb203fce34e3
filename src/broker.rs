//! Message brokers of the operator's file. A broker gets events of ended exports, brings requests for exports, or both.

use bytes::Bytes;
use serde_json::Value;

use crate::event::Listener;
use crate::job::{ConsumerId, Status};

/// A broker that speaks AMQP 0-9-1, as the operator's file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its name.
    pub name: String,
    /// The variable of the environment that has its address, with a name and a password.
    pub url_env: String,
    /// Where events are published. `None`: no events are.
    pub publication: Option<Publication>,
    /// Where requests come from. `None`: no requests are taken.
    pub intake: Option<Intake>,
}

impl Broker {
    /// Compares the block with another block for the same broker. Returns the member that they can't both have so, and why.
    pub fn clash(&self, other: &Broker) -> Option<(&'static str, String)> {
        let exchange = |broker: &Broker| broker.publication.as_ref().map(|publication| publication.exchange.clone());
        let dead_letters = |broker: &Broker| broker.intake.as_ref().map(|intake| intake.dead_letter_exchange.clone());
        let queue = |broker: &Broker| broker.intake.as_ref().map(|intake| intake.queue.clone());
        let is_same = |own: Option<String>, others: Option<String>| own.is_some() && own == others;
        let name = &other.name;
        let heard = "whoever hears of events would get the refused requests, too";
        if is_same(queue(self), queue(other)) {
            // Each would refuse requests that are meant for the other one.
            Some(("queue", format!("amqp {name} takes the requests of this queue already")))
        } else if is_same(exchange(self), dead_letters(other)) {
            Some(("exchange", format!("it is the `dead_letter_exchange` of amqp {name}: {heard}")))
        } else if is_same(dead_letters(self), exchange(other)) {
            Some(("dead_letter_exchange", format!("it is the `exchange` of amqp {name}: {heard}")))
        } else {
            None
        }
    }
}

/// Where the events of ended exports are published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Which events are published.
    pub listener: Listener,
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: RoutingKey,
}

/// Where requests for exports come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intake {
    /// The queue.
    pub queue: String,
    /// The exchange to which a refused request is published, with the reason.
    pub dead_letter_exchange: String,
    /// The datasets that a request may name. `None`: all.
    pub datasets: Option<Vec<String>>,
    /// The consumers that a request may name. `None`: all, and no consumer.
    pub consumers: Option<Vec<ConsumerId>>,
}

/// A request for an export, as a message brought it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its id, the same at each delivery. `None`: it has none.
    pub id: Option<String>,
    /// The values of its consumer headers. More than one is a mistake of the sender.
    pub consumers: Vec<Vec<u8>>,
    /// Its `traceparent` header.
    pub traceparent: Option<Vec<u8>>,
    /// Its content type. `None`: it has none.
    pub content_type: Option<String>,
    /// Its body, as of `POST /exports`.
    pub body: Bytes,
}

/// The outcome of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A job for it is committed.
    Accepted,
    /// The request itself is wrong: the problem that the API would answer.
    Refused(Value),
    /// The request may succeed soon: the problem that the API would answer.
    Deferred(Value),
    /// The service failed or can't use the dataset's table, perhaps for long: the problem that the API would answer.
    Failed(Value),
}

/// The most bytes of the name of an exchange, of the name of a queue, and of a routing key.
pub const NAME_BYTES: usize = 255;

/// A template of routing keys, with placeholders for the event's end, dataset and consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingKey(String);

/// The placeholders of a routing key.
const PLACES: [&str; 3] = ["{event}", "{dataset}", "{consumer}"];

impl Default for RoutingKey {
    /// The consumer comes last, since its id may have dots, and a binding counts the words between dots.
    fn default() -> RoutingKey {
        RoutingKey("{event}.{dataset}.{consumer}".to_owned())
    }
}

impl RoutingKey {
    /// A routing key as the operator's file has it.
    ///
    /// # Errors
    /// If it has other placeholders or control characters, or may become too long.
    pub fn new(text: &str) -> Result<RoutingKey, String> {
        if text.contains(char::is_control) {
            return Err("it has a control character".to_owned());
        }
        let rest = PLACES.iter().fold(text.to_owned(), |rest, place| rest.replace(place, ""));
        if rest.contains(['{', '}']) {
            return Err(format!("its places are {}", PLACES.join(", ")));
        }
        let longest = RoutingKey(text.to_owned()).of(Status::Completed, &"d".repeat(63), Some(&"c".repeat(128)));
        if longest.len() > NAME_BYTES {
            return Err(format!("with a long consumer's id it would have more than {NAME_BYTES} bytes"));
        }
        Ok(RoutingKey(text.to_owned()))
    }

    /// The routing key of an event. `-` replaces the consumer if the export has none.
    pub fn of(&self, end: Status, dataset: &str, consumer: Option<&str>) -> String {
        let values = [end.as_str(), dataset, consumer.unwrap_or("-")];
        // A value is never searched for placeholders: a consumer's id may look like one.
        let mut key = String::new();
        let mut rest = self.0.as_str();
        while let Some((at, place, value)) = PLACES
            .iter()
            .zip(values)
            .filter_map(|(place, value)| rest.find(place).map(|at| (at, place, value)))
            .min_by_key(|(at, ..)| *at)
        {
            key.push_str(&rest[..at]);
            key.push_str(value);
            rest = &rest[at + place.len()..];
        }
        key + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_routing_key_has_what_the_event_is_of() {
        let key = RoutingKey::default();
        assert_eq!(key.of(Status::Completed, "orders", Some("a.b")), "completed.orders.a.b");
        assert_eq!(key.of(Status::Failed, "orders", None), "failed.orders.-");
        let key = RoutingKey::new("x.{dataset}.{dataset}").unwrap();
        assert_eq!(key.of(Status::Failed, "orders", Some("{event}")), "x.orders.orders");
        assert_eq!(RoutingKey::new("fixed").unwrap().of(Status::Failed, "orders", None), "fixed");
    }

    #[test]
    fn a_routing_key_that_cannot_be_is_refused() {
        for text in ["{consumer", "{end}", "{}", "}{dataset}"] {
            assert!(RoutingKey::new(text).unwrap_err().starts_with("its places are {event}, "), "{text}");
        }
        assert!(RoutingKey::new("{consumer}{consumer}").unwrap_err().contains("255 bytes"));
    }
}
