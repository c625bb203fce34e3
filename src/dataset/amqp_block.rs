//! An `[[amqp]]` of the operator's file, as it is read.

use serde::Deserialize;
use toml::Spanned;

use crate::broker::{Broker, Intake, NAME_BYTES, Publication, RoutingKey};
use crate::dataset::listener_block::{self, Known, List, Mistakes, Wrong};
use crate::dataset::name::is_name;
use crate::event::Listener;

/// The members, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AmqpBlock {
    name: Spanned<String>,
    url_env: Spanned<String>,
    exchange: Option<Spanned<String>>,
    routing_key: Option<Spanned<String>>,
    events: Option<List>,
    queue: Option<Spanned<String>>,
    dead_letter_exchange: Option<Spanned<String>>,
    datasets: Option<List>,
    consumers: Option<List>,
}

/// The brokers of a file, and all that is wrong with them. `is_taken` says whether another kind of receiver has a name.
pub(super) fn read(
    blocks: Vec<Spanned<AmqpBlock>>,
    known: &Known<'_>,
    is_taken: impl Fn(&str) -> bool,
) -> (Vec<Broker>, Mistakes) {
    let (mut brokers, mut mistakes) = (Vec::<Broker>::new(), Vec::new());
    for block in blocks {
        let (at, block) = (block.span().start, block.into_inner());
        let name = block.name.as_ref();
        if is_taken(name) {
            mistakes.push((at, format!("amqp {name}: there is a webhook of this name already")));
        } else if brokers.iter().any(|other| other.name == *name) {
            mistakes.push((at, format!("amqp {name}: there is an amqp of this name already")));
        } else if !cfg!(feature = "amqp") {
            mistakes.push((at, format!("amqp {name}: this build of cdc-export is without its feature `amqp`")));
        } else {
            let places = block.places();
            let broker = block.read(at, known, &mut mistakes);
            for other in brokers.iter().filter(|other| other.url_env == broker.url_env) {
                if let Some((member, why)) = broker.clash(other) {
                    let at = places.iter().find_map(|(name, at)| at.filter(|_| *name == member)).unwrap_or(at);
                    mistakes.push((at, format!("amqp {}: {member}: {why}", broker.name)));
                }
            }
            brokers.push(broker);
        }
    }
    (brokers, mistakes)
}

impl AmqpBlock {
    /// Where the members are that another block's may be in the way of.
    fn places(&self) -> [(&'static str, Option<usize>); 3] {
        let at = |member: &Option<Spanned<String>>| member.as_ref().map(|it| it.span().start);
        [
            ("exchange", at(&self.exchange)),
            ("queue", at(&self.queue)),
            ("dead_letter_exchange", at(&self.dead_letter_exchange)),
        ]
    }

    fn read(self, at: usize, known: &Known<'_>, mistakes: &mut Mistakes) -> Broker {
        let name = self.name.as_ref().clone();
        let mut wrong = |at: usize, member: &str, why: &str| {
            mistakes.push((at, format!("amqp {name}: {member}: {why}")));
        };
        if !is_name(&name) {
            let why = "1 to 63 characters of a-z 0-9 _ -, beginning with a letter, are expected";
            wrong(self.name.span().start, "name", why);
        }
        let is_no = "the address, which has a password";
        listener_block::check_variable("url_env", &self.url_env, is_no, known, &mut wrong);
        if self.exchange.is_none() && self.queue.is_none() {
            let why = "events go to an exchange, requests come from a queue: name one of them, or both";
            wrong(at, "exchange", why);
        }
        let events = listener_block::events(self.events.as_ref(), &mut wrong);
        let datasets = listener_block::datasets(self.datasets, known, &mut wrong);
        let consumers = listener_block::consumers(self.consumers.as_ref(), &mut wrong);
        if let Some(list) = self.events.as_ref().filter(|_| self.exchange.is_none()) {
            wrong(list.span().start, "events", "it goes with `exchange`");
        }
        let routing_key = match &self.routing_key {
            None => RoutingKey::default(),
            Some(key) => {
                if self.exchange.is_none() {
                    wrong(key.span().start, "routing_key", "it goes with `exchange`");
                }
                RoutingKey::new(key.as_ref()).unwrap_or_else(|why| {
                    wrong(key.span().start, "routing_key", &why);
                    RoutingKey::default()
                })
            }
        };
        if let (Some(exchange), Some(dead)) = (&self.exchange, &self.dead_letter_exchange)
            && exchange.as_ref() == dead.as_ref()
        {
            let why = "it is `exchange`: whoever hears of events would get the refused requests, too";
            wrong(dead.span().start, "dead_letter_exchange", why);
        }
        let publication = self.exchange.map(|exchange| Publication {
            listener: Listener { name: name.clone(), events, datasets: datasets.clone(), consumers: consumers.clone() },
            exchange: checked("exchange", exchange, &mut wrong),
            routing_key,
        });
        let intake = match (self.queue, self.dead_letter_exchange) {
            (None, None) => None,
            (None, Some(dead)) => {
                wrong(dead.span().start, "dead_letter_exchange", "it goes with `queue`");
                None
            }
            (Some(queue), None) => {
                let why = "`dead_letter_exchange` has to say where a request goes that is refused";
                wrong(queue.span().start, "queue", why);
                None
            }
            (Some(queue), Some(dead)) => Some(Intake {
                queue: checked("queue", queue, &mut wrong),
                dead_letter_exchange: checked("dead_letter_exchange", dead, &mut wrong),
                datasets,
                consumers,
            }),
        };
        Broker { name, url_env: self.url_env.into_inner(), publication, intake }
    }
}

/// A name of the broker's. The default exchange, whose name is empty, would bring a refused request back to its queue.
fn checked(member: &str, name: Spanned<String>, wrong: Wrong<'_>) -> String {
    if !(1..=NAME_BYTES).contains(&name.as_ref().len()) {
        wrong(name.span().start, member, &format!("a name of 1 to {NAME_BYTES} bytes is expected"));
    }
    if name.as_ref().contains(char::is_control) {
        wrong(name.span().start, member, "it has a control character");
    }
    name.into_inner()
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
