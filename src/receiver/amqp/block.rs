//! Reads an `[[amqp]]` block of the operator's file.

use crate::catalog::block::Block;
use crate::catalog::listener::{KnownNames, listener};
use crate::receiver::amqp::broker::{Broker, NAME_BYTES, RoutingKey};

pub(super) fn broker(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Option<Broker> {
    let url_env = block.required("url_env", |name| known.secret_variable(name, "the address, which has a password"));
    let exchange = block.required("exchange", exchange_name);
    let listener = listener(block, known);
    let routing_key = block.or_default("routing_key", RoutingKey::default(), RoutingKey::parse);
    Some(Broker { listener, url_env: url_env?, exchange: exchange?, routing_key: routing_key?, address: None })
}

/// Parses the name of an exchange. The default exchange, whose name is empty, is refused: it ignores bindings.
fn exchange_name(name: &str) -> Result<String, String> {
    if !(1..=NAME_BYTES).contains(&name.len()) {
        return Err(format!("a name of 1 to {NAME_BYTES} bytes is expected"));
    }
    if name.contains(char::is_control) {
        return Err("it has a control character".to_owned());
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::block::{Names, OperatorFile};
    use crate::catalog::mistake::Mistakes;
    use crate::catalog::{Catalog, assert_refused};
    use crate::event::EventType;
    use crate::job::Status;

    const BLOCK: &str = "[[amqp]]\nname = \"rabbit\"\nurl_env = \"_R\"\nexchange = \"amq.topic\"\n";

    fn read(block: &str) -> Result<Broker, Mistakes> {
        let (mut brokers, mut names) = (Vec::new(), Names::default());
        let read = |file: &mut OperatorFile<'_>, known: &KnownNames<'_>| {
            file.each_block("amqp", &mut names, |block| brokers.extend(broker(block, known)));
            Vec::new()
        };
        Catalog::with_receivers(block, &["amqp"], |name| name == "DATABASE_URL", read)?;
        Ok(brokers.remove(0))
    }

    #[test]
    fn every_member_is_read() {
        let plain = read(BLOCK).unwrap();
        assert_eq!((&*plain.listener.name, &*plain.url_env, &*plain.exchange), ("rabbit", "_R", "amq.topic"));
        assert_eq!(plain.routing_key.for_event(Status::Failed, "orders", Some("a")), "failed.orders.a");
        assert!(plain.listener.datasets.is_none() && plain.listener.consumers.is_none());
        let all = "routing_key = \"cdc.{dataset}.{event}\"
events = [\"export.completed\"]
datasets = [\"users\"]
consumers = [\"search\"]";
        let all = read(&format!("{BLOCK}{all}")).unwrap();
        assert_eq!(all.routing_key.for_event(Status::Completed, "orders", None), "cdc.orders.completed");
        assert_eq!(all.listener.events, [EventType::named("export.completed").unwrap()]);
        assert_eq!(all.listener.datasets, Some(vec!["users".to_owned()]));
        assert_eq!(all.listener.consumers.as_ref().map(Vec::len), Some(1));
    }

    #[test]
    fn a_broker_that_cannot_be_used_is_refused() {
        let cases = [
            ("url_env = \"amqp://u:hidden@h\"", "line 4: amqp rabbit: url_env: the name of a variable"),
            ("url_env = \"DATABASE_URL\"", "url_env: DATABASE_URL is a setting of the service"),
            ("exchange", "missing field `exchange`"),
            ("exchange = \"\"", "exchange: a name of 1 to 255"),
            ("exchange = \"e\\n\"", "exchange: it has a control character"),
            ("routing_key = \"{end}\"", "routing_key: its places are"),
            ("routing_key = \"k\\t\"", "routing_key: it has a control character"),
            ("queue = \"q\"", "unknown field `queue`"),
        ];
        assert_refused(BLOCK, &cases, read);
    }
}
