//! The plans by which a service's statements ran, and what they read.

use crate::harness::{Database, server_log};

/// Writes the plan of each statement of a service that starts from now on, with what it read, to the server's log.
pub(crate) async fn log_plans(database: &Database) {
    let name = database.name();
    let statements = format!(
        "alter database {name} set session_preload_libraries = 'auto_explain';
         alter database {name} set auto_explain.log_min_duration = 0;
         alter database {name} set auto_explain.log_analyze = on;
         alter database {name} set auto_explain.log_timing = off"
    );
    database.run(&statements).await;
}

/// The plans of a statement in this database that the server's log has.
pub(crate) fn plans(database: &Database, statement: &str) -> Vec<String> {
    let (log, name) = (server_log(), format!("{} ", database.name()));
    // The lines of a message after its first one are indented by a tab.
    let messages = log.replace("\n\t", "\u{b}");
    let own = messages.lines().filter(|message| message.starts_with(&name) && message.contains(statement));
    own.map(|message| message.replace('\u{b}', "\n")).collect()
}

/// Returns the number of a table's entries that a plan kept, and the number that a filter removed.
pub(crate) fn cost_of(plan: &str, table: &str) -> (u64, u64) {
    let number = |line: &str, after: &str| -> f64 {
        let digits = line.split(after).nth(1).unwrap().chars().take_while(|c| c.is_ascii_digit() || *c == '.');
        digits.collect::<String>().parse().unwrap()
    };
    let (mut read, mut filtered, mut loops) = (0.0, 0.0, None);
    for line in plan.lines() {
        if let Some((_, actual)) = line.split_once("(actual ") {
            loops = line.contains(&format!(" on {table}")).then(|| number(actual, " loops="));
            read += loops.map_or(0.0, |loops| number(actual, "rows=") * loops);
        } else if line.contains("(never executed)") {
            loops = None;
        } else if let (Some(loops), true) = (loops, line.contains("Rows Removed by ")) {
            filtered += number(line, ": ") * loops;
        }
    }
    (read as u64, filtered as u64)
}
