//! Walls that Cargo doesn't hold, because they are inside a crate. `docs/ARCHITECTURE.md` says why.

use std::collections::{BTreeMap, BTreeSet};

use crate::source_files::code_below;

/// The modules of the root package that name others than nouns and `telemetry`, each with those that it may name.
/// `command` wires all of them.
const MAY_NAME: [(&str, &[&str]); 9] = [
    ("http", &["service", "demo"]),
    ("service", &["demo", "store"]),
    ("worker", &["pipeline", "publisher", "store"]),
    ("maintenance", &["publisher", "store"]),
    ("publisher", &["store"]),
    ("demo", &["store"]),
    ("delivery", &["store"]),
    ("receiver", &["delivery"]),
    // Their settings.
    (
        "config",
        &["delivery", "http", "maintenance", "postgres", "publisher", "receiver", "service", "telemetry", "worker"],
    ),
];

/// Plain values, which every module may name.
const NOUNS: [&str; 10] =
    ["audit", "catalog", "duration", "event", "file", "freshness", "job", "key", "schedule", "trace"];

/// Words that only some modules of the root package have.
const WORDS: [(&str, &[&str]); 10] = [
    ("sqlx", &["demo", "postgres", "store"]),
    ("StatusCode", &["http"]),
    ("std::env", &["config"]),
    ("std::fs", &["command", "config"]),
    ("anyhow", &["command"]),
    ("println!", &["command"]),
    ("clap::", &["command"]),
    ("prometheus::", &["telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("cdc_client", &["command", "http"]),
];

/// The places of statements, and how the names of these begin.
const SQL: [(&[&str], &str); 5] = [
    (&["src/store", "src/store.rs"], "store"),
    (&["src/postgres", "src/postgres.rs"], "postgres"),
    (&["src/demo.rs"], "demo"),
    (&["crates/cdc-capture/src"], "source"),
    (&["crates/cdc-client/src/apply", "crates/cdc-client/src/apply.rs"], "apply"),
];

/// A file of a crate: the path of its module, and what it names in others.
struct Module {
    path: Vec<String>,
    /// Paths below the crate's root, with the name of an item at the end of most.
    named: BTreeSet<Vec<String>>,
    code: String,
}

fn words(path: &str) -> Vec<String> {
    path.split("::").filter(|word| !word.is_empty() && *word != "self").map(str::to_owned).collect()
}

/// Returns the paths that a text names with `crate::` in front, also within the braces of a `use`.
fn named(code: &str) -> BTreeSet<Vec<String>> {
    let mut found = BTreeSet::new();
    for tree in code.split("crate::").skip(1) {
        let (mut heads, mut branch) = (Vec::<String>::new(), String::new());
        for c in tree.chars() {
            match c {
                '{' => heads.push(std::mem::take(&mut branch)),
                ',' | '}' if !heads.is_empty() => {
                    found.insert(words(&(heads.concat() + &std::mem::take(&mut branch))));
                    heads.truncate(heads.len() - usize::from(c == '}'));
                }
                c if c.is_alphanumeric() || matches!(c, '_' | ':') => branch.push(c),
                c if c.is_whitespace() && !heads.is_empty() => {}
                _ => break,
            }
        }
        found.insert(words(&(heads.concat() + &branch)));
    }
    found
}

fn modules(folder: &str) -> Vec<Module> {
    let module = |(name, code): (String, String)| {
        let path = name[folder.len()..].trim_start_matches("/lib.rs").trim_end_matches(".rs").replace('/', "::");
        Module { path: words(&path), named: named(&code), code }
    };
    code_below(folder).into_iter().map(module).collect()
}

#[test]
fn a_module_names_only_those_that_it_may() {
    for Module { path, named, code } in modules("src") {
        let Some(module) = path.first().filter(|name| !matches!(&***name, "command" | "main")) else { continue };
        let may = MAY_NAME.iter().find(|(name, _)| name == module).map_or([].as_slice(), |(_, others)| others);
        for other in named.iter().filter_map(|path| path.first()).filter(|other| *other != module) {
            let is_noun = NOUNS.contains(&&**other);
            let is_telemetry = other == "telemetry" && !NOUNS.contains(&&**module);
            assert!(is_noun || is_telemetry || may.contains(&&**other), "src/{} names {other}", path.join("/"));
        }
        for (word, naming) in WORDS {
            assert!(!code.contains(word) || naming.contains(&&**module), "src/{} has {word}", path.join("/"));
        }
    }
    for Module { path, code, .. } in modules("crates/cdc-client/src") {
        assert!(!code.contains("sqlx::") || path[0] == "apply", "{path:?} names sqlx");
    }
}

/// Only one of two modules of one parent may name the other, however deep below. A parent may name its children, and a
/// child its parent's types and constants.
#[test]
fn no_modules_name_each_other_in_a_circle() {
    for name in ["src", "cdc-capture", "cdc-client", "cdc-dataset", "cdc-destination", "cdc-manifest"] {
        let folder = &if name == "src" { name.to_owned() } else { format!("crates/{name}/src") };
        let modules = modules(folder);
        let paths: BTreeSet<&[String]> = modules.iter().map(|module| &*module.path).collect();
        let mut parents = BTreeMap::<&[String], BTreeSet<(&str, &str)>>::new();
        for Module { path: by, named, .. } in &modules {
            for of in named {
                let end = (0..=of.len()).rev().find(|end| paths.contains(&of[..*end])).unwrap();
                let common = by.iter().zip(&of[..end]).take_while(|(a, b)| a == b).count();
                let is_type = of.get(end).is_none_or(|name| name.starts_with(char::is_uppercase));
                if common < by.len() && (common < end || !is_type) {
                    let below = if common < end { &*of[common] } else { "itself" };
                    parents.entry(&by[..common]).or_default().insert((&*by[common], below));
                }
            }
        }
        for (parent, mut edges) in parents {
            while let Some(leaf) = edges.iter().find(|(_, of)| edges.iter().all(|(by, _)| by != of)).map(|edge| edge.1)
            {
                edges.retain(|(_, of)| *of != leaf);
            }
            assert!(edges.is_empty(), "{folder} {}: {edges:?}", parent.join("::"));
        }
    }
}

/// A longer statement is a `.sql` file, which can be read and run.
#[test]
fn a_statement_in_code_has_at_most_ten_lines() {
    // The settings of a session, a function that depends on the table, and what runs before there is a schema.
    let longer = ["crates/pg-session/src/lib.rs", "src/capture/function_text.rs", "src/apply/position.rs"];
    let words = ["select ", "insert into ", "update ", "delete from ", "create "];
    for (name, code) in ["src", "crates"].into_iter().flat_map(code_below) {
        for text in code.replace("\\\"", "").split('"').skip(1).step_by(2) {
            // The first line is the statement's name.
            let is_long = text.trim().lines().count() > 11 && words.iter().any(|word| text.contains(word));
            assert!(!is_long || longer.iter().any(|longer| name.ends_with(longer)), "{name}: {text}");
        }
    }
}

/// The name says in `pg_stat_activity` and in a log which statement it is.
#[test]
fn a_statement_in_code_begins_with_its_name() {
    for (paths, module) in SQL {
        for (file, code) in paths.iter().flat_map(|path| code_below(path)) {
            for call in ["query(", "query_as(", "query_scalar(", "raw_sql("] {
                for statement in code.split(call).skip(1).filter_map(|text| text.trim_start().strip_prefix('"')) {
                    assert!(statement.starts_with(&format!("-- {module}.")), "{file}: {call}\"{statement:.60}");
                }
            }
            assert!(!code.contains("concat!(") && !code.contains("macro_rules!"), "{file}: SQL is made by no macro");
        }
    }
}
