//! Change capture: the triggers that write the keys of changed rows to the log.
//!
//! Knows no consumer.

mod function_text;
pub(crate) mod functions;
mod new_tables;
mod stamps;
mod tracking;
pub(crate) mod untracking;
mod waiting;

use sqlx::{PgConnection, PgPool};

use cdc_dataset::Faults;
use pg_session::failure::SqlFailure;
use pg_session::table_name::Table;
use pg_session::wait;

pub use functions::Removals;
pub use tracking::Tracked;
pub use waiting::Queue;

/// The calls that put triggers on tables and remove them, over this pool.
#[derive(Clone, Copy, Debug)]
pub struct Triggers<'p>(pub &'p PgPool);

/// Why a table's changes can't be captured. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no table `{0}`")]
    NoTable(String),
    #[error("{0}")]
    Uncapturable(String),
    /// A partition: writes through its parent would go unseen.
    #[error("`{table}` is a partition: name `{parent}`, whose partition it is")]
    Partition { table: String, parent: String },
    #[error("{0}")]
    Mismatch(Faults),
    #[error("`{0}` needs no triggers, by its `capture`")]
    NeedsNone(String),
    #[error(
        "dataset `{other}` is of the same table as `{dataset}`, and needs its triggers: take that out of the file first"
    )]
    Shared { dataset: String, other: String },
    #[error("`{table}` is too busy: {holders} kept it from being locked; try again later")]
    Busy { table: String, holders: String },
    #[error(
        "`{table}` needs {locks} locks at once, with its partitions, and takes at most half of the {free} that Postgres \
         is sure to have free now: raise max_locks_per_transaction"
    )]
    TooManyLocks { table: String, locks: i64, free: i64 },
    #[error("the database role `{role}` may not change the triggers of `{table}`: run this as its owner, `{owner}`")]
    NotOwner { table: String, role: String, owner: String },
    #[error(
        "the database role `{0}` may not make the functions of the triggers: run GRANT CREATE ON SCHEMA cdc_export TO {0}"
    )]
    NoCreate(String),
    /// The second transaction of `untrack` failed.
    #[error(
        "`{table}` is no longer captured: its triggers are gone, so writes need no room in the change log any more. That could not be noted, \
         so a `[[tables]]` block with `track = true` may put them back: run this command again when the cause is mended, or take \
         `track = true` out of the file until then"
    )]
    NotNoted {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("the database role may not put triggers on `{table}`")]
    Denied {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error("the triggers of `{table}` can't write to cdc_export.change_log, so each write of the table would fail")]
    LogRefuses {
        table: String,
        #[source]
        cause: sqlx::Error,
    },
    #[error(
        "somebody has put row security, a rule, a trigger or a constraint on cdc_export.change_log, so writes may fail or not be logged: \
         remove it"
    )]
    LogAltered,
    #[error("Postgres refused")]
    Sql(#[from] sqlx::Error),
}

impl Error {
    /// Returns the error of a try to lock a table. The end of the last try names the transactions.
    fn busy(table: &Table) -> Error {
        Error::Busy { table: table.to_string(), holders: String::new() }
    }

    /// Returns the error of a statement that locks or changes a table.
    fn of_table(table: &Table, cause: sqlx::Error) -> Error {
        match SqlFailure::of(&cause) {
            // For example a deadlock with a transaction that has read the table and now writes to it.
            SqlFailure::LockTimeout | SqlFailure::Conflict => Error::busy(table),
            SqlFailure::Denied => Error::Denied { table: table.to_string(), cause },
            _ => Error::Sql(cause),
        }
    }
}

const OTHER_PROCESS: &str = "another process that starts, or runs `track` or `migrate`, keeps the row of cdc_export.locks: let it go on, \
    or end its session: select * from pg_locks where relation = 'cdc_export.locks'::regclass";

/// Lets one process at a time install triggers: of replicas that start at once, one installs them, and the others find
/// them installed.
async fn one_at_a_time(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::raw_sql(
        "-- source.capture.one_at_a_time
         set local statement_timeout = 0; set local lock_timeout = 0;
         select from cdc_export.locks where name = 'track' for update",
    );
    wait::named(OTHER_PROCESS, lock.execute(conn)).await.map(drop)
}
