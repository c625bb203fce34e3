//! The catalog: every dataset there is, as the operator's TOML file says, or the one of the demo.
//!
//! Reads a text, not a file. What only a look at the table can tell is found out by `source`, as [`Fault`]s too.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_path_to_error::Segment;
use toml::Spanned;

use crate::broker::Broker;
use crate::dataset::amqp_block::{self, AmqpBlock};
use crate::dataset::dataset_block::{DatasetBlock, Lines};
use crate::dataset::fault::{Fault, Faults, SeveralDatasets, UnknownDataset};
use crate::dataset::listener_block::Known;
use crate::dataset::name::hint;
use crate::dataset::schedule_block::{self, ScheduleBlock};
use crate::dataset::webhook_block::{self, WebhookBlock};
use crate::dataset::{Dataset, USERS};
use crate::event::{Listener, Webhook};
use crate::schedule::Schedule;

/// Everything that is wrong with a catalog: a line each, with its place in the file.
#[derive(Debug)]
pub struct Mistakes(Vec<(Option<usize>, String)>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (line, why)) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            match line {
                Some(line) => write!(f, "{end}line {line}: {why}")?,
                None => write!(f, "{end}{why}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Every dataset there is, and what the operator's file has beside them.
#[derive(Clone, Debug)]
pub struct Catalog {
    datasets: Vec<Arc<Dataset>>,
    lines: Lines,
    webhooks: Vec<Webhook>,
    brokers: Vec<Broker>,
    schedules: Vec<Arc<Schedule>>,
}

impl Default for Catalog {
    /// The demo's.
    fn default() -> Catalog {
        Catalog { datasets: vec![Arc::new(Dataset::users())], ..Catalog::empty() }
    }
}

impl Catalog {
    fn empty() -> Catalog {
        Catalog {
            datasets: Vec::new(),
            lines: Lines::default(),
            webhooks: Vec::new(),
            brokers: Vec::new(),
            schedules: Vec::new(),
        }
    }

    /// The catalog that a TOML text describes.
    ///
    /// # Errors
    /// With all that is wrong with it, as far as the text alone tells.
    pub fn from_toml(text: &str) -> Result<Catalog, Mistakes> {
        Catalog::from_toml_beside(text, |_| false)
    }

    /// The catalog that a TOML text describes, beside the service's own variables: no secret may be in one of these.
    ///
    /// # Errors
    /// With all that is wrong with it, as far as the text alone tells.
    pub fn from_toml_beside(text: &str, is_setting: impl Fn(&str) -> bool) -> Result<Catalog, Mistakes> {
        let line = |at: usize| 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        let file = File::read(text)
            .map_err(|(error, why)| Mistakes(vec![(error.span().map(|span| line(span.start)), why)]))?;
        let mut catalog = Catalog::empty();
        let mut mistakes = Vec::new();
        for block in file.dataset {
            let mut faults = Vec::new();
            catalog.lines.note(&block, line);
            let at = line(block.span().start);
            let dataset = block.into_inner().read(&mut faults);
            if catalog.get(&dataset.name).is_some() {
                mistakes.push((Some(at), format!("{}: there is a dataset of this name already", dataset.name)));
                continue;
            }
            mistakes.extend(catalog.located(faults));
            catalog.datasets.push(Arc::new(dataset));
        }
        if catalog.datasets.is_empty() && mistakes.is_empty() {
            let why = "there is no [[dataset]] in it: `cdc-export datasets add TABLE` appends one";
            mistakes.push((None, why.to_owned()));
        }
        let dataset = |name: &str| catalog.named(name).map(drop);
        let known = Known { dataset: &dataset, is_setting: &is_setting };
        let (webhooks, wrong) = webhook_block::read(file.webhook, &known);
        mistakes.extend(wrong.into_iter().map(|(at, why)| (Some(line(at)), why)));
        let is_webhook = |name: &str| webhooks.iter().any(|webhook| webhook.listener.name == name);
        let (brokers, wrong) = amqp_block::read(file.amqp, &known, is_webhook);
        mistakes.extend(wrong.into_iter().map(|(at, why)| (Some(line(at)), why)));
        let (schedules, wrong) = schedule_block::read(file.schedule, dataset);
        mistakes.extend(wrong.into_iter().map(|(at, why)| (Some(line(at)), why)));
        let catalog = Catalog { webhooks, brokers, schedules, ..catalog };
        if mistakes.is_empty() { Ok(catalog) } else { Err(Mistakes(mistakes)) }
    }

    /// The dataset of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The dataset that a call means which names this one.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(&self, name: &str) -> Result<&Arc<Dataset>, UnknownDataset> {
        let near = || hint(name, self.datasets.iter().map(|dataset| dataset.name.as_str()));
        self.get(name).ok_or_else(|| UnknownDataset { near: near(), names: self.names() })
    }

    /// The dataset that a call means which names none: `users`, or the only one there is.
    ///
    /// # Errors
    /// If there are several, and none is `users`.
    pub fn implied(&self) -> Result<&Arc<Dataset>, SeveralDatasets> {
        match (self.get(USERS), self.datasets.as_slice()) {
            (Some(dataset), _) | (None, [dataset]) => Ok(dataset),
            (None, _) => Err(SeveralDatasets(self.names())),
        }
    }

    /// Each, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets.iter()
    }

    /// Who is told of the ends of exports over HTTP, in the order of the file.
    pub fn webhooks(&self) -> &[Webhook] {
        &self.webhooks
    }

    /// The message brokers, in the order of the file.
    pub fn brokers(&self) -> &[Broker] {
        &self.brokers
    }

    /// Who is told of the ends of exports, however.
    pub fn listeners(&self) -> impl Iterator<Item = &Listener> {
        let published = self.brokers.iter().filter_map(|broker| broker.publication.as_ref());
        self.webhooks.iter().map(|webhook| &webhook.listener).chain(published.map(|it| &it.listener))
    }

    /// The schedules, in the order of the file.
    pub fn schedules(&self) -> &[Arc<Schedule>] {
        &self.schedules
    }

    /// The names, for a message. The demo's has no line in a file.
    pub fn names(&self) -> String {
        let names = self.datasets.iter().map(|dataset| dataset.name.as_str()).collect::<Vec<_>>().join(", ");
        if self.lines.is_empty() { format!("{names} (the demo's, since DATASETS is unset)") } else { names }
    }

    /// What was found wrong when the catalog was held against the tables, with its places in the file.
    pub fn mistakes(&self, faults: Faults) -> Mistakes {
        Mistakes(self.located(faults.0))
    }

    fn located(&self, faults: Vec<Fault>) -> Vec<(Option<usize>, String)> {
        faults.into_iter().map(|fault| (self.lines.of(&fault), fault.to_string())).collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    dataset: Vec<Spanned<DatasetBlock>>,
    #[serde(default)]
    webhook: Vec<Spanned<WebhookBlock>>,
    #[serde(default)]
    amqp: Vec<Spanned<AmqpBlock>>,
    #[serde(default)]
    schedule: Vec<Spanned<ScheduleBlock>>,
}

impl File {
    /// Reads it, or tells what is wrong, with the member that it is about.
    fn read(text: &str) -> Result<File, (toml::de::Error, String)> {
        let told = |error: &toml::de::Error| error.message().replace('\n', " ");
        let read = toml::Deserializer::parse(text).map_err(|error| (error.clone(), told(&error)))?;
        serde_path_to_error::deserialize(read).map_err(|error| {
            let members = error.path().iter().filter_map(|segment| match segment {
                // Not those by which a value tells its place.
                Segment::Map { key } if !key.starts_with('$') => Some(key.as_str()),
                _ => None,
            });
            let member = members.collect::<Vec<_>>().join(".");
            let error = error.into_inner();
            let why = match told(&error) {
                why if why.contains("expected a sequence") && !member.contains('.') => {
                    format!("[{member}] is one of several: write [[{member}]]")
                }
                why if member.is_empty() || why.starts_with("unknown field") => why,
                why => format!("{member}: {why}"),
            };
            (error, why)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::dataset::assert_lines;
    use crate::dataset::{Capture, Columns, Operation, Table};

    fn wrong(text: &str) -> String {
        Catalog::from_toml(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_of_another_type_is_told_with_its_member() {
        let dataset = "[[dataset]]\nname = \"a\"\ntable = \"a\"\n";
        for (text, expected) in [
            ("[[schedule]]\nname = \"a\"\nevery = 10", "line 6: schedule.every: invalid type: integer `10`, expected"),
            ("[[schedule]]\nheal = \"yes\"", "line 5: schedule.heal: invalid type: string \"yes\", expected a boolean"),
            ("[webhook]\nname = \"a\"", "line 4: [webhook] is one of several: write [[webhook]]"),
            ("[[webhook]]\nname = \"a\"", "line 4: webhook: missing field `url`"),
            ("[[webhook]]\nevents = \"a\"", "line 5: webhook.events: invalid type: string \"a\", expected a sequence"),
            ("[[amqp]]\nevents = [1]", "line 5: amqp.events: invalid type: integer `1`, expected a string"),
            (
                "[[schedules]]\nname = \"a\"",
                "line 4: unknown field `schedules`, expected one of `dataset`, `webhook`, `amqp`",
            ),
            ("x = [", "line 4: "),
        ] {
            let found = Catalog::from_toml(&format!("{dataset}{text}")).unwrap_err().to_string();
            assert!(found.starts_with(expected), "{found}");
        }
    }

    #[test]
    fn everything_may_be_said() {
        let catalog = Catalog::from_toml(
            r#"
            [[dataset]]
            name = "orders"
            table = "sales.orders"
            key = ["region", "id"]
            columns = ["region", "id", "total"]
            updated_at = "modified_at"
            created_at = "made_at"
            deleted = "is_deleted"
            filter = "tenant_id = 7"
            capture = "timestamp"
            overlap = "90s"
            operation = "timestamps"

            [[dataset]]
            name = "lines"
            table = '"Order.Lines"'
            exclude = ["note"]
            "#,
        )
        .unwrap();
        let orders = catalog.get("orders").unwrap();
        assert_eq!((orders.table.to_string(), orders.key.as_ref().unwrap().len()), ("sales.orders".to_owned(), 2));
        assert_eq!(orders.capture, Capture::Timestamp { overlap: Duration::from_secs(90) });
        let lines = catalog.get("lines").unwrap();
        assert_eq!(lines.table, Table { schema: None, name: "Order.Lines".to_owned() });
        assert_eq!(lines.columns, Columns::AllBut(vec!["note".to_owned()]));
        assert_eq!((orders.operation, lines.operation), (Operation::Timestamps, Operation::Log));
        assert_eq!((lines.capture, catalog.names()), (Capture::Triggers, "orders, lines".to_owned()));
        assert!(catalog.get("users").is_none(), "only what the file says");
    }

    #[test]
    fn each_mistake_is_told_with_its_line() {
        let text = "[[dataset]]
name = \"Orders\"
table = \"a.b.c\"
columns = [\"id\", \"id\"]
exclude = []
created_at = \"made_at\"
capture = \"timestamp\"
overlap = \"soon\"
[[dataset]]
name = \"a\"
table = \"a\"
capture = \"wal\"
[[dataset]]
name = \"a\"
table = \"b\"
overlap = \"5m\"
";
        let expected = [
            "line 2: Orders: name: 1 to 63 characters",
            "line 3: Orders: table: a table's name",
            "line 4: Orders: columns: a column is named twice",
            "line 5: Orders: exclude: an empty list",
            "line 5: Orders: exclude: columns says already",
            "line 6: Orders: created_at: it is compared with updated_at",
            "line 8: Orders: overlap: a time such as 5m",
            "line 12: a: capture: `wal` is neither",
            "line 13: a: there is a dataset of this name already",
        ];
        let found = wrong(text);
        assert_lines(&found, &expected);
    }

    #[test]
    fn the_operation_of_users_is_told_by_its_times() {
        let users = |rest: &str| {
            let text = format!(
                "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\ndeleted = \"is_deleted\"\n{rest}"
            );
            Catalog::from_toml(&text).unwrap().get("users").unwrap().operation
        };
        assert_eq!(users(""), Operation::Log);
        assert_eq!(users("created_at = \"created_at\""), Operation::Timestamps);
        assert_eq!(users("created_at = \"created_at\"\noperation = \"log\""), Operation::Log);
        assert_eq!(users("created_at = \"made_at\""), Operation::Log);
        assert_eq!(Dataset::users().operation, Operation::Timestamps);
    }

    #[test]
    fn an_operation_that_cannot_be_is_told() {
        let text = |rest: &str| format!("[[dataset]]\nname = \"a\"\ntable = \"a\"\n{rest}");
        assert_eq!(wrong(&text("operation = \"wal\"")), "line 4: a: operation: `wal` is neither log nor timestamps");
        let why = wrong(&text("updated_at = \"at\"\noperation = \"timestamps\""));
        assert_eq!(why, "line 5: a: operation: timestamps compares created_at with updated_at: name both");
    }

    #[test]
    fn what_is_no_catalog_is_told_with_its_line() {
        assert!(wrong("[[dataset]]\nname = \"a\"\ntabel = \"a\"").starts_with("line 3: unknown field `tabel`"));
        assert!(wrong("[[dataset]]\nname = \"a\"\n").contains("missing field `table`"));
        assert!(wrong("[[dataset]]\nname = a").starts_with("line 2: "));
        assert!(wrong("").starts_with("there is no [[dataset]] in it: "));
    }
}
