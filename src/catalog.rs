//! The catalog: the datasets, schedules and receivers of the operator's TOML file, or the demo's dataset.
//!
//! Reads a text, not a file. Knows no kind of receiver: `receiver` reads their blocks. Knows no table: `cdc_capture`
//! compares the datasets with their tables and reports [`Fault`]s.

pub mod block;
pub mod current;
mod dataset_block;
pub mod listener;
pub mod mistake;
pub mod pattern;
mod schedule_block;

use std::sync::Arc;
use std::time::Duration;

use crate::catalog::block::{Names, OperatorFile};
use crate::catalog::listener::KnownNames;
use crate::catalog::mistake::{Mistake, Mistakes, SeveralDatasets, UnknownDataset};
use crate::catalog::pattern::{LeftOut, Pattern, UsedNames};
use crate::event::Listener;
use crate::job::Bounds;
use crate::job::datasets::Omitted;
use crate::schedule::{Schedule, ScheduledDatasets};
use cdc_capture::Candidate;
use cdc_dataset::{Dataset, Description, Fault, Faults, MaskRule, USERS, hint};
use cdc_manifest::Lane;
use pg_rows::export_type::ExportType;
use pg_session::table_name::Table;

/// All datasets, and the other blocks of the operator's file.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The datasets of the file, and then those of its patterns.
    datasets: Vec<Arc<Dataset>>,
    names: Arc<[String]>,
    /// The number of datasets of the file.
    named: usize,
    patterns: Arc<[Pattern]>,
    left_out: Arc<[LeftOut]>,
    idle_patterns: Arc<[String]>,
    listeners: Vec<Listener>,
    schedules: Vec<Arc<Schedule>>,
    /// The file's text, which says in which line a fault is. `None`: this is the demo's catalog.
    text: Option<Arc<str>>,
}

impl Default for Catalog {
    fn default() -> Catalog {
        Catalog::of(vec![Arc::new(Dataset::users())])
    }
}

/// The most names of datasets in a message.
const MAX_LISTED: usize = 20;

impl Catalog {
    /// A catalog of these datasets, and of nothing else.
    fn of(datasets: Vec<Arc<Dataset>>) -> Catalog {
        Catalog {
            names: names_of(&datasets),
            named: datasets.len(),
            datasets,
            patterns: Arc::default(),
            left_out: Arc::default(),
            idle_patterns: Arc::default(),
            listeners: Vec::new(),
            schedules: Vec::new(),
            text: None,
        }
    }

    /// Reads the catalog in a TOML text without receivers.
    pub fn from_toml(text: &str) -> Result<Catalog, Mistakes> {
        Catalog::with_receivers(text, &[], |_| false, |_, _| Vec::new())
    }

    /// Reads the catalog in a TOML text. `read_receivers` reads the blocks of these `kinds`.
    /// No secret may be in a variable for which `is_setting` returns true.
    pub fn with_receivers(
        text: &str,
        kinds: &[&'static str],
        is_setting: impl Fn(&str) -> bool,
        read_receivers: impl FnOnce(&mut OperatorFile<'_>, &KnownNames<'_>) -> Vec<Listener>,
    ) -> Result<Catalog, Mistakes> {
        let mut file = OperatorFile::parse(text)?;
        if file.is_empty() {
            file.refuse_if_sound("there is no [[dataset]] in it: `cdc-export datasets add TABLE` appends one");
        }
        file.refuse_other_kinds(&[&["dataset", pattern::TABLES], kinds, &["schedule"]].concat());
        let (mut dataset_names, mut schedule_names) = <(Names, Names)>::default();
        let mut datasets = dataset_block::read(&mut file, &mut dataset_names);
        let has_patterns = file.has(pattern::TABLES);
        let patterns = pattern::read(&mut file);
        if !has_patterns && !file.has(block::DATASET) {
            let users = Dataset::users();
            dataset_names.add(&users.name, block::DATASET);
            datasets.push(Arc::new(users));
        }
        let known = KnownNames { datasets: &dataset_names, has_patterns, is_setting: &is_setting };
        let catalog = Catalog {
            patterns: patterns.into(),
            listeners: read_receivers(&mut file, &known),
            schedules: schedule_block::read(&mut file, &mut schedule_names, &known),
            text: Some(text.into()),
            ..Catalog::of(datasets)
        };
        let mistakes = file.into_mistakes();
        if mistakes.is_empty() { Ok(catalog) } else { Err(Mistakes(mistakes)) }
    }

    /// Returns true if the database decides which datasets there are, too.
    pub fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The catalog with a dataset for each of these relations that a pattern matches, in place of those of an earlier
    /// look. `used` has the names that must not pass to another table.
    pub fn expanded(&self, relations: &[Candidate], used: &UsedNames) -> Catalog {
        let named = &self.datasets[..self.named];
        let (of_patterns, left_out) = pattern::expand(&self.patterns, named, relations, used);
        let datasets = [named, &of_patterns].concat();
        let idle_patterns = pattern::idle(&self.patterns, relations);
        Catalog { names: names_of(&datasets), datasets, left_out: left_out.into(), idle_patterns, ..self.clone() }
    }

    pub fn of_patterns(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets[self.named..].iter()
    }

    /// The name and the table of each dataset, with the table's schema. Leaves out tables that are not among the
    /// relations.
    pub fn located(&self, relations: &[Candidate]) -> Vec<(&str, Table)> {
        let located = |dataset: &Dataset| match &dataset.table {
            Table { schema: None, name } => {
                let found = relations.iter().find(|relation| relation.is_visible && relation.name == *name)?;
                Some(Table { schema: Some(found.schema.clone()), name: name.clone() })
            }
            table => Some(table.clone()),
        };
        self.datasets.iter().filter_map(|dataset| Some((&*dataset.name, located(dataset)?))).collect()
    }

    pub fn deleted_columns(&self) -> Vec<&str> {
        self.patterns.iter().filter_map(|pattern| pattern.options.deleted.as_deref()).collect()
    }

    /// Returns the reason why a dataset that belonged to this table is not in the catalog any more.
    pub fn why_gone(&self, name: &str, table: Option<&Table>) -> String {
        let takes = |dataset: &&Arc<Dataset>| {
            let Table { schema, name } = &dataset.table;
            table.is_some_and(|table| *name == table.name && (schema.is_none() || *schema == table.schema))
        };
        let taker = self.datasets[..self.named].iter().find(takes);
        let left_out = || self.left_out.iter().find(|it| it.name == name).map(LeftOut::to_string);
        let by_block = taker.map(|it| format!("no [[dataset]] has its name, and `{}` has its table", it.name));
        let otherwise = || "no block and no pattern has its table, or the table is gone".to_owned();
        by_block.or_else(left_out).unwrap_or_else(otherwise)
    }

    pub fn with_listeners_of(self, other: &Catalog) -> Catalog {
        Catalog { listeners: other.listeners.clone(), ..self }
    }

    /// Returns true if another catalog has the same datasets, of the same file.
    pub fn has_same_datasets(&self, other: &Catalog) -> bool {
        self.datasets == other.datasets && self.left_out == other.left_out && self.text == other.text
    }

    /// The text of the file. `None`: this is the demo's catalog.
    pub fn text(&self) -> Option<&str> {
        self.text.as_deref()
    }

    pub fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    /// Returns the type of a dataset's export where this type is wanted, as [`Dataset::healed_type`] does.
    pub fn healed_type(&self, dataset: &str, wanted: ExportType, heals: bool) -> ExportType {
        self.get(dataset).map_or(wanted, |dataset| dataset.healed_type(wanted, heals))
    }

    /// Returns the names of the datasets that are ready for exports of this type. Returns also the others, and the
    /// tables of patterns that are no datasets, with their reasons. If a full export may be made instead (`heals`), a
    /// dataset without capture is ready for each type.
    pub fn split_ready(
        &self,
        described: &[Description],
        wanted: ExportType,
        heals: bool,
    ) -> (Vec<String>, Vec<Omitted>) {
        let (mut ready, mut left_out) = (Vec::new(), Vec::new());
        for description in described {
            let dataset = &description.dataset;
            let is_allowed = dataset.allows(dataset.healed_type(wanted, heals));
            let name = dataset.name.clone();
            match description.reason().or((!is_allowed).then_some("full_only")) {
                None => ready.push(name),
                Some(reason) => left_out.push(Omitted { dataset: name, reason: reason.to_owned() }),
            }
        }
        let omitted =
            |table: &LeftOut| Omitted { dataset: table.name.clone(), reason: table.reason.as_str().to_owned() };
        left_out.extend(self.left_out.iter().map(omitted));
        (ready, left_out)
    }

    /// Returns true if a dataset or a pattern masks a column by `hmac`.
    pub fn masks_by_hmac(&self) -> bool {
        let of_patterns = self.patterns.iter().map(|pattern| &pattern.options.masks);
        let masks = self.datasets.iter().map(|dataset| &dataset.masks).chain(of_patterns);
        masks.flat_map(|masks| masks.rules.values()).any(|rule| *rule == MaskRule::Hmac)
    }

    /// The patterns that match no table, as the file has them.
    pub fn idle_patterns(&self) -> &[String] {
        &self.idle_patterns
    }

    pub fn dataset_names(&self) -> &Arc<[String]> {
        &self.names
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Dataset>> {
        self.datasets.iter().find(|dataset| dataset.name == name)
    }

    /// The dataset of the name that a call says.
    pub fn named(&self, name: &str) -> Result<&Arc<Dataset>, UnknownDataset> {
        let near = || hint(name, self.datasets.iter().map(|dataset| dataset.name.as_str()));
        self.get(name).ok_or_else(|| UnknownDataset { name: name.to_owned(), near: near(), names: self.names() })
    }

    /// The dataset of a call that names none: `users`, or the only one.
    pub fn implied(&self) -> Result<&Arc<Dataset>, SeveralDatasets> {
        match (self.get(USERS), self.datasets.as_slice()) {
            (Some(dataset), _) | (None, [dataset]) => Ok(dataset),
            (None, _) => Err(SeveralDatasets(self.names())),
        }
    }

    /// The part of the catalog that a caller within these bounds may see: datasets and schedules.
    pub fn within(&self, bounds: &Bounds) -> Catalog {
        let mut part = self.clone();
        let is_visible = |dataset: &&Arc<Dataset>| bounds.allow_dataset(&dataset.name);
        part.named = self.datasets[..self.named].iter().filter(is_visible).count();
        part.datasets.retain(|dataset| is_visible(&dataset));
        part.names = names_of(&part.datasets);
        part.left_out = part.left_out.iter().filter(|it| bounds.allow_dataset(&it.name)).cloned().collect();
        let is_allowed = |schedule: &Arc<Schedule>| {
            // All datasets are more than a key with bounds may see.
            let names_all = schedule.datasets == ScheduledDatasets::All && bounds.datasets.is_some();
            let are_allowed = schedule.datasets.names().iter().all(|dataset| bounds.allow_dataset(dataset));
            bounds.allow_consumer(Some(&schedule.consumer)) && !names_all && are_allowed
        };
        part.schedules.retain(is_allowed);
        part
    }

    /// All datasets: those of the file in its order, then those of its patterns by their names.
    pub fn datasets(&self) -> &[Arc<Dataset>] {
        &self.datasets
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Dataset>> {
        self.datasets.iter()
    }

    /// Returns the tables that a pattern matches and that are no datasets.
    pub fn left_out_tables(&self) -> Vec<&Table> {
        self.left_out().iter().map(|left_out| &left_out.table).collect()
    }

    pub fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// Returns the operator's limit of the age of a change up to which a lane is fresh: that of a schedule, or else of
    /// the dataset.
    pub fn fresh_within(&self, lane: Lane<'_>) -> Option<Duration> {
        let of_schedules = self
            .schedules
            .iter()
            .filter(|schedule| schedule.consumer == *lane.consumer && schedule.datasets.include(lane.dataset));
        let of_dataset = || self.get(lane.dataset).and_then(|dataset| dataset.fresh_within);
        of_schedules.filter_map(|schedule| schedule.fresh_within).min().or_else(of_dataset)
    }

    pub fn schedules(&self) -> &[Arc<Schedule>] {
        &self.schedules
    }

    pub fn names(&self) -> String {
        let mut names = self.names[..self.names.len().min(MAX_LISTED)].join(", ");
        if self.names.len() > MAX_LISTED {
            names = format!("{names} and {} others", self.names.len() - MAX_LISTED);
        }
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

fn names_of(datasets: &[Arc<Dataset>]) -> Arc<[String]> {
    datasets.iter().map(|dataset| dataset.name.clone()).collect()
}

/// Asserts that a text has these lines, each by its beginning.
#[cfg(test)]
pub(crate) fn assert_lines(found: &str, expected: &[&str]) {
    assert_eq!(found.lines().count(), expected.len(), "{found}");
    for (line, expected) in found.lines().zip(expected) {
        assert!(line.starts_with(expected), "{line}");
    }
}

/// Replaces members of a valid block, and asserts that `read` reports one fault alone: the given reason. A line without
/// `=` removes the member. No message may quote a value that contains `hidden`.
#[cfg(test)]
pub(crate) fn assert_refused<T>(
    block: &str,
    cases: &[(&str, &str)],
    read: impl Fn(&str) -> Result<T, crate::catalog::mistake::Mistakes>,
) {
    assert!(read(block).is_ok());
    let name = |line: &str| line.split(' ').next().unwrap_or_default().to_owned();
    for (members, reason) in cases {
        let changed: Vec<_> = members.lines().map(name).collect();
        let kept = block.lines().filter(|line| !changed.contains(&name(line)));
        let text: Vec<_> = kept.chain(members.lines().filter(|member| member.contains('='))).collect();
        let found = read(&text.join("\n")).err().expect(members).to_string();
        let is_alone = found.lines().count() == 1 && !found.contains("hidden");
        assert!(found.contains(reason) && is_alone, "{members}: {found}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::catalog::assert_refused;
    use cdc_dataset::{Capture, Columns, Operation};

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
    fn a_dataset_that_contradicts_itself_is_refused() {
        let block = "[[dataset]]\nname = \"orders\"\ntable = \"orders\"\nupdated_at = \"at\"";
        let cases = [
            ("table = \"a.b.c\"", "line 4: orders: table: a table's name"),
            ("columns = [\"id\", \"id\"]", "columns: a column is named twice"),
            ("columns = [\"id\"]\nexclude = [\"note\"]", "exclude: columns says already"),
            ("updated_at\ncreated_at = \"made_at\"", "created_at: it is compared with updated_at"),
            ("capture = \"wal\"", "capture: `wal` is none of"),
            ("updated_at\ncapture = \"timestamp\"", "capture: by timestamp there is nothing"),
            ("capture = \"timestamp\"\noverlap = \"soon\"", "overlap: a time such as 5m"),
            ("overlap = \"5m\"", "overlap: only with capture"),
            ("arrays = \"list\"\nunrepresentable = \"text\"", "arrays: no lists beside unrepresentable = \"text\""),
            ("operation = \"timestamps\"", "operation: timestamps compares created_at with updated_at: name both"),
        ];
        assert_refused(block, &cases, Catalog::from_toml);
        assert!(Catalog::from_toml("").unwrap_err().to_string().starts_with("there is no [[dataset]] in it: "));
    }

    #[test]
    fn a_dataset_whose_block_is_gone_came_from_no_pattern() {
        let catalog = Catalog::from_toml("[[dataset]]\nname = \"t\"\ntable = \"t\"").unwrap();
        let table = Table { schema: Some("public".to_owned()), name: "t".to_owned() };
        assert_eq!(catalog.why_gone("masked", Some(&table)), "no [[dataset]] has its name, and `t` has its table");
    }

    #[test]
    fn the_operation_of_users_follows_from_its_times() {
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
}
