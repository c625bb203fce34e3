//! Patterns: a `[[tables]]` block makes a dataset of each table that it matches.
//!
//! Knows no SQL: `cdc_capture::relations` reads the relations of the database.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use wildmatch::WildMatch;

use crate::catalog::block::{Block, OperatorFile};
use crate::catalog::dataset_block;
use cdc_capture::Candidate;
use cdc_dataset::{Capture, Dataset, FileHeader, Masks, Owners, derived};
use cdc_manifest::is_dataset_name;
use pg_session::table_name::Table;

/// The kind of block that has a pattern.
pub(super) const TABLES: &str = "tables";

pg_rows::words! {
    /// The reason why a table that a pattern matches is no dataset.
    Reason, "a reason" {
        /// It is no plain table.
        NeedsBlock = "needs_block",
        /// It is a partition of another table.
        Partition = "partition",
        /// A crash of Postgres empties it.
        Unlogged = "unlogged",
        /// Its owner is not one of the pattern's.
        AnotherOwner = "another_owner",
        /// It has no primary key.
        NoKey = "no_key",
        /// Its changes are told by a column that it lacks, or with which no index begins.
        NoUpdatedAt = "no_updated_at",
        /// Its dataset would have a name that no dataset may have.
        NameInvalid = "name_invalid",
        /// The dataset of another table would have the same name.
        NameClash = "name_clash",
        /// A dataset of another table has the name, or its lanes or keys are still there.
        NameTaken = "name_taken",
    }
}

/// A table that a pattern matches, and that is no dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// The name that its dataset would have.
    pub name: String,
    pub table: Table,
    pub reason: Reason,
    /// The owners of the table and its partitions.
    owners: Vec<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LeftOut { name, owners, .. } = self;
        match self.reason {
            Reason::NeedsBlock => f.write_str(
                "it is a view, a foreign table or a table with rules: a [[dataset]] names it, a view or foreign table with \
                 `capture = \"none\"`",
            ),
            Reason::Partition => f.write_str("it is a partition: its rows are exported with those of its table"),
            Reason::Unlogged => f.write_str("it is unlogged: a crash of Postgres empties it"),
            Reason::AnotherOwner => {
                let owners = owners.join(", ");
                write!(f, "it belongs to {owners}, and the pattern's `owners` lack some of these: a read may run their code")
            }
            Reason::NoKey => f.write_str(
                "it has no primary key: a [[dataset]] names the `key` of such a table, or has `capture = \"none\"`",
            ),
            Reason::NoUpdatedAt => f.write_str("it lacks the column of `updated_at`, or an index that begins with it"),
            Reason::NameInvalid => write!(f, "`{name}` can't be a name: 1 to 63 characters, beginning with a letter"),
            Reason::NameClash => {
                write!(f, "another table would be called `{name}` too: a [[dataset]] gives one of them another name")
            }
            Reason::NameTaken => write!(
                f,
                "`{name}` is another table's: a dataset has the name, or exports or keys of it are left. A [[dataset]] gives \
                 this table another name"
            ),
        }
    }
}

/// The names of the datasets that have exports or keys, and the table of each.
pub type UsedNames = HashMap<String, Table>;

#[derive(Clone, Debug)]
pub(super) struct Pattern {
    /// The texts of `matches`, for a message.
    text: String,
    matches: Vec<NamePattern>,
    exclude: Vec<NamePattern>,
    /// The name of a dataset, with `{table}` and perhaps `{schema}`.
    name: String,
    /// The options of its datasets. `updated_at` is theirs if the table has such a column, with an index, and `deleted`
    /// if the table has such a column.
    pub(super) options: Dataset,
}

#[derive(Clone, Debug)]
struct NamePattern {
    schema: WildMatch,
    table: WildMatch,
}

impl NamePattern {
    fn parse(text: &str) -> Result<NamePattern, &'static str> {
        match text.parse::<Table>() {
            Ok(Table { schema: Some(schema), name }) => {
                Ok(NamePattern { schema: WildMatch::new(&schema), table: WildMatch::new(&name) })
            }
            _ => Err("a schema's and a table's name with a dot between is expected, such as sales.*"),
        }
    }

    fn fits(&self, relation: &Candidate) -> bool {
        self.schema.matches(&relation.schema) && self.table.matches(&relation.name)
    }
}

pub(super) fn read(file: &mut OperatorFile<'_>) -> Vec<Pattern> {
    let mut patterns = Vec::new();
    file.each_unnamed_block(TABLES, |block| patterns.extend(pattern(block)));
    patterns
}

fn pattern(block: &mut Block<'_, '_>) -> Option<Pattern> {
    let matches = block.list("match", |text| Ok::<_, &str>((text.to_owned(), NamePattern::parse(text)?)));
    if matches.is_none() && !block.has("match") {
        block.wrong("match", "the tables are missing, such as [\"sales.*\"]");
    }
    let exclude = block.list("exclude", NamePattern::parse).unwrap_or_default();
    let name = block.or_default("name", "{table}".to_owned(), |text| match text.contains("{table}") {
        true => Ok(text.to_owned()),
        false => Err("{table} is missing, without which all tables would have one name"),
    });
    let owners = block.list("owners", str::parse::<String>).map_or(Owners::Default, Owners::Named);
    let options = dataset_block::options(block);
    let deleted = block.text("deleted");
    dataset_block::refuse_mask(block, &options.masks, "deleted", deleted.as_ref());
    let masks = Masks { are_optional: true, ..options.masks };
    let header = FileHeader { renames_are_optional: true, ..options.header };
    let tracks = block.flag("track", false);
    if tracks && options.capture != Capture::Triggers {
        block.wrong("track", "only with capture = \"triggers\"");
    }
    let options = Dataset { deleted, owners, masks, header, tracks, ..options };
    let (texts, matches): (Vec<_>, Vec<_>) = matches?.into_iter().unzip();
    Some(Pattern { text: texts.join(", "), matches, exclude, name: name?, options })
}

impl Pattern {
    fn fits(&self, relation: &Candidate) -> bool {
        let fits = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.fits(relation));
        fits(&self.matches) && !fits(&self.exclude)
    }

    /// The name of a table's dataset. Characters that no name has become `_`.
    fn name_of(&self, relation: &Candidate) -> String {
        self.name.replace("{schema}", &derived(&relation.schema)).replace("{table}", &derived(&relation.name))
    }

    fn dataset(&self, relation: &Candidate) -> Dataset {
        let Dataset { updated_at, deleted, .. } = &self.options;
        Dataset {
            name: self.name_of(relation),
            table: Table { schema: Some(relation.schema.clone()), name: relation.name.clone() },
            updated_at: updated_at.clone().filter(|time| relation.indexed_times.contains(time)),
            deleted: deleted.clone().filter(|column| relation.columns.contains(column)),
            ..self.options.clone()
        }
    }

    /// Why a table can't be a dataset, by itself.
    fn obstacle(&self, relation: &Candidate, dataset: &Dataset) -> Option<Reason> {
        let are_trusted = match &self.options.owners {
            Owners::Named(named) => relation.owners.iter().all(|owner| named.contains(owner)),
            Owners::Any | Owners::Default => relation.are_owners_trusted,
        };
        let is_captured = dataset.capture != Capture::None;
        let lacks_times = matches!(dataset.capture, Capture::Timestamp { .. }) && dataset.updated_at.is_none();
        let obstacles = [
            (!relation.is_plain_table, Reason::NeedsBlock),
            (relation.is_partition, Reason::Partition),
            (is_captured && relation.is_unlogged, Reason::Unlogged),
            (!are_trusted, Reason::AnotherOwner),
            (is_captured && !relation.has_key, Reason::NoKey),
            (lacks_times, Reason::NoUpdatedAt),
            (!is_dataset_name(&dataset.name), Reason::NameInvalid),
        ];
        obstacles.into_iter().find(|(applies, _)| *applies).map(|(_, reason)| reason)
    }
}

/// Returns the texts of the patterns that match none of these relations.
pub(super) fn idle(patterns: &[Pattern], relations: &[Candidate]) -> Arc<[String]> {
    let is_idle = |pattern: &&Pattern| !relations.iter().any(|relation| pattern.fits(relation));
    patterns.iter().filter(is_idle).map(|pattern| pattern.text.clone()).collect()
}

/// Makes a dataset of each relation that a pattern matches, unless it is the table of one of the `named` datasets. Of
/// several patterns, the first one counts. Returns also the tables that are no dataset.
pub(super) fn expand(
    patterns: &[Pattern],
    named: &[Arc<Dataset>],
    relations: &[Candidate],
    used: &UsedNames,
) -> (Vec<Arc<Dataset>>, Vec<LeftOut>) {
    let names: HashSet<_> = named.iter().map(|dataset| dataset.name.as_str()).collect();
    let tables: HashSet<_> =
        named.iter().map(|dataset| (dataset.table.schema.as_deref(), &*dataset.table.name)).collect();
    let is_named = |relation: &Candidate| {
        tables.contains(&(Some(&*relation.schema), &*relation.name))
            || relation.is_visible && tables.contains(&(None, &*relation.name))
    };
    let (mut fitting, mut left_out) = (BTreeMap::<String, Vec<(&Candidate, Dataset)>>::new(), Vec::new());
    let mut leave_out = |relation: &Candidate, Dataset { name, table, .. }: Dataset, reason| {
        left_out.push(LeftOut { name, table, reason, owners: relation.owners.clone() });
    };
    for relation in relations.iter().filter(|relation| !is_named(relation)) {
        let Some(pattern) = patterns.iter().find(|pattern| pattern.fits(relation)) else { continue };
        let dataset = pattern.dataset(relation);
        match pattern.obstacle(relation, &dataset) {
            Some(reason) => leave_out(relation, dataset, reason),
            None => fitting.entry(dataset.name.clone()).or_default().push((relation, dataset)),
        }
    }
    let mut datasets = Vec::new();
    for (name, all) in fitting {
        let is_alone = all.len() == 1;
        for (relation, dataset) in all {
            match used.get(&name) {
                _ if names.contains(&*name) => leave_out(relation, dataset, Reason::NameTaken),
                Some(table) if *table != dataset.table => leave_out(relation, dataset, Reason::NameTaken),
                None if !is_alone => leave_out(relation, dataset, Reason::NameClash),
                Some(_) | None => datasets.push(Arc::new(dataset)),
            }
        }
    }
    (datasets, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, assert_refused};

    fn table(schema: &str, name: &str) -> Candidate {
        Candidate {
            schema: schema.to_owned(),
            name: name.to_owned(),
            is_visible: schema == "public",
            owners: vec!["shop".to_owned()],
            are_owners_trusted: true,
            is_plain_table: true,
            is_partition: false,
            is_unlogged: false,
            has_key: true,
            indexed_times: Vec::new(),
            columns: Vec::new(),
        }
    }

    fn expanded(text: &str, relations: &[Candidate], used: &UsedNames) -> (Vec<String>, Vec<String>) {
        let catalog = Catalog::from_toml(text).unwrap().expanded(relations, used);
        let datasets = catalog.iter().map(|it| format!("{} {}", it.name, it.table)).collect();
        let left_out =
            catalog.left_out().iter().map(|it| format!("{} {} {}", it.name, it.table, it.reason.as_str())).collect();
        (datasets, left_out)
    }

    #[test]
    fn each_table_that_is_matched_is_a_dataset_or_left_out_for_a_reason() {
        let text = r#"
            [[dataset]]
            name = "people"
            table = "customers"
            [[tables]]
            match = ["public.*", "sales.order?"]
            exclude = ["public.tmp_*"]
            updated_at = "changed"
            [[tables]]
            match = ["sales.*"]
            owners = ["boss"]
            name = "{schema}-{table}"
        "#;
        let relations = [
            table("public", "customers"),
            table("public", "tmp_1"),
            Candidate { indexed_times: vec!["changed".to_owned()], ..table("public", "Order Lines") },
            Candidate { has_key: false, ..table("public", "log") },
            Candidate { is_plain_table: false, ..table("public", "view") },
            Candidate { are_owners_trusted: false, ..table("public", "foreign") },
            Candidate { is_unlogged: true, ..table("public", "cache") },
            Candidate { is_partition: true, ..table("public", "part") },
            table("public", "1st"),
            table("sales", "orders"),
            table("sales", "orders2"),
            Candidate { owners: vec!["boss".to_owned()], ..table("sales", "returns") },
            table("hr", "pay"),
        ];
        let (datasets, left_out) = expanded(text, &relations, &UsedNames::new());
        let all = [
            "people customers",
            "order_lines public.Order Lines",
            "orders sales.orders",
            "sales-returns sales.returns",
        ];
        assert_eq!(datasets, all);
        let expected = [
            "log public.log no_key",
            "view public.view needs_block",
            "foreign public.foreign another_owner",
            "cache public.cache unlogged",
            "part public.part partition",
            "1st public.1st name_invalid",
            "sales-orders2 sales.orders2 another_owner",
        ];
        assert_eq!(left_out, expected);
        let few = Catalog::from_toml(text).unwrap().expanded(&relations[..1], &UsedNames::new());
        assert_eq!(few.idle_patterns(), ["sales.*"]);
    }

    #[test]
    fn a_name_is_one_tables_and_never_passes_to_another() {
        let text = "[[dataset]]\nname = \"stock\"\ntable = \"a.stock\"\n[[tables]]\nmatch = [\"*.*\"]";
        let relations = ["orders", "stock", "users"].map(|name| [table("a", name), table("b", name)]).concat();
        let used = |schema: &str| {
            let table = Table { schema: Some(schema.to_owned()), name: "users".to_owned() };
            UsedNames::from([("users".to_owned(), table)])
        };
        let (datasets, left_out) = expanded(text, &relations, &used("b"));
        assert_eq!(datasets, ["stock a.stock", "users b.users"]);
        let clash = ["orders a.orders name_clash", "orders b.orders name_clash"];
        assert_eq!(left_out, [&clash[..], &["stock b.stock name_taken", "users a.users name_taken"]].concat());
        let (datasets, _) = expanded(text, &relations, &used("gone"));
        assert_eq!(datasets, ["stock a.stock"], "the exports of a dropped table are left");
    }

    #[test]
    fn a_pattern_that_contradicts_itself_is_refused() {
        let cases = [
            ("match", "line 1: tables: match: the tables are missing"),
            ("match = [\"sales\"]", "match: a schema's and a table's name"),
            ("name = \"all\"", "name: {table} is missing"),
            ("key = [\"id\"]", "unknown field `key`"),
            ("capture = \"none\"\ntrack = true", "track: only with capture"),
        ];
        assert_refused("[[tables]]\nmatch = [\"a.*\"]", &cases, Catalog::from_toml);
    }
}
