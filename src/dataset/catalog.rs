//! The catalog: the datasets, schedules and receivers of the operator's TOML file, or the demo's dataset.
//!
//! Reads a text, not a file. Knows no kind of receiver: `receiver` reads their blocks. Knows no table: `source`
//! compares the datasets with their tables and reports [`Fault`]s.

use std::sync::Arc;

use crate::dataset::block::{Names, OperatorFile};
use crate::dataset::fault::{Fault, Faults, Mistake, Mistakes, SeveralDatasets, UnknownDataset};
use crate::dataset::listener::Known;
use crate::dataset::name::hint;
use crate::dataset::{Dataset, USERS, dataset_block, schedule_block};
use crate::event::Listener;
use crate::job::Bounds;
use crate::schedule::Schedule;

/// All datasets, and the other blocks of the operator's file.
#[derive(Clone, Debug)]
pub struct Catalog {
    datasets: Vec<Arc<Dataset>>,
    listeners: Vec<Listener>,
    schedules: Vec<Arc<Schedule>>,
    /// The file's text, which says in which line a fault is. `None`: this is the demo's catalog.
    text: Option<Arc<str>>,
}

impl Default for Catalog {
    /// The demo's catalog.
    fn default() -> Catalog {
        Catalog { datasets: vec![Arc::new(Dataset::users())], listeners: Vec::new(), schedules: Vec::new(), text: None }
    }
}

impl Catalog {
    /// Reads the catalog in a TOML text without receivers.
    ///
    /// # Errors
    /// With all faults of the text.
    pub fn from_toml(text: &str) -> Result<Catalog, Mistakes> {
        Catalog::with_receivers(text, &[], |_| false, |_, _| Vec::new())
    }

    /// Reads the catalog in a TOML text. `read_receivers` reads the blocks of these `kinds`.
    /// No secret may be in a variable for which `is_setting` returns true.
    ///
    /// # Errors
    /// With all faults of the text.
    pub fn with_receivers(
        text: &str,
        kinds: &[&'static str],
        is_setting: impl Fn(&str) -> bool,
        read_receivers: impl FnOnce(&mut OperatorFile<'_>, &Known<'_>) -> Vec<Listener>,
    ) -> Result<Catalog, Mistakes> {
        let mut file = OperatorFile::parse(text)?;
        file.refuse_other_kinds(&[&["dataset"], kinds, &["schedule"]].concat());
        let (mut dataset_names, mut schedule_names) = <(Names, Names)>::default();
        let datasets = dataset_block::read(&mut file, &mut dataset_names);
        if dataset_names.iter().next().is_none() {
            file.refuse_if_sound("there is no [[dataset]] in it: `cdc-export datasets add TABLE` appends one");
        }
        let known = Known { datasets: &dataset_names, is_setting: &is_setting };
        let catalog = Catalog {
            datasets,
            listeners: read_receivers(&mut file, &known),
            schedules: schedule_block::read(&mut file, &mut schedule_names, &known),
            text: Some(text.into()),
        };
        let mistakes = file.into_mistakes();
        if mistakes.is_empty() { Ok(catalog) } else { Err(Mistakes(mistakes)) }
    }

    /// The dataset of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The dataset of the name that a call says.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(&self, name: &str) -> Result<&Arc<Dataset>, UnknownDataset> {
        let near = || hint(name, self.datasets.iter().map(|dataset| dataset.name.as_str()));
        self.get(name).ok_or_else(|| UnknownDataset { near: near(), names: self.names() })
    }

    /// The dataset of a call that names none: `users`, or the only one.
    ///
    /// # Errors
    /// If there are several, and none is `users`.
    pub fn implied(&self) -> Result<&Arc<Dataset>, SeveralDatasets> {
        match (self.get(USERS), self.datasets.as_slice()) {
            (Some(dataset), _) | (None, [dataset]) => Ok(dataset),
            (None, _) => Err(SeveralDatasets(self.names())),
        }
    }

    /// The part of the catalog that a caller within these bounds may see: datasets and schedules.
    pub fn within(&self, bounds: &Bounds) -> Catalog {
        let mut part = self.clone();
        part.datasets.retain(|dataset| bounds.allow_dataset(&dataset.name));
        let is_allowed = |schedule: &Arc<Schedule>| {
            bounds.allow_consumer(Some(&schedule.consumer)) && bounds.allow_dataset(&schedule.dataset)
        };
        part.schedules.retain(is_allowed);
        part
    }

    /// All datasets, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets.iter()
    }

    /// The receivers of events, with the events that each of them gets.
    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The schedules, in the order of the file.
    pub fn schedules(&self) -> &[Arc<Schedule>] {
        &self.schedules
    }

    /// The names of all datasets, for a message.
    pub fn names(&self) -> String {
        let names = self.datasets.iter().map(|dataset| dataset.name.as_str()).collect::<Vec<_>>().join(", ");
        if self.text.is_some() { names } else { format!("{names} (the demo's, since DATASETS is unset)") }
    }

    /// The faults that a comparison with the tables found, with their lines in the file, in the order of the lines.
    pub fn mistakes(&self, faults: Faults) -> Mistakes {
        let file = self.text.as_deref().and_then(|text| OperatorFile::parse(text).ok());
        let located = |fault: &Fault| file.as_ref()?.located(fault);
        let mistake = |fault: &Fault| located(fault).unwrap_or_else(|| Mistake::without_line(fault));
        let mut mistakes: Vec<_> = faults.0.iter().map(mistake).collect();
        mistakes.sort_by_key(Mistake::line);
        Mistakes(mistakes)
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
}
