//! The SQL that says whether triggers capture the changes of a table, shared by every statement about it.
//!
//! A trigger's kind is the letter that ends its function's name ([`TriggerKind`](crate::trigger::TriggerKind))
//! and its `tgenabled`: `O` fires on ordinary writes, `R` on replicated writes, `A` on both.

/// CTEs of the capture of each table of the CTE `target`. The last one, `capture`, has one row for each table:
///
/// - `root`: the table's oid.
/// - `captured`: every trigger that the table and its partitions need exists, fires for all writers, and logs changes
///   of this very table.
/// - `mute_role`: the role that the functions run as, if it may not write to the log. Writes to the table then fail.
/// - `is_log_altered`: the log has row security, a rule, a trigger or a constraint that isn't the service's.
/// - `logs_every_truncate`: no partition lacks the trigger for TRUNCATE, which `track` puts on partitions that came
///   since.
/// - `set`: the beginning of the names of the functions that the triggers call.
/// - `logged_key`: the key that the triggers log. Without triggers, the key that `track` saved. Null: the table isn't
///   tracked.
/// - `relations`: an object, by the oids of the table and its partitions. A member is an array of three: the stamps of
///   the triggers that log rows, the stamp of the trigger that logs a TRUNCATE, and the number of the file.
/// - `functions`: a stamp of the functions.
///
/// A trigger is recognized by the function that it calls, not by its name: a partition that was a table by itself has
/// triggers of its own. A function names its table by oid and its key in its first line.
pub(crate) const CAPTURE: &str = include_str!("captured.sql");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capture_and_the_functions_know_the_same_plain_keys() {
        let types = |sql: &str| sql.split_once("<> all ('{").unwrap().1.split_once('}').unwrap().0.to_owned();
        assert_eq!(types(CAPTURE), types(include_str!("capture/functions/is_plain_key.sql")));
    }
}
