//! The statements in files below `src`: each can be prepared on a migrated database with the parameters that its head lists.
//!
//! A file begins with `-- store.queue.claim`, its name. Further comments may follow, and then a line for each parameter, such as
//! `-- $1 text[]: the formats that the process knows`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use sqlx::{AssertSqlSafe, Executor};

use crate::harness::Database;
use crate::source_files::source_files;

struct StatementFile {
    path: PathBuf,
    text: String,
}

impl StatementFile {
    /// The top-level module that the file belongs to.
    fn top(&self) -> &str {
        self.path.components().next().unwrap().as_os_str().to_str().unwrap()
    }

    /// The types of the parameters in the order of their numbers.
    fn parameters(&self) -> Vec<String> {
        let heads: Vec<_> = self.text.lines().filter_map(|line| line.strip_prefix("-- $")).collect();
        let parameter = |(place, head): (usize, &&str)| {
            let (number, rest) = head.split_once(' ').unwrap();
            assert_eq!(number, (place + 1).to_string(), "{}: {head}", self.path.display());
            rest.split_once(": ").unwrap_or_else(|| panic!("{}: {head}", self.path.display())).0.to_owned()
        };
        heads.iter().enumerate().map(parameter).collect()
    }
}

fn statement_files() -> Vec<StatementFile> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut files, mut folders) = (Vec::new(), vec![src.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "sql") {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push(StatementFile { path: path.strip_prefix(&src).unwrap().to_owned(), text });
            }
        }
    }
    // Outside of the store, a file without a name is a piece of a statement that the code completes.
    files.retain(|file| file.top() == "store" || file.text.starts_with(&format!("-- {}.", file.top())));
    assert!(!files.is_empty());
    files
}

#[test]
fn a_statement_file_is_headed_by_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for file in statement_files() {
        let StatementFile { path, text } = &file;
        let head = text.lines().next().unwrap();
        assert!(head.starts_with(&format!("-- {}.", file.top())), "{}: {head}", path.display());
        assert!(names.insert(head.to_owned()), "{}: {head} is the name of two statements", path.display());
        assert!(text.lines().all(|line| line.len() <= 120), "{}", path.display());
    }
}

#[tokio::test]
async fn every_statement_file_can_be_prepared() {
    let database = Database::new().await;
    let mut conn = database.pool.acquire().await.unwrap();
    conn.execute("set search_path = pg_catalog, cdc_export, pg_temp").await.unwrap();
    for (number, file) in statement_files().iter().enumerate() {
        let parameters = file.parameters();
        let types = if parameters.is_empty() { String::new() } else { format!("({})", parameters.join(", ")) };
        let prepare = format!("prepare s{number} {types} as {}", file.text);
        // Without a declared type, a number beyond the last parameter would be accepted.
        assert!(!file.text.contains(&format!("${}", parameters.len() + 1)), "{}", file.path.display());
        if let Err(error) = conn.execute(AssertSqlSafe(prepare)).await {
            panic!("{}: {error}", file.path.display());
        }
    }
}

/// A longer statement is a file of its own.
#[test]
fn a_statement_in_code_has_at_most_ten_lines() {
    for file in source_files().iter().filter(|file| file.top() == "store") {
        for (at, _) in file.code.match_indices("\"-- store.") {
            let text = file.code[at + 1..].split('"').next().unwrap();
            // The first line is the statement's name.
            assert!(text.lines().count() <= 11, "src/{}: {text}", file.name);
        }
    }
}
