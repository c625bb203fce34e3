//! The source's files.

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
