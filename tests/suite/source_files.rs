//! The source's files, and the rules of their text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

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

/// Returns the code of the Rust files below a folder, without comments and tests.
pub(crate) fn code_below(folder: &str) -> Vec<(String, String)> {
    let code = |text: String| {
        let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
        code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
    };
    files_below(&[folder], "rs").into_iter().map(|(name, text)| (name, code(text))).collect()
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
