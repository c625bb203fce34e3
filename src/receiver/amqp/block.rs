//! Reads an `[[amqp]]` block of the operator's file.

use crate::dataset::block::Block;
use crate::dataset::listener::{Known, listener};
use crate::receiver::amqp::broker::{Broker, NAME_BYTES, RoutingKey};

pub(super) fn broker(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<Broker> {
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
    use crate::dataset::assert_lines;
    use crate::dataset::block::{Names, OperatorFile};
    use crate::dataset::catalog::Catalog;
    use crate::event::EventType;
    use crate::job::Status;
    use crate::receiver::Receivers;

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
            datasets = [\"orders\"]
            consumers = [\"search\"]

            [[amqp]]
            name = \"events\"
            url_env = \"_R\"
            exchange = \"amq.topic\"
            "
        );
        let (mut brokers, mut names) = (Vec::<Broker>::new(), Names::default());
        let read = |file: &mut OperatorFile<'_>, known: &Known<'_>| {
            file.each_block("amqp", &mut names, |block| brokers.extend(broker(block, known)));
            Vec::new()
        };
        Catalog::with_receivers(&text, &["amqp"], |_| false, read).unwrap();
        let [rabbit, events] = brokers.as_slice() else { panic!("two") };
        assert_eq!(rabbit.listener.events, [EventType::named("export.completed").unwrap()]);
        assert_eq!(rabbit.routing_key.for_event(Status::Completed, "orders", None), "cdc.orders.completed");
        assert_eq!(rabbit.listener.datasets, Some(vec!["orders".to_owned()]));
        assert_eq!(rabbit.listener.consumers.as_ref().map(Vec::len), Some(1));
        assert_eq!(events.routing_key.for_event(Status::Failed, "orders", Some("a")), "failed.orders.a");
        assert!(events.listener.datasets.is_none());
        assert_eq!([rabbit, events].map(|broker| broker.listener.name.as_str()), ["rabbit", "events"]);
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
exchange = \"e\"
queue = \"q\"
routing_key = \"{end}\"
[[amqp]]
name = \"c\"
url_env = \"R\"
exchange = \"\"
[[amqp]]
name = \"c\"
url_env = \"R\"
exchange = \"e\"
";
        let found = Receivers::read(&format!("{ORDERS}{text}"), |_| false).unwrap_err().to_string();
        let expected = [
            "line 8: amqp hook: there is a webhook of this name already",
            "line 14: amqp a: url_env: the name of a variable",
            "line 12: amqp: missing field `exchange`",
            "line 19: unknown field `queue`, expected one of `name`, `url_env`, `exchange`, `events`, ",
            "line 20: amqp b: routing_key: its places are",
            "line 24: amqp c: exchange: a name of 1 to 255",
            "line 25: amqp c: there is an amqp of this name already",
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
name = \"d\"
url_env = \"OTHER\"
exchange = \"e\\n\"
routing_key = \"k\\t\"
[[webhook]]
name = \"hook\"
url = \"https://a.example/\"
secret_env = \"DATABASE_URL\"
";
        let is_setting = |name: &str| name == "DATABASE_URL";
        let found = Receivers::read(&format!("{ORDERS}{text}"), is_setting).unwrap_err().to_string();
        let expected = [
            "line 16: webhook hook: secret_env: DATABASE_URL is a setting of the service",
            "line 6: amqp a: url_env: DATABASE_URL is a setting of the service",
            "line 11: amqp d: exchange: it has a control character",
            "line 12: amqp d: routing_key: it has a control character",
        ];
        assert_lines(&found, &expected);
    }
}
