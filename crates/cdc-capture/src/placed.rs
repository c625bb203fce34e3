//! The rows of a statement about several tables: each row has the place of its table among the parameters, from 1.
//!
//! Such a statement reads its tables by `unnest((select $1))`. So the planner expects the same number of tables for
//! each array, and keeps one plan. With `unnest($1)` it would plan each call anew, which takes longer than to look at
//! one table.

/// Returns the rows of each of `tables` tables.
pub(crate) fn by_table<T>(tables: usize, rows: Vec<T>, place: impl Fn(&T) -> i64) -> Vec<Vec<T>> {
    let mut of_tables: Vec<Vec<T>> = (0..tables).map(|_| Vec::new()).collect();
    for row in rows {
        let index = usize::try_from(place(&row) - 1).expect("places begin at 1");
        of_tables[index].push(row);
    }
    of_tables
}
