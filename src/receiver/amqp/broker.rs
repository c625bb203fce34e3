//! Brokers of the operator's file: the exchange for events, their routing keys, and the broker's address.

use crate::event::Listener;
use crate::job::Status;
use crate::receiver::amqp::address::BrokerAddress;

#[derive(Clone, Debug)]
pub(super) struct Broker {
    pub(super) listener: Listener,
    /// The variable of the environment that has its address, with a name and a password.
    pub(super) url_env: String,
    pub(super) exchange: String,
    pub(super) routing_key: RoutingKey,
    /// The broker's address. `None`: it has not been read, or is missing.
    pub(super) address: Option<BrokerAddress>,
}

/// Maximum length of the name of an exchange, and of a routing key, in bytes.
pub(super) const NAME_BYTES: usize = 255;

/// A template of routing keys, with placeholders for the event's end, dataset and consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RoutingKey(String);

const PLACES: [&str; 3] = ["{event}", "{dataset}", "{consumer}"];

impl Default for RoutingKey {
    /// The consumer comes last, since its id may have dots, and a binding counts the words between dots.
    fn default() -> RoutingKey {
        RoutingKey("{event}.{dataset}.{consumer}".to_owned())
    }
}

impl RoutingKey {
    /// Parses a template of routing keys.
    ///
    /// # Errors
    /// If it has other placeholders or control characters, or may become too long.
    pub(super) fn parse(text: &str) -> Result<RoutingKey, String> {
        if text.contains(char::is_control) {
            return Err("it has a control character".to_owned());
        }
        let rest = PLACES.iter().fold(text.to_owned(), |rest, place| rest.replace(place, ""));
        if rest.contains(['{', '}']) {
            return Err(format!("its places are {}", PLACES.join(", ")));
        }
        let longest = RoutingKey(text.to_owned()).for_event(Status::Completed, &"d".repeat(63), Some(&"c".repeat(128)));
        if longest.len() > NAME_BYTES {
            return Err(format!("with a long consumer's id it would have more than {NAME_BYTES} bytes"));
        }
        Ok(RoutingKey(text.to_owned()))
    }

    /// Returns the routing key of an event. `-` replaces the consumer if the export has none.
    pub(super) fn for_event(&self, end: Status, dataset: &str, consumer: Option<&str>) -> String {
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
    fn a_routing_key_contains_the_event_dataset_and_consumer() {
        let key = RoutingKey::default();
        assert_eq!(key.for_event(Status::Completed, "orders", Some("a.b")), "completed.orders.a.b");
        assert_eq!(key.for_event(Status::Failed, "orders", None), "failed.orders.-");
        let key = RoutingKey::parse("x.{dataset}.{dataset}").unwrap();
        assert_eq!(key.for_event(Status::Failed, "orders", Some("{event}")), "x.orders.orders");
        assert_eq!(RoutingKey::parse("fixed").unwrap().for_event(Status::Failed, "orders", None), "fixed");
    }

    #[test]
    fn an_invalid_routing_key_is_refused() {
        for text in ["{consumer", "{end}", "{}", "}{dataset}"] {
            assert!(RoutingKey::parse(text).unwrap_err().starts_with("its places are {event}, "), "{text}");
        }
        assert!(RoutingKey::parse("{consumer}{consumer}").unwrap_err().contains("255 bytes"));
    }
}
