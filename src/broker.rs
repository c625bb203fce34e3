//! Message brokers of the operator's file: where events of ended exports are published, and where requests for exports come from.

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
    /// Where events are published; `None`: nowhere.
    pub publication: Option<Publication>,
    /// Where requests come from; `None`: nowhere.
    pub intake: Option<Intake>,
}

impl Broker {
    /// What it can't have beside another one that is at the same broker: the member of the operator's file, and why.
    pub fn clash(&self, other: &Broker) -> Option<(&'static str, String)> {
        let exchange = |broker: &Broker| broker.publication.as_ref().map(|publication| publication.exchange.clone());
        let dead_letters = |broker: &Broker| broker.intake.as_ref().map(|intake| intake.dead_letter_exchange.clone());
        let queue = |broker: &Broker| broker.intake.as_ref().map(|intake| intake.queue.clone());
        let is_same = |own: Option<String>, others: Option<String>| own.is_some() && own == others;
        let name = &other.name;
        let heard = "whoever hears of events would get the refused requests, too";
        if is_same(queue(self), queue(other)) {
            // They would refuse each other's requests, by turns.
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
    /// What is published.
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
    /// Where a request goes that is refused, with the reason.
    pub dead_letter_exchange: String,
    /// Requests for these datasets; `None`: for all.
    pub datasets: Option<Vec<String>>,
    /// Requests of these consumers; `None`: of all, and for exports without one.
    pub consumers: Option<Vec<ConsumerId>>,
}

/// A request for an export, as a message brought it.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its id, which it has at each delivery; `None`: it has none.
    pub id: Option<String>,
    /// The consumer, as its headers name it: none, one, or by mistake several.
    pub consumers: Vec<Vec<u8>>,
    /// Its place in a trace, as its header says it.
    pub traceparent: Option<Vec<u8>>,
    /// What its body is; `None`: it doesn't say.
    pub content_type: Option<String>,
    /// The body of `POST /exports`.
    pub body: Bytes,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There is a job for it, committed.
    Accepted,
    /// It can't be met, as long as it is as it is: the problem, as the API would say it.
    Refused(Value),
    /// It can't be met now, and perhaps it can soon: the problem, as the API would say it.
    Deferred(Value),
    /// The service failed, or can't use its dataset's table, which may last: the problem, as the API would say it.
    Failed(Value),
}

/// The most bytes of a name of AMQP: of an exchange, a queue, a routing key.
pub const NAME_BYTES: usize = 255;

/// A routing key with places for what an event is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingKey(String);

/// What a place of a routing key can be.
const PLACES: [&str; 3] = ["{event}", "{dataset}", "{consumer}"];

impl Default for RoutingKey {
    /// Last the consumer, whose id may have dots: a binding counts the words between dots.
    fn default() -> RoutingKey {
        RoutingKey("{event}.{dataset}.{consumer}".to_owned())
    }
}

impl RoutingKey {
    /// A routing key as the operator's file has it.
    ///
    /// # Errors
    /// If it is too long with what stands in its places, has other places, or control characters.
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

    /// The routing key of an event. An export without a consumer has `-` in its place.
    pub fn of(&self, end: Status, dataset: &str, consumer: Option<&str>) -> String {
        let values = [end.as_str(), dataset, consumer.unwrap_or("-")];
        // Each place by itself: a consumer's id is not read again.
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
