//! Reads an `[[amqp]]` block of the operator's file.

use std::sync::Arc;

use crate::broker::Intake;
use crate::dataset::block::Block;
use crate::dataset::listener::{Known, listener};
use crate::job::Bounds;
use crate::receiver::amqp::broker::{Broker, Exchange, NAME_BYTES, RoutingKey};

/// Reads one block. Returns the broker even if a name in it is refused, so that conflicts with later blocks are found.
pub(super) fn broker(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<Broker> {
    let url_env = block.required("url_env", |name| known.secret_variable(name, "the address, which has a password"));
    if !block.has("exchange") && !block.has("queue") {
        block.wrong("exchange", "events go to an exchange, requests come from a queue: name one of them, or both");
    }
    let listener = listener(block, known);
    for member in ["events", "routing_key"] {
        if block.has(member) && !block.has("exchange") {
            block.wrong(member, "it goes with `exchange`");
        }
    }
    let routing_key = block.or_default("routing_key", RoutingKey::default(), RoutingKey::parse);
    let exchange = broker_name(block, "exchange");
    let queue = broker_name(block, "queue");
    let dead_letter_exchange = broker_name(block, "dead_letter_exchange");
    if exchange.is_some() && exchange == dead_letter_exchange {
        let why = "it is `exchange`: whoever hears of events would get the refused requests, too";
        block.wrong("dead_letter_exchange", why);
    }
    if block.has("dead_letter_exchange") && !block.has("queue") {
        block.wrong("dead_letter_exchange", "it goes with `queue`");
    }
    if block.has("queue") && !block.has("dead_letter_exchange") {
        block.wrong("queue", "`dead_letter_exchange` has to say where a request goes that is refused");
    }
    let bounds = Bounds { consumers: listener.consumers.clone(), datasets: listener.datasets.clone() };
    Some(Broker {
        name: block.name.clone(),
        url_env: url_env?,
        intake: queue.zip(dead_letter_exchange).map(|(queue, dead_letter_exchange)| {
            Arc::new(Intake { name: block.name.clone(), queue, dead_letter_exchange, bounds })
        }),
        exchange: exchange.zip(routing_key).map(|(name, routing_key)| Exchange { listener, name, routing_key }),
        address: None,
    })
}

/// Reads the name of an exchange or a queue. The default exchange, whose name is empty, is refused: it would route a
/// refused request back to its queue.
fn broker_name(block: &mut Block<'_, '_>, member: &'static str) -> Option<String> {
    let name = block.text(member)?;
    if !(1..=NAME_BYTES).contains(&name.len()) {
        block.wrong(member, format!("a name of 1 to {NAME_BYTES} bytes is expected"));
    }
    if name.contains(char::is_control) {
        block.wrong(member, "it has a control character");
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::assert_lines;
    use crate::dataset::block::{Names, OperatorFile};
    use crate::dataset::catalog::Catalog;
    use crate::event::EventType;
    use crate::job::Status;
    use crate::receiver::amqp::Brokers;
    use crate::receiver::{ReceiverKind, Receivers};

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    #[test]
    fn every_member_is_read() {
        let text = format!(
            "{ORDERS}
            [[amqp]]
            name = \"rabbit\"
            url_env = \"RABBIT_URL\"
            exchange = \"exports\"
            routing_key = \"cdc.{{dataset}}.{{event}}\"
            events = [\"export.completed\"]
            queue = \"requests\"
            dead_letter_exchange = \"refused\"
            datasets = [\"orders\"]
            consumers = [\"search\"]

            [[amqp]]
            name = \"events\"
            url_env = \"_R\"
            exchange = \"amq.topic\"
            "
        );
        let (mut brokers, mut names) = (Brokers::default(), Names::default());
        let read = |file: &mut OperatorFile<'_>, known: &Known<'_>| {
            file.each_block("amqp", &mut names, |block| brokers.parse(block, known));
            brokers.listeners()
        };
        let catalog = Catalog::with_receivers(&text, &["amqp"], |_| false, read).unwrap();
        let [rabbit, events] = brokers.0.as_slice() else { panic!("two") };
        let (exchange, intake) = (rabbit.exchange.as_ref().unwrap(), rabbit.intake.as_ref().unwrap());
        assert_eq!(exchange.listener.events, [EventType::named("export.completed").unwrap()]);
        assert_eq!(exchange.routing_key.for_event(Status::Completed, "orders", None), "cdc.orders.completed");
        assert_eq!((intake.queue.as_str(), intake.dead_letter_exchange.as_str()), ("requests", "refused"));
        assert_eq!(intake.bounds.datasets, exchange.listener.datasets);
        assert_eq!(intake.bounds.consumers.as_ref().map(Vec::len), Some(1));
        let exchange = events.exchange.as_ref().unwrap();
        assert_eq!(exchange.routing_key.for_event(Status::Failed, "orders", Some("a")), "failed.orders.a");
        assert!(events.intake.is_none() && exchange.listener.datasets.is_none());
        let names: Vec<_> = catalog.listeners().iter().map(|listener| listener.name.as_str()).collect();
        assert_eq!(names, ["rabbit", "events"]);
    }

    #[test]
    fn each_fault_is_reported_with_its_line() {
        let text = "[[webhook]]
name = \"hook\"
url = \"https://a.example/\"
secret_env = \"A\"
[[amqp]]
name = \"hook\"
url_env = \"R\"
exchange = \"e\"
[[amqp]]
name = \"a\"
url_env = \"amqp://u:secret@h\"
[[amqp]]
name = \"b\"
url_env = \"R\"
events = [\"export.completed\"]
routing_key = \"{end}\"
queue = \"q\"
[[amqp]]
name = \"c\"
url_env = \"R\"
exchange = \"\"
dead_letter_exchange = \"d\"
[[amqp]]
name = \"c\"
url_env = \"R\"
exchange = \"e\"
";
        let found = Receivers::read(&format!("{ORDERS}{text}"), |_| false).unwrap_err().to_string();
        let expected = [
            "line 8: amqp hook: there is a webhook of this name already",
            "line 14: amqp a: url_env: the name of a variable",
            "line 12: amqp a: exchange: events go to an exchange",
            "line 18: amqp b: events: it goes with `exchange`",
            "line 19: amqp b: routing_key: it goes with `exchange`",
            "line 19: amqp b: routing_key: its places are",
            "line 20: amqp b: queue: `dead_letter_exchange` has to say",
            "line 24: amqp c: exchange: a name of 1 to 255",
            "line 25: amqp c: dead_letter_exchange: it goes with `queue`",
            "line 26: amqp c: there is an amqp of this name already",
        ];
        assert_lines(&found, &expected);
        assert!(!found.contains("secret@"), "{found}");
    }

    #[test]
    fn a_block_that_can_not_work_is_refused_when_it_is_read() {
        let text = "[[amqp]]
name = \"a\"
url_env = \"DATABASE_URL\"
exchange = \"e\"
[[amqp]]
name = \"b\"
url_env = \"R\"
exchange = \"e\"
queue = \"q\"
dead_letter_exchange = \"e\"
[[amqp]]
name = \"c\"
url_env = \"R\"
queue = \"q\"
dead_letter_exchange = \"d\\u0000\"
[[amqp]]
name = \"d\"
url_env = \"OTHER\"
exchange = \"e\\n\"
routing_key = \"k\\t\"
queue = \"q\"
dead_letter_exchange = \"d\"
[[webhook]]
name = \"hook\"
url = \"https://a.example/\"
secret_env = \"DATABASE_URL\"
";
        let is_setting = |name: &str| name == "DATABASE_URL";
        let found = Receivers::read(&format!("{ORDERS}{text}"), is_setting).unwrap_err().to_string();
        let expected = [
            "line 29: webhook hook: secret_env: DATABASE_URL is a setting of the service",
            "line 6: amqp a: url_env: DATABASE_URL is a setting of the service",
            "line 13: amqp b: dead_letter_exchange: it is `exchange`",
            "line 18: amqp c: dead_letter_exchange: it has a control character",
            "line 17: amqp c: queue: amqp b takes the requests of this queue already",
            "line 23: amqp d: routing_key: it has a control character",
            "line 22: amqp d: exchange: it has a control character",
        ];
        assert_lines(&found, &expected);
    }
}
