//! The catalog: every dataset there is, as the operator's TOML file says, or the one of the demo.
//!
//! Reads a text, not a file. What only a look at the table can tell is found out by `source`, as [`Fault`]s too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::dataset::fault::{Fault, Faults, SeveralDatasets, UnknownDataset};
use crate::dataset::name::{hint, is_name};
use crate::dataset::schedule_block::{self, ScheduleBlock};
use crate::dataset::table_name::NotATable;
use crate::dataset::{Capture, Columns, Dataset, Operation, Table, USERS};
use crate::job::FILE_BYTES;
use crate::schedule::Schedule;

/// How long a transaction may take where changes are found by their times, unless the file says.
const OVERLAP: Duration = Duration::from_secs(5 * 60);

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
    schedules: Vec<Arc<Schedule>>,
}

impl Default for Catalog {
    /// The demo's.
    fn default() -> Catalog {
        Catalog { datasets: vec![Arc::new(Dataset::users())], lines: Lines::default(), schedules: Vec::new() }
    }
}

impl Catalog {
    /// The catalog that a TOML text describes.
    ///
    /// # Errors
    /// With all that is wrong with it, as far as the text alone tells.
    pub fn from_toml(text: &str) -> Result<Catalog, Mistakes> {
        let line = |at: usize| 1 + text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        let file: File = toml::from_str(text)
            .map_err(|e| Mistakes(vec![(e.span().map(|span| line(span.start)), e.message().replace('\n', " "))]))?;
        let mut catalog = Catalog { datasets: Vec::new(), lines: Lines::default(), schedules: Vec::new() };
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
            mistakes.push((None, "there is no [[dataset]] in it".to_owned()));
        }
        let (schedules, wrong) = schedule_block::read(file.schedule, |name| catalog.named(name).map(drop));
        catalog.schedules = schedules;
        mistakes.extend(wrong.into_iter().map(|(at, why)| (Some(line(at)), why)));
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

    /// The schedules, in the order of the file.
    pub fn schedules(&self) -> &[Arc<Schedule>] {
        &self.schedules
    }

    /// The names, for a message. The demo's has no line in a file.
    pub fn names(&self) -> String {
        let names = self.datasets.iter().map(|dataset| dataset.name.as_str()).collect::<Vec<_>>().join(", ");
        if self.lines.0.is_empty() { format!("{names} (the demo's, since DATASETS is unset)") } else { names }
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
    dataset: Vec<Spanned<Block>>,
    #[serde(default)]
    schedule: Vec<Spanned<ScheduleBlock>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    name: Spanned<String>,
    table: Spanned<String>,
    key: Option<Spanned<Vec<Spanned<String>>>>,
    columns: Option<Spanned<Vec<Spanned<String>>>>,
    exclude: Option<Spanned<Vec<Spanned<String>>>>,
    updated_at: Option<Spanned<String>>,
    created_at: Option<Spanned<String>>,
    deleted: Option<Spanned<String>>,
    filter: Option<Spanned<String>>,
    capture: Option<Spanned<String>>,
    overlap: Option<Spanned<String>>,
    operation: Option<Spanned<String>>,
    numeric: Option<Spanned<String>>,
    uuid: Option<Spanned<String>>,
    max_file_bytes: Option<Spanned<u64>>,
}

impl Block {
    fn read(self, faults: &mut Vec<Fault>) -> Dataset {
        let name = self.name.into_inner();
        let mut wrong = |member, why: String| faults.push(Fault { dataset: name.clone(), member, item: None, why });
        if !is_name(&name) {
            wrong("name", "1 to 63 characters of a-z 0-9 _ -, beginning with a letter, are expected".to_owned());
        }
        let table = self.table.as_ref().parse().unwrap_or_else(|why: NotATable| {
            wrong("table", why.to_string());
            Table { schema: None, name: String::new() }
        });
        for (member, list) in [("key", &self.key), ("columns", &self.columns), ("exclude", &self.exclude)] {
            let names: Vec<&str> =
                list.iter().flat_map(|list| list.as_ref()).map(|name| name.as_ref().as_str()).collect();
            if list.is_some() && names.is_empty() {
                wrong(member, "an empty list: leave it out".to_owned());
            }
            if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
                wrong(member, "a column is named twice".to_owned());
            }
        }
        if self.columns.is_some() && self.exclude.is_some() {
            wrong("exclude", "columns says already which there are".to_owned());
        }
        let columns = match (self.columns, self.exclude) {
            (Some(only), _) => Columns::Only(names(only)),
            (None, Some(but)) => Columns::AllBut(names(but)),
            (None, None) => Columns::All,
        };
        if self.created_at.is_some() && self.updated_at.is_none() {
            wrong("created_at", "it is compared with updated_at, which is not given".to_owned());
        }
        let overlap = self.overlap.as_ref().map(|text| humantime::parse_duration(text.as_ref()));
        let capture = match (self.capture.as_ref().map(|word| word.as_ref().as_str()), &overlap) {
            (None | Some("triggers"), None) => Capture::Triggers,
            (None | Some("triggers"), Some(_)) => {
                wrong("overlap", "only with capture = \"timestamp\"".to_owned());
                Capture::Triggers
            }
            (Some("timestamp"), None) => Capture::Timestamp { overlap: OVERLAP },
            (Some("timestamp"), Some(Ok(overlap))) => Capture::Timestamp { overlap: *overlap },
            (Some("timestamp"), Some(Err(_))) => {
                wrong("overlap", "a time such as 5m or 1h is expected".to_owned());
                Capture::Triggers
            }
            (Some(other), _) => {
                wrong("capture", format!("`{other}` is neither triggers nor timestamp"));
                Capture::Triggers
            }
        };
        if capture != Capture::Triggers && self.updated_at.is_none() {
            wrong("capture", "by timestamp there is nothing to find changes by without updated_at".to_owned());
        }
        let has_both_times = self.updated_at.is_some() && self.created_at.is_some();
        let operation = self.operation.as_ref().map(|word| word.as_ref().as_str());
        let operation = match operation {
            None | Some("log") => Operation::Log,
            Some("timestamps") => {
                if !has_both_times {
                    wrong("operation", "timestamps compares created_at with updated_at: name both".to_owned());
                }
                Operation::Timestamps
            }
            Some(other) => {
                wrong("operation", format!("`{other}` is neither log nor timestamps"));
                Operation::Log
            }
        };
        let says_operation = self.operation.is_some();
        let mut is_second =
            |member: &'static str, said: &Option<Spanned<String>>, [first, second]: [&str; 2]| match said
                .as_ref()
                .map(|word| word.as_ref().as_str())
            {
                Some(word) if word == second => true,
                Some(word) if word != first => {
                    wrong(member, format!("`{word}` is neither {first} nor {second}"));
                    false
                }
                _ => false,
            };
        let decimals = is_second("numeric", &self.numeric, ["text", "decimal"]);
        let uuid_texts = is_second("uuid", &self.uuid, ["uuid", "text"]);
        let max_file_bytes = self.max_file_bytes.map(Spanned::into_inner);
        if max_file_bytes.is_some_and(|bytes| !FILE_BYTES.contains(&bytes)) {
            wrong(
                "max_file_bytes",
                format!("a number from {} to {} is expected", FILE_BYTES.start(), FILE_BYTES.end()),
            );
        }
        let [updated_at, created_at, deleted, filter] =
            [self.updated_at, self.created_at, self.deleted, self.filter].map(|member| member.map(Spanned::into_inner));
        let key = self.key.map(names);
        let dataset = Dataset {
            name,
            table,
            key,
            columns,
            updated_at,
            created_at,
            deleted,
            filter,
            capture,
            operation,
            decimals,
            uuid_texts,
            max_file_bytes,
        };
        if says_operation || !dataset.is_like_users() {
            dataset
        } else {
            Dataset { operation: Operation::Timestamps, ..dataset }
        }
    }
}

fn names(list: Spanned<Vec<Spanned<String>>>) -> Vec<String> {
    list.into_inner().into_iter().map(Spanned::into_inner).collect()
}

/// Where in the file everything is.
#[derive(Clone, Debug, Default)]
struct Lines(BTreeMap<(String, &'static str, Option<String>), usize>);

impl Lines {
    fn note(&mut self, block: &Spanned<Block>, line: impl Fn(usize) -> usize) {
        let b = block.as_ref();
        let mut put = |member, item: Option<&str>, at: usize| {
            self.0.entry((b.name.as_ref().clone(), member, item.map(str::to_owned))).or_insert(line(at));
        };
        put("dataset", None, block.span().start);
        put("name", None, b.name.span().start);
        put("table", None, b.table.span().start);
        let texts = [
            ("updated_at", &b.updated_at),
            ("created_at", &b.created_at),
            ("deleted", &b.deleted),
            ("filter", &b.filter),
            ("capture", &b.capture),
            ("overlap", &b.overlap),
            ("operation", &b.operation),
            ("numeric", &b.numeric),
            ("uuid", &b.uuid),
        ];
        for (member, text) in texts {
            text.iter().for_each(|text| put(member, None, text.span().start));
        }
        b.max_file_bytes.iter().for_each(|bytes| put("max_file_bytes", None, bytes.span().start));
        for (member, list) in [("key", &b.key), ("columns", &b.columns), ("exclude", &b.exclude)] {
            let Some(list) = list else { continue };
            put(member, None, list.span().start);
            list.as_ref().iter().for_each(|item| put(member, Some(item.as_ref()), item.span().start));
        }
    }

    /// The line of a fault: of the entry, else of the member, else of the dataset.
    fn of(&self, fault: &Fault) -> Option<usize> {
        let at = |member, item| self.0.get(&(fault.dataset.clone(), member, item)).copied();
        let item = fault.item.clone().and_then(|item| at(fault.member, Some(item)));
        item.or_else(|| at(fault.member, None)).or_else(|| at("dataset", None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        Catalog::from_toml(text).unwrap_err().to_string()
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
        assert_eq!(found.lines().count(), expected.len(), "{found}");
        for (line, expected) in found.lines().zip(expected) {
            assert!(line.starts_with(expected), "{line}");
        }
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
        assert_eq!(wrong(""), "there is no [[dataset]] in it");
    }
}
