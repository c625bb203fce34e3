//! The rules of the source's text: lengths, beginnings, names of types, and what the torture may use.

use std::collections::{BTreeMap, BTreeSet};

use crate::source_files::{code_below, files_below};

fn rust() -> Vec<(String, String)> {
    files_below(&["benches", "build.rs", "crates", "examples", "src", "tests"], "rs")
}

#[test]
fn no_comment_is_longer_than_120_columns() {
    let mut long = Vec::new();
    for (name, text) in rust() {
        for (number, line) in (1..).zip(text.lines()) {
            // A link can't be broken.
            if line.trim_start().starts_with("//") && line.chars().count() > 120 && !line.contains("https://") {
                long.push(format!("{name}:{number}"));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// Returns true if a doc comment, a file's head or a heading begins with a relative clause.
fn is_relative(text: &str) -> bool {
    ["What", "Who", "Whether", "Of", "How"].contains(&text.split(' ').next().unwrap())
}

#[test]
fn no_description_begins_with_a_relative_clause() {
    let mut found = Vec::new();
    for (name, text) in rust() {
        let mut before = "";
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            // The docs of items are read in `src` and `crates`, the heads of files everywhere.
            let is_source = ["crates/", "src/"].iter().any(|folder| name.starts_with(folder));
            let mark = if is_source && !line.starts_with("//!") { "/// " } else { "//! " };
            let is_first = line.starts_with(mark) && !before.starts_with(mark.trim());
            if is_first && is_relative(&line[mark.len()..]) {
                found.push(format!("{name}:{number}: {line}"));
            }
            before = line;
        }
    }
    for (name, text) in files_below(&["README.md", "CONTRIBUTING.md", "docs"], "md") {
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| line.starts_with('#')) {
            if is_relative(line.trim_start_matches('#').trim()) {
                found.push(format!("{name}:{number}: {line}"));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// `Error` and `Settings` are those of their module everywhere.
#[test]
fn a_type_name_is_defined_once() {
    let mut files: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, code) in ["crates", "src"].into_iter().flat_map(code_below) {
        for line in code.lines() {
            let words: Vec<_> = line.split(' ').filter(|word| !word.starts_with("pub")).collect();
            if let ["enum" | "struct" | "trait" | "type", rest, ..] = words[..] {
                let of = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                files.entry(of.to_owned()).or_default().insert(name.clone());
            }
        }
    }
    files.retain(|of, files| files.len() > 1 && !["Error", "Settings"].contains(&&**of));
    assert!(files.is_empty(), "{files:#?}");
}

#[test]
fn the_torture_shares_no_code_with_the_service() {
    assert!(files_below(&["examples/torture"], "rs").iter().all(|(_, text)| !text.contains("cdc_export::")));
}
