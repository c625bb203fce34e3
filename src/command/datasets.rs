//! `datasets`: checks the catalog against the tables, lists it, and adds a block to its file.

use std::collections::{BTreeMap, HashSet};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};

use crate::catalog::Catalog;
use crate::catalog::pattern::{LeftOut, Reason, UsedNames};
use crate::config::{self, CatalogFile, Config};
use cdc_dataset::{Capture, Dataset, Description, Fault, Faults, TableColumn, TableSchema};
use pg_rows::column::ColumnType;

use crate::postgres::Database;
use crate::service::Service;
use crate::store::Store;
use cdc_capture::{Candidate, Findings};
use clap::{Args, Subcommand};
use pg_session::table_name::Table;

use crate::command::catalog::{refuse_faults, untrack_hint};
use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::plain::plain;
use crate::command::server::local_api;
use crate::command::start::{Logs, block_on, settings};
use crate::command::wiring::wire_service;
use crate::command::words::dataset_name;
use crate::command::{BadUsage, catalog_file};

const LISTED_NAMES: usize = 5;

/// The actions on datasets.
#[derive(Subcommand)]
pub(crate) enum DatasetsCommand {
    /// Check the dataset file against the tables, and print each mistake with its line
    Check,
    /// List the datasets with their tables, and the tables of patterns that are no datasets
    List {
        /// Print each as JSON, one on a line
        #[arg(long)]
        json: bool,
    },
    /// Add tables to the dataset file in DATASETS. If DATASETS is unset, print the blocks instead
    Add(AddDatasets),
}

/// The tables to add.
#[derive(Args)]
pub(crate) struct AddDatasets {
    /// The tables, as `orders` or `sales.orders`
    #[arg(value_name = "TABLE", required_unless_present = "schema")]
    tables: Vec<Table>,
    /// Add a pattern that makes a dataset of each table in this schema, now and later. Tables and views that it leaves
    /// out can be named beside it. Can be given several times
    #[arg(long, conflicts_with = "name")]
    schema: Vec<String>,
    /// The name of the dataset, if there is one table [default: derived from the table's name]
    #[arg(long, value_parser = dataset_name)]
    name: Option<String>,
}

impl AddDatasets {
    fn named(&self) -> Result<Vec<(String, Table)>, BadUsage> {
        if self.name.is_some() && self.tables.len() > 1 {
            return Err(BadUsage("--name: it names one dataset, and several tables are given".to_owned()));
        }
        let name = |table: &Table| self.name.clone().unwrap_or_else(|| derived_name(table));
        Ok(self.tables.iter().map(|table| (name(table), table.clone())).collect())
    }
}

impl DatasetsCommand {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let catalog = match self {
            DatasetsCommand::Check | DatasetsCommand::List { .. } => CatalogFile::Read,
            // The file may not exist yet.
            DatasetsCommand::Add(_) => CatalogFile::Named,
        };
        let config = settings(catalog, Logs::Errors)?;
        block_on(with_database(&config, CreateMissing::NothingWithPreview, async |database| {
            datasets(&config, database, self).await
        }))
    }
}

async fn datasets(config: &Config, database: &Database, command: DatasetsCommand) -> anyhow::Result<()> {
    match command {
        DatasetsCommand::Check => check(config, database).await,
        DatasetsCommand::List { json: false } => list(config, database).await,
        DatasetsCommand::List { json: true } => {
            let all = local_api(wire_service(config, database)?).dataset_items().await?;
            all.iter().try_for_each(|dataset| outln!("{dataset}"))
        }
        DatasetsCommand::Add(add) => self::add(config, database, &add).await,
    }
}

async fn check(config: &Config, database: &Database) -> anyhow::Result<()> {
    let file = config.catalog_file.as_deref().context(
        "DATASETS names no file, so there is the demo's `users` alone: set DATASETS to a file, and `cdc-export datasets add TABLE` writes it",
    )?;
    let catalog = config.catalog.get();
    let found = Findings::check(&database.pool(), catalog.datasets(), &catalog.left_out_tables()).await?;
    let left = Store::new(database.pool()).positions_without_dataset(catalog.dataset_names()).await?;
    print_remarks(&catalog, &found, &left);
    let Findings { faults: Faults(mut faults), unreadable, untracked, broken, .. } = found;
    faults.extend(unreadable);
    let with_fault = faults.iter().map(|fault| &fault.dataset).chain(&untracked).chain(&broken);
    let with_fault: HashSet<_> = with_fault.map(String::as_str).collect();
    let names = catalog.iter().map(|dataset| dataset.name.as_str());
    let ready: Vec<_> = names.filter(|name| !with_fault.contains(name)).collect();
    match ready.as_slice() {
        [] => {}
        [one] => outln!("1 dataset fits its table: {one}")?,
        all => outln!("{} datasets fit their tables: {}", all.len(), all.join(", "))?,
    }
    let schedules = catalog.schedules().iter().map(|schedule| schedule.name.as_str()).collect::<Vec<_>>();
    for (command, names) in [("schedules", schedules)].into_iter().chain(config.receivers.names()) {
        if !names.is_empty() {
            outln!("{command}: {}", names.join(", "))?;
        }
    }
    faults.extend(no_longer_captured(broken));
    faults.extend(positions_left(&catalog, left));
    let missing = config.missing_secrets();
    if !faults.is_empty() {
        missing.iter().for_each(|why| eprintln!("cdc-export: {why}"));
    }
    refuse_faults(&catalog, file, Faults(faults))?;
    // The service doesn't start without its secrets.
    if missing.is_empty() { Ok(()) } else { Err(config::Error::no_secrets(file, &missing).into()) }
}

/// Returns one fault of all datasets that were tracked and aren't captured now: often they have one cause, a restore.
fn no_longer_captured(names: Vec<String>) -> Option<Fault> {
    let track = if names.len() > LISTED_NAMES { "--all".to_owned() } else { names.join(" ") };
    let why = format!(
        "the changes are no longer captured, as after a restore of the database: `cdc-export track {track}`, then a full \
         export for each consumer"
    );
    (!names.is_empty()).then(|| Fault { dataset: listed(names), member: "capture", item: None, why })
}

/// Returns a fault for each cause why datasets are gone in which consumers have positions.
fn positions_left(catalog: &Catalog, left: Vec<(String, Option<Table>)>) -> Vec<Fault> {
    let causes = left.into_iter().map(|(name, table)| (name.clone(), catalog.why_gone(&name, table.as_ref())));
    let fault = |(cause, names)| Fault {
        dataset: listed(names),
        member: "positions",
        item: None,
        why: format!(
            "consumers have positions, and there is no dataset any more: {cause}. Mend that, or add a [[dataset]] of the \
             name. DELETE /exports/watermark?dataset=NAME forgets a position that nobody needs"
        ),
    };
    by_cause(causes).into_iter().map(fault).collect()
}

/// Prints the findings that are no faults, but for the tables whose datasets are gone and leave positions.
fn print_remarks(catalog: &Catalog, found: &Findings, left: &[(String, Option<Table>)]) {
    let Findings { untracked, stalling, remarks, without_dataset, .. } = found;
    print_by_cause(stalling.iter().map(|fault| (fault.dataset.clone(), format!("{}: {}", fault.member, fault.why))));
    let track = if let [name] = &**untracked { name.as_str() } else { "--all" };
    let why = format!("the changes are not captured: `cdc-export track {track}` comes before exports");
    print_by_cause(untracked.iter().map(|name| (name.clone(), why.clone())));
    print_by_cause(remarks.iter().map(|Fault { dataset, why, .. }| (dataset.clone(), why.clone())));
    let named = if let [table] = &**without_dataset { table.to_string() } else { "NAME".to_owned() };
    let hint = untrack_hint(&named);
    print_by_cause(without_dataset.iter().map(|table| (plain(&table.to_string()), hint.clone())));
    for pattern in catalog.idle_patterns() {
        eprintln!("cdc-export: no table matches the pattern {}", plain(pattern));
    }
    // The rows of a partition are in the dataset of its table.
    let is_remark = |it: &&LeftOut| {
        it.reason != Reason::Partition && left.iter().all(|(_, table)| table.as_ref() != Some(&it.table))
    };
    let left_out = catalog.left_out().iter().filter(is_remark);
    let why = |it: &LeftOut| format!("no dataset: {}", plain(&it.to_string()));
    print_by_cause(left_out.map(|it| (plain(&it.table.to_string()), why(it))));
    for schedule in catalog.schedules() {
        for dataset in schedule.datasets.names().iter().filter(|name| catalog.get(name).is_none()) {
            let name = &schedule.name;
            eprintln!("cdc-export: schedule {name}: there is no dataset `{dataset}`, unless a pattern makes it later");
        }
    }
}

/// Prints a line for each cause, with the names of the datasets or tables that have it.
fn print_by_cause(causes: impl Iterator<Item = (String, String)>) {
    for (cause, names) in by_cause(causes) {
        eprintln!("cdc-export: {}: {cause}", listed(names));
    }
}

/// Returns the names of each cause.
fn by_cause(causes: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Vec<String>> {
    let mut names_by_cause: BTreeMap<String, Vec<String>> = BTreeMap::new();
    causes.for_each(|(name, cause)| names_by_cause.entry(cause).or_default().push(name));
    names_by_cause
}

/// The first of these names, and the number of the others.
fn listed(mut names: Vec<String>) -> String {
    let more = match names.split_off(names.len().min(LISTED_NAMES)).len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", names.join(", "))
}

/// Adds blocks to the file, and prints them.
async fn add(config: &Config, database: &Database, add: &AddDatasets) -> anyhow::Result<()> {
    let (mut blocks, mut captured) = (Vec::new(), Vec::new());
    for (name, table) in add.named()? {
        let block = draft(config, database, Dataset::new(name.clone(), table)).await?;
        captured.extend(Some(name).filter(|_| block.is_captured));
        blocks.push(block.text);
    }
    for schema in &add.schema {
        blocks.push(draft_pattern(config, database, schema).await?);
    }
    let text = blocks.join("\n");
    let catalog = match &config.catalog_file {
        Some(file) => catalog_file::append(file, &text)?,
        None => Catalog::from_toml(&text)?,
    };
    if let Some(file) = &config.catalog_file {
        let next = match (&*add.schema, &*captured) {
            ([_, ..], _) => {
                "`cdc-export datasets list` shows the tables, and `cdc-export track --all` captures their changes"
                    .to_owned()
            }
            ([], []) => "There are full exports alone, and nothing to track".to_owned(),
            ([], names) => {
                format!(
                    "Check the members that were guessed from column names, also in the comments, then run `cdc-export track {}`",
                    names.join(" ")
                )
            }
        };
        eprintln!("Added to {}. {next}. A running service reads the file after some seconds.", file.display());
    }
    let left_out = if add.schema.is_empty() { Vec::new() } else { left_out(database, &catalog, &add.schema).await? };
    if !left_out.is_empty() {
        eprintln!(
            "The pattern leaves out what is no plain table, is unlogged or has no key: `cdc-export datasets add {}` adds \
             these, with `capture = \"none\"` where nothing else is possible.",
            left_out.join(" ")
        );
    }
    outln!("{}", text.trim_end())
}

async fn draft_pattern(config: &Config, database: &Database, schema: &str) -> anyhow::Result<String> {
    ensure!(
        !schema.contains(['*', '?']) && plain(schema) == schema,
        "nothing was added: a pattern can't name just the schema {}",
        plain(schema)
    );
    let catalog = config.catalog.get();
    let relations = Candidate::read(&database.pool(), catalog.datasets(), catalog.deleted_columns()).await?;
    ensure!(
        relations.iter().any(|relation| relation.schema == schema),
        "nothing was added: there is no table in a schema that is called {schema}"
    );
    let escaped = Table { schema: Some(schema.to_owned()), name: "*".to_owned() };
    Ok(format!(
        "[[tables]]\nmatch = [{}]\n# exclude = [{}]\n# updated_at = \"updated_at\"  # of the tables that have it, with an index\n\
         # deleted = \"is_deleted\"  # of the tables that have it; left out, marked rows are live\n",
        quoted(&escaped.to_string()),
        quoted(&Table { name: "tmp_*".to_owned(), ..escaped }.to_string()),
    ))
}

/// Returns the names, as arguments of a shell, of the relations in these schemas that only a block of their own would
/// make datasets.
async fn left_out(database: &Database, catalog: &Catalog, schemas: &[String]) -> anyhow::Result<Vec<String>> {
    let relations = Candidate::read(&database.pool(), catalog.datasets(), catalog.deleted_columns()).await?;
    let expanded = catalog.expanded(&relations, &UsedNames::new());
    let needs_block = |it: &&LeftOut| {
        let is_reason = matches!(it.reason, Reason::NeedsBlock | Reason::Unlogged | Reason::NoKey);
        is_reason && it.table.schema.as_ref().is_some_and(|schema| schemas.contains(schema))
    };
    let argument = |it: &LeftOut| {
        let name = it.table.to_string();
        plain(&shlex::try_quote(&name).expect("a name in Postgres has no NUL"))
    };
    Ok(expanded.left_out().iter().filter(needs_block).map(argument).collect())
}

async fn list(config: &Config, database: &Database) -> anyhow::Result<()> {
    let service = wire_service(config, database)?;
    outln!("{:<20} {:<32} {:>12}  {:<10} {:<10} COLUMNS", "DATASET", "TABLE", "ROWS", "CAPTURE", "OPERATION")?;
    let seen = service.datasets(Duration::ZERO).await?;
    for Description { dataset, schema, unreadable, rows, captured, .. } in &seen.value.datasets {
        let rows = rows.map_or("?".to_owned(), |rows| format!("~{rows}"));
        let capture = if *captured { dataset.capture.as_str() } else { "untracked" };
        let columns = match (&schema, &unreadable) {
            (_, Some(fault)) => fault.to_string(),
            (Ok(schema), _) => schema.columns.iter().map(|column| &*column.name).collect::<Vec<_>>().join(", "),
            (Err(faults), _) => faults.to_string(),
        };
        let operation = if dataset.capture == Capture::None { "-" } else { dataset.operation.as_str() };
        let (name, table) = (&dataset.name, dataset.table.to_string());
        let (table, columns) = (plain(&table), plain(&columns));
        outln!("{name:<20} {table:<32} {rows:>12}  {capture:<10} {operation:<10} {columns}")?;
    }
    for left_out in service.left_out() {
        let (name, table, why) = (&left_out.name, plain(&left_out.table.to_string()), plain(&left_out.to_string()));
        outln!("{name:<20} {table:<32} {:>12}  {:<10} {:<10} {why}", "-", "-", "-")?;
    }
    Ok(())
}

fn derived_name(table: &Table) -> String {
    let name: String = cdc_dataset::derived(&table.name).chars().take(63).collect();
    if name.starts_with(|c: char| c.is_ascii_lowercase()) { name } else { "dataset".to_owned() }
}

/// A block for the file.
struct BlockDraft {
    text: String,
    /// True if triggers are to capture the changes.
    is_captured: bool,
}

/// Drafts a block for the file. Some members are guessed from the names of columns: the operator has to check them.
async fn draft(config: &Config, database: &Database, dataset: Dataset) -> anyhow::Result<BlockDraft> {
    let service = wire_service(config, database)?;
    let mut described = service.describe(&Arc::new(dataset.clone())).await?;
    let mut obstacles: Vec<String> = match (&described.schema, &described.unreadable) {
        (Err(Faults(faults)), None) => faults.iter().map(|fault| fault.why.clone()).collect(),
        _ => described.why_untracked.iter().cloned().collect(),
    };
    if !obstacles.is_empty() {
        let uncaptured = service.describe(&Arc::new(Dataset { capture: Capture::None, ..dataset })).await?;
        match uncaptured.schema.is_ok() {
            true => described = uncaptured,
            false => obstacles.clear(),
        }
    }
    let schema = match (&described.schema, &described.unreadable) {
        (Ok(schema), _) => schema,
        (Err(_), Some(hidden)) => anyhow::bail!("nothing was added: {hidden}"),
        (Err(faults), None) => anyhow::bail!("nothing was added: {faults}"),
    };
    let names = |columns: &[&TableColumn]| columns.iter().map(|it| quoted(&it.name)).collect::<Vec<_>>().join(", ");
    let key: Vec<_> = schema.key.iter().map(|part| &part.column).collect();
    let Dataset { name, table, .. } = &*described.dataset;
    let mut lines = vec!["[[dataset]]".to_owned(), format!("name = {}", quoted(name))];
    lines.push(format!("table = {}", quoted(&table.to_string())));
    if !obstacles.is_empty() {
        lines.extend(obstacles.iter().map(|why| format!("# {}", plain(why))));
        lines.push("capture = \"none\"".to_owned());
    }
    if !key.is_empty() {
        lines.push(format!("# key = [{}]", names(&key)));
    }
    lines.push(format!("# columns = [{}]", names(&schema.columns.iter().collect::<Vec<_>>())));
    if obstacles.is_empty() {
        lines.extend(guessed_times(&service, schema).await?);
    }
    lines.extend(guessed_deletion(schema));
    Ok(BlockDraft { text: lines.join("\n") + "\n", is_captured: obstacles.is_empty() })
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn is_time(column: &TableColumn) -> bool {
    matches!(column.kind, ColumnType::Timestamptz | ColumnType::Timestamp)
}

/// Finds the column with the first of these names that fits.
fn find<'s>(schema: &'s TableSchema, words: &[&str], fits: impl Fn(&TableColumn) -> bool) -> Option<&'s TableColumn> {
    let named = |word: &&str| schema.columns.iter().find(|column| column.name.eq_ignore_ascii_case(word));
    words.iter().filter_map(named).find(|column| fits(column))
}

/// Drafts the members for the times of a row's changes.
async fn guessed_times(service: &Service, schema: &TableSchema) -> anyhow::Result<Vec<String>> {
    let updated = ["updated_at", "modified_at", "last_update", "changed_at", "updated", "modified", "last_modified"];
    let created = ["created_at", "inserted_at", "create_date", "created", "made_at"];
    let Some(updated_at) = find(schema, &updated, is_time) else { return Ok(Vec::new()) };
    let (comment, remark) = match service.has_index(&schema.table, updated_at).await? {
        true => ("", ""),
        false => ("# ", "  # no index begins with it: each incremental and delta would read the whole table"),
    };
    let mut lines = vec![format!("{comment}updated_at = {}{remark}", quoted(&updated_at.name))];
    if let Some(created_at) = find(schema, &created, is_time) {
        lines.push(format!("{comment}created_at = {}", quoted(&created_at.name)));
        lines.push("# operation = \"timestamps\"".to_owned());
    }
    Ok(lines)
}

/// Drafts the member for the mark of a deleted row as a comment: with this member, full exports leave these rows out,
/// which the operator may not notice.
fn guessed_deletion(schema: &TableSchema) -> Option<String> {
    let is_time_or_flag = |column: &TableColumn| is_time(column) || column.kind == ColumnType::Bool;
    let deleted = find(schema, &["is_deleted", "deleted_at", "deleted"], is_time_or_flag)?;
    let name = quoted(&deleted.name);
    Some(format!("# deleted = {name}  # would leave marked rows out of full exports, and make them a delta's DELETE"))
}
