//! The triggers of the service: what each logs, and which tables have it.
//!
//! `captured` recognizes them by the letters that end their functions' names: its SQL has the `tgtype` and `tgenabled`
//! of each.

use crate::quote;

pg_rows::words! {
    /// The changes that a trigger and its function log. Its word is the last letter of the function's name.
    pub(crate) TriggerKind, "a trigger" {
        /// The rows that a statement inserted.
        Inserts = "i",
        /// The rows that a statement updated.
        Updates = "u",
        /// The rows that a statement deleted.
        Deletes = "d",
        /// A row that was written where statement triggers don't fire: by a subscription's apply worker, or with
        /// `session_replication_role = replica`.
        Replicated = "s",
        /// A row that was written to a partition. Postgres clones row triggers to every partition, those to come too,
        /// so that they see what is written directly into one; statement triggers of the parent wouldn't. A row that
        /// moves is a delete and an insert.
        Rows = "r",
        /// A statement that emptied the table.
        Truncates = "t",
    }
}

impl TriggerKind {
    pub(crate) fn of_table(is_partitioned: bool) -> impl Iterator<Item = TriggerKind> {
        TriggerKind::ALL.iter().copied().filter(move |kind| match kind {
            TriggerKind::Truncates => true,
            TriggerKind::Rows => is_partitioned,
            _ => !is_partitioned,
        })
    }
}

/// A row's key as the log has it: a text for one column, a JSON array of texts for several.
pub(crate) fn key_text(row: &str, key: &[String]) -> String {
    key_of_parts(key.iter().map(|name| format!("pg_catalog.concat({row}.{})", quote::quoted(name))))
}

/// The same, out of the texts of the key's values.
pub(crate) fn key_of_parts(parts: impl Iterator<Item = String>) -> String {
    let parts: Vec<_> = parts.collect();
    match parts.as_slice() {
        [part] => part.clone(),
        parts => format!("pg_catalog.jsonb_build_array({})::pg_catalog.text", parts.join(", ")),
    }
}
