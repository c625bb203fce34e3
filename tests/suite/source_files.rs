//! The source's files, and which names of each other's modules they use, read from their text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A file of the source: that of a module, or of a crate's root.
pub(crate) struct SourceFile {
    /// The module's path. `src/sink/draft.rs` is `["sink", "draft"]`; the roots, `lib.rs` and `main.rs`, are `[]` and
    /// `["main"]`.
    pub(crate) path: Vec<String>,
    pub(crate) name: String,
    /// The code without comments and tests.
    pub(crate) code: String,
}

/// A name of another module that a module's code has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub(crate) by: Vec<String>,
    pub(crate) of: Vec<String>,
    /// The name in that module: a type, a function, a constant. Empty where the module itself is named, to import it.
    pub(crate) name: String,
    /// As it is called where it is used: its own name, but for `use … as …`.
    pub(crate) local: String,
    pub(crate) is_handed_on: bool,
}

/// Returns the names below the clone, and the texts, of all files with this extension among `paths` and below them.
pub(crate) fn files_below(paths: &[&str], extension: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut texts, mut paths): (Vec<_>, Vec<_>) = (Vec::new(), paths.iter().map(|it| root.join(it)).collect());
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|it| it == extension) {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            texts.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
    texts.sort();
    texts
}

/// The sources of the root package, and of the crate that captures changes.
pub(crate) const ROOT: &str = "src";
pub(crate) const CAPTURE: &str = "crates/cdc-capture/src";

/// All files of a crate.
pub(crate) fn source_files(folder: &str) -> Vec<SourceFile> {
    let file = |(name, text): &(String, String)| SourceFile::new(folder, name, text);
    let mut files: Vec<SourceFile> = files_below(&[folder], "rs").iter().map(file).collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

impl SourceFile {
    pub(crate) fn new(folder: &str, name: &str, text: &str) -> SourceFile {
        let path = match name.strip_prefix(folder).unwrap_or(name).trim_start_matches('/') {
            "lib.rs" => Vec::new(),
            name => name.trim_end_matches(".rs").split('/').map(str::to_owned).collect(),
        };
        let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap();
        let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        SourceFile { path, name: name.to_owned(), code: code.join("\n") }
    }

    pub(crate) fn top(&self) -> &str {
        self.path.first().map_or("lib", String::as_str)
    }
}

/// Every use of one module's name by another. Methods are not seen: their calls name no module.
pub(crate) fn uses(files: &[SourceFile]) -> BTreeSet<Use> {
    let paths: BTreeSet<&[String]> = files.iter().map(|file| &*file.path).collect();
    let mut uses = BTreeSet::new();
    for file in files {
        let is_child = |name: &str| paths.contains(&*[&*file.path, &[name.to_owned()]].concat());
        let absolute = |path: &[String]| -> Option<Vec<String>> {
            let rest = &path[1..];
            match &*path[0] {
                "crate" => Some(rest.to_vec()),
                "self" => Some([&*file.path, rest].concat()),
                "super" => Some([&file.path[..file.path.len() - 1], rest].concat()),
                child if is_child(child) => Some([&*file.path, path].concat()),
                _ => None,
            }
        };
        let mut add = |path: &[String], local: Option<&str>, is_handed_on: bool| {
            // The longest beginning that is a module; what comes after it is that one's name.
            let Some(end) = (0..=path.len()).rev().find(|end| paths.contains(&path[..*end])) else { return };
            if path[..end] != *file.path {
                let name = path.get(end).cloned().unwrap_or_default();
                uses.insert(Use {
                    by: file.path.clone(),
                    of: path[..end].to_vec(),
                    local: local.unwrap_or(&name).to_owned(),
                    name,
                    is_handed_on,
                });
            }
        };
        let (declared, code) = declarations(&file.code);
        let mut imported = BTreeMap::new();
        for (tree, is_handed_on) in declared {
            for (path, local) in branches(&tree) {
                let Some(path) = absolute(&path) else { continue };
                add(&path, Some(&local), is_handed_on);
                imported.insert(local, path);
            }
        }
        for path in paths_in(&code) {
            let whole = match imported.get(&path[0]) {
                Some(import) => Some([&**import, &path[1..]].concat()),
                None => absolute(&path),
            };
            if let Some(whole) = whole {
                add(&whole, None, false);
            }
        }
    }
    uses
}

/// The texts of code, in their order, without escapes.
pub(crate) fn texts(code: &str) -> Vec<String> {
    let code = code.replace(r"\\", "").replace("\\\"", "").replace("'\"'", "");
    let (mut texts, mut rest) = (Vec::new(), &*code);
    while let Some((before, after)) = rest.split_once('"') {
        let (text, behind) = after.split_once(if before.ends_with('#') { "\"#" } else { "\"" }).unwrap();
        texts.push(text.to_owned());
        rest = behind;
    }
    texts
}

/// The trees of all `use` declarations, with whether they are `pub`, and the code without them.
fn declarations(code: &str) -> (Vec<(String, bool)>, String) {
    let (mut trees, mut rest) = (Vec::new(), String::new());
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let (before, tree) = line.trim_start().split_once("use ").unwrap_or(("none", ""));
        if !(before.is_empty() || before.starts_with("pub")) || !tree.contains("::") {
            rest.push_str(line);
            rest.push('\n');
            continue;
        }
        let mut tree = tree.to_owned();
        while !tree.ends_with(';') {
            tree.push_str(lines.next().unwrap());
        }
        trees.push((tree.trim_end_matches(';').to_owned(), before.starts_with("pub")));
    }
    (trees, rest)
}

/// The paths of a `use` tree, each with the name that it gives: `a::{self, b as c}` is `a`, called `a`, and `a::b`,
/// called `c`.
fn branches(tree: &str) -> Vec<(Vec<String>, String)> {
    let (mut heads, mut branch, mut found) = (vec![String::new()], String::new(), Vec::new());
    for c in tree.chars().chain([',']) {
        match c {
            '{' => heads.push(format!("{}{}", heads.last().unwrap(), branch.trim())),
            ',' | '}' if branch.trim().is_empty() => {}
            ',' | '}' => found.push(format!("{}{}", heads.last().unwrap(), branch.trim())),
            c => branch.push(c),
        }
        if matches!(c, '{' | ',' | '}') {
            branch.clear();
        }
        if c == '}' {
            heads.pop();
        }
    }
    let path_and_name = |branch: &String| {
        let (path, local) = branch.split_once(" as ").unwrap_or((branch, ""));
        let path: Vec<String> = path.trim_end_matches("::self").split("::").map(str::to_owned).collect();
        let local = if local.is_empty() { path.last().unwrap().clone() } else { local.to_owned() };
        (path, local)
    };
    found.iter().map(path_and_name).collect()
}

/// Names in code that are joined by `::`, and single ones, which may be imported.
fn paths_in(code: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    for word in code.split(|c| !is_word(c)) {
        // In `a::b: C`, the type is already a word of its own.
        let word = word.trim_end_matches(':');
        let path: Vec<String> = word.split("::").map(str::to_owned).collect();
        if path.len() > 1 && path.iter().all(|name| !name.is_empty() && !name.contains(':')) {
            paths.insert(path);
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rust() -> Vec<(String, String)> {
        files_below(&["benches", "build.rs", "crates", "examples", "src", "tests"], "rs")
    }

    /// Returns true if a doc comment, a file's head or a heading begins with a relative clause.
    fn is_relative(text: &str) -> bool {
        ["What", "Who", "Whether", "Of", "How"].contains(&text.split(' ').next().unwrap())
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
        for (name, text) in files_below(&["crates", "src"], "rs") {
            for line in SourceFile::new("", &name, &text).code.lines() {
                let mut words = line.trim_start_matches("pub(crate) ").trim_start_matches("pub(super) ").split(' ');
                let mut word = words.next().unwrap();
                if word == "pub" {
                    word = words.next().unwrap_or_default();
                }
                if ["enum", "struct", "trait", "type"].contains(&word) {
                    let rest = words.next().unwrap_or_default();
                    let of = rest.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                    files.entry(of.to_owned()).or_default().insert(name.clone());
                }
            }
        }
        files.retain(|of, files| files.len() > 1 && !["Error", "Settings"].contains(&&**of));
        assert!(files.is_empty(), "{files:#?}");
    }

    #[test]
    fn every_form_of_a_use_is_seen() {
        let file = |name: &str, text: &str| SourceFile::new("", name, text);
        let user = "use crate::a::{self, b::{C, d}, e as f};\npub use child::G;\nmod child;\n\
                    fn x() { a::y(); d::z(); f(); super::h(); crate::a::b::K }";
        let files = [
            file("a.rs", ""),
            file("a/b.rs", ""),
            file("a/b/d.rs", ""),
            file("u.rs", user),
            file("u/child.rs", "use super::L;\nfn i() { crate::u::m() }"),
            file("lib.rs", ""),
        ];
        let seen: Vec<String> = uses(&files)
            .into_iter()
            .filter(|it| !it.name.is_empty())
            .map(|it| {
                format!(
                    "{} {}.{}{}",
                    it.by.join("."),
                    it.of.join("."),
                    it.name,
                    ["", "!"][usize::from(it.is_handed_on)]
                )
            })
            .collect();
        let expected =
            ["u .h", "u a.e", "u a.y", "u a.b.C", "u a.b.K", "u a.b.d.z", "u u.child.G!", "u.child u.L", "u.child u.m"];
        assert_eq!(seen, expected);
    }
}
