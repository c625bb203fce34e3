//! A `[[dataset]]` of the operator's file, as it is read, and where in the file everything is.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use crate::dataset::fault::Fault;
use crate::dataset::name::is_name;
use crate::dataset::table_name::NotATable;
use crate::dataset::{Capture, Columns, Dataset, Operation, Table};
use crate::duration;
use crate::job::FILE_BYTES;

/// How long a transaction may take where changes are found by their times, unless the file says.
const OVERLAP: Duration = Duration::from_secs(5 * 60);

/// The members, as they are written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatasetBlock {
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

impl DatasetBlock {
    /// The dataset; `faults` gets what is wrong with it.
    pub(super) fn read(self, faults: &mut Vec<Fault>) -> Dataset {
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
        let overlap = self.overlap.as_ref().map(|text| duration::parse(text.as_ref()));
        let capture = match (self.capture.as_ref().map(|word| word.as_ref().as_str()), &overlap) {
            (None | Some("triggers"), None) => Capture::Triggers,
            (None | Some("triggers"), Some(_)) => {
                wrong("overlap", "only with capture = \"timestamp\"".to_owned());
                Capture::Triggers
            }
            (Some("timestamp"), None) => Capture::Timestamp { overlap: OVERLAP },
            (Some("timestamp"), Some(Some(overlap))) => Capture::Timestamp { overlap: *overlap },
            (Some("timestamp"), Some(None)) => {
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
pub(super) struct Lines(BTreeMap<(String, &'static str, Option<String>), usize>);

impl Lines {
    /// Whether there is no file.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps the places of a block, which `line` makes lines of.
    pub(super) fn note(&mut self, block: &Spanned<DatasetBlock>, line: impl Fn(usize) -> usize) {
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
    pub(super) fn of(&self, fault: &Fault) -> Option<usize> {
        let at = |member, item| self.0.get(&(fault.dataset.clone(), member, item)).copied();
        let item = fault.item.clone().and_then(|item| at(fault.member, Some(item)));
        item.or_else(|| at(fault.member, None)).or_else(|| at("dataset", None))
    }
}
