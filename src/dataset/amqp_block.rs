//! Reads the `[[amqp]]` blocks of the operator's file.

use crate::broker::{Broker, Intake, NAME_BYTES, Publication, RoutingKey};
use crate::dataset::block::{Block, File, Names};
use crate::dataset::listener::{Known, listener};

/// Reads all brokers. `names` are those of the receivers so far.
pub(super) fn read(file: &mut File<'_>, names: &mut Names, known: &Known<'_>) -> Vec<Broker> {
    let mut brokers = Vec::<Broker>::new();
    file.each_block("amqp", names, |block| {
        let Some(broker) = broker(block, known) else { return };
        for other in brokers.iter().filter(|other| other.url_env == broker.url_env) {
            if let Some((member, why)) = broker.clash(other) {
                block.wrong(member, why);
            }
        }
        brokers.push(broker);
    });
    brokers
}

/// Returns the broker also if a name in it is refused, so that a clash with it is found.
fn broker(block: &mut Block<'_, '_>, known: &Known<'_>) -> Option<Broker> {
    if !cfg!(feature = "amqp") {
        block.refuse("this build has no AMQP: build it with `cargo build --release --features full`");
    }
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
    let routing_key = block.or_default("routing_key", RoutingKey::default(), RoutingKey::new);
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
    let (datasets, consumers) = (listener.datasets.clone(), listener.consumers.clone());
    Some(Broker {
        name: block.name.clone(),
        url_env: url_env?,
        intake: queue.zip(dead_letter_exchange).map(|(queue, dead_letter_exchange)| Intake {
            queue,
            dead_letter_exchange,
            datasets,
            consumers,
        }),
        publication: exchange.zip(routing_key).map(|(exchange, routing_key)| Publication {
            listener,
            exchange,
            routing_key,
        }),
    })
}

/// Reads the name of an exchange or a queue. The default exchange, whose name is empty, is refused: it would bring a
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

#[cfg(feature = "amqp")]
#[cfg(test)]
mod tests {
    use crate::dataset::assert_lines;
    use crate::dataset::catalog::Catalog;
    use crate::job::Status;

    const ORDERS: &str = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\n";

    #[test]
    fn everything_may_be_said() {
        let catalog = Catalog::from_toml(&format!(
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
            name = \"told\"
            url_env = \"_R\"
            exchange = \"amq.topic\"
            "
        ))
        .unwrap();
        let [rabbit, told] = catalog.brokers() else { panic!("two") };
        let (publication, intake) = (rabbit.publication.as_ref().unwrap(), rabbit.intake.as_ref().unwrap());
        assert_eq!(publication.listener.events, [Status::Completed]);
        assert_eq!(publication.routing_key.of(Status::Completed, "orders", None), "cdc.orders.completed");
        assert_eq!((intake.queue.as_str(), intake.dead_letter_exchange.as_str()), ("requests", "refused"));
        assert_eq!(intake.datasets, publication.listener.datasets);
        assert_eq!(intake.consumers.as_ref().map(Vec::len), Some(1));
        let of_told = told.publication.as_ref().unwrap();
        assert_eq!(of_told.routing_key.of(Status::Failed, "orders", Some("a")), "failed.orders.a");
        assert!(told.intake.is_none() && of_told.listener.datasets.is_none());
        let names: Vec<_> = catalog.listeners().map(|listener| listener.name.as_str()).collect();
        assert_eq!(names, ["rabbit", "told"]);
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
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
        let found = Catalog::from_toml(&format!("{ORDERS}{text}")).unwrap_err().to_string();
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
    fn what_cannot_work_is_refused_before_it_is_tried() {
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
        let found = Catalog::from_toml_beside(&format!("{ORDERS}{text}"), is_setting).unwrap_err().to_string();
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
