//! The statements in files below `src`: each can be prepared on a migrated database with the parameters that its head
//! lists.
//!
//! A file begins with `-- store.queue.claim`, its name. Further comments may follow, and then a line for each
//! parameter, such as `-- $1 text[]: the formats that the process knows`. A file without a name is a piece of the
//! statements that include it.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Executor};

use crate::harness::Database;
use crate::source_files::files_below;

/// An example of each piece that the code makes for a statement: the file, the piece's name and its SQL.
const MADE_PIECES: [(&str, &str, &str); 6] = [
    ("store/activity/hours.sql", "list", "select j.id, j.export_type || ' ' || j.status as key from cdc_export.jobs j"),
    ("source/parallel_apply/find.sql", "is_parallel", "true"),
    ("source/lag.sql", "waiting", "select now() as since, lane.by_log as is_none"),
    ("store/deliveries/list.sql", "receiver", "(select * from cdc_export.deliveries where endpoint = $2)"),
    ("store/deliveries/list.sql", "condition", "d.delivered_at is null and d.dead_at is null"),
    (
        "store/lists/jobs.sql",
        "list",
        "select e.job as id, e.dataset || ' ' || e.status as key from cdc_export.exports e",
    ),
];

struct SqlFile {
    /// The path below `src`, or below the sources of `cdc-capture` with `source` in front of it.
    path: String,
    text: String,
}

impl SqlFile {
    /// The top-level module that the file belongs to.
    fn top(&self) -> &str {
        self.path.split('/').next().unwrap()
    }

    /// Returns true for a statement, and false for a piece.
    fn is_statement(&self) -> bool {
        self.text.starts_with(&format!("-- {}.", self.top()))
    }

    /// The types of the parameters in the order of their numbers.
    fn parameters(&self) -> Vec<String> {
        let heads: Vec<_> = self.text.lines().filter_map(|line| line.strip_prefix("-- $")).collect();
        let parameter = |(place, head): (usize, &&str)| {
            let (number, rest) = head.split_once(' ').unwrap();
            assert_eq!(number, (place + 1).to_string(), "{}: {head}", self.path);
            rest.split_once(": ").unwrap_or_else(|| panic!("{}: {head}", self.path)).0.to_owned()
        };
        heads.iter().enumerate().map(parameter).collect()
    }

    fn included(&self) -> BTreeSet<&str> {
        self.text.lines().filter_map(|line| line.trim().strip_prefix("-- include ")).collect()
    }

    /// The statement with a piece in place of each line that includes it. A piece may include another one.
    fn whole(&self, files: &[SqlFile]) -> String {
        let piece = |name: &str| -> String {
            let made = MADE_PIECES.iter().find(|(path, piece, _)| *path == self.path && *piece == name);
            let path = format!("{}/{name}", self.top());
            let file = files.iter().find(|file| file.path == path).map(|file| &*file.text);
            let found = made.map(|made| made.2).or(file);
            found.unwrap_or_else(|| panic!("{}: there is no piece {name}", self.path)).to_owned()
        };
        let expanded = |text: &str| {
            let line = |line: &str| line.trim().strip_prefix("-- include ").map_or_else(|| line.to_owned(), &piece);
            text.lines().map(line).collect::<Vec<_>>().join("\n")
        };
        let mut whole = self.text.clone();
        while whole.lines().any(|line| line.trim().starts_with("-- include ")) {
            whole = expanded(&whole);
        }
        whole
    }
}

fn sql_files() -> Vec<SqlFile> {
    let file = |(name, text): (String, String)| {
        let path = name.replace("crates/cdc-capture/src/", "source/").replace("crates/cdc-client/", "");
        SqlFile { path: path.trim_start_matches("src/").to_owned(), text }
    };
    // `schema.sql` has many statements.
    files_below(&["src", "crates"], "sql").into_iter().filter(|(name, _)| name.contains("src/")).map(file).collect()
}

#[test]
fn a_statement_file_is_headed_by_a_name_of_its_own() {
    let mut names = BTreeSet::new();
    for file in sql_files() {
        let name = file.text.lines().next().unwrap().to_owned();
        assert!(!file.is_statement() || names.insert(name), "{}: two statements have its name", file.path);
        assert_eq!(file.text.lines().find(|line| line.len() > 120), None, "{}", file.path);
        let names_jobs = ["exports", "jobs", "lanes"].iter().any(|it| file.text.contains(&format!("cdc_export.{it}")));
        assert!(file.top() != "source" || !names_jobs, "{}: the crate doesn't know the service's tables", file.path);
    }
}

#[test]
fn a_file_that_is_no_statement_is_a_piece_of_one() {
    let files = sql_files();
    let mut pieces = BTreeSet::new();
    for file in &files {
        pieces.extend(file.included().into_iter().map(|name| format!("{}/{name}", file.top())));
    }
    for SqlFile { path, .. } in files.iter().filter(|file| !file.is_statement()) {
        assert!(pieces.contains(path), "{path} has no name, and no statement includes it");
    }
}

#[tokio::test]
async fn every_statement_file_can_be_prepared() {
    let database = Database::new().await;
    let mut conn = database.pool.acquire().await.unwrap();
    conn.execute("set search_path = pg_catalog, cdc_export, pg_temp").await.unwrap();
    let files = sql_files();
    for (number, file) in files.iter().filter(|file| file.is_statement()).enumerate() {
        let (parameters, whole) = (file.parameters(), file.whole(&files));
        let types = if parameters.is_empty() { String::new() } else { format!("({})", parameters.join(", ")) };
        // Without a declared type, a number beyond the last parameter would be accepted.
        assert!(!whole.contains(&format!("${}", parameters.len() + 1)), "{}", file.path);
        let prepare = format!("prepare s{number} {types} as {whole}");
        if let Err(error) = conn.execute(AssertSqlSafe(prepare)).await {
            panic!("{}: {error}", file.path);
        }
    }
}
