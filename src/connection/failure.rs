//! The meaning of sqlx errors, and the timeout of calls.
//!
//! Sorts by what can be done about an error (SQLSTATEs: PostgreSQL documentation, appendix A). What that is to a
//! caller, each module says in its own errors.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// The meaning of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SqlFailure {
    /// Postgres can't be reached, is stopping or out of resources, ended the connection, or the pool has none that is
    /// free.
    Unavailable,
    /// Postgres is starting, or recovering from a crash.
    Starting,
    /// The statement was ended, by its timeout or by somebody.
    Cancelled,
    /// The server, or the session, is read-only.
    ReadOnly,
    /// A lock was not to be had in time.
    LockTimeout,
    /// Another transaction was in the way: a deadlock, or a serialization failure.
    Conflict,
    /// The role may not.
    Denied,
    /// There is no such table or column.
    NotThere,
    /// There is such a row already.
    Duplicate,
    /// A text that can't be sent as UTF-8.
    InvalidText,
    /// Postgres reports something else, which its SQLSTATE tells.
    Refused,
    /// sqlx reports something else.
    Client,
}

impl SqlFailure {
    /// The meaning of an error.
    pub(crate) fn of(error: &sqlx::Error) -> SqlFailure {
        let told = match error {
            sqlx::Error::Database(told) => told,
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed => return SqlFailure::Unavailable,
            _ => return SqlFailure::Client,
        };
        let code = told.code().unwrap_or_default();
        let is_fatal = told
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|told| matches!(told.severity(), PgSeverity::Fatal | PgSeverity::Panic));
        match &*code {
            "57P03" => SqlFailure::Starting,
            // A fatal error refuses or ends the connection, whatever its code.
            _ if is_fatal => SqlFailure::Unavailable,
            "57014" => SqlFailure::Cancelled,
            "25006" => SqlFailure::ReadOnly,
            "55P03" => SqlFailure::LockTimeout,
            "42501" => SqlFailure::Denied,
            "42P01" | "42703" => SqlFailure::NotThere,
            "23505" => SqlFailure::Duplicate,
            "22021" | "22P05" => SqlFailure::InvalidText,
            // Connection exceptions, insufficient resources, operator intervention.
            code if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => SqlFailure::Unavailable,
            code if code.starts_with("40") => SqlFailure::Conflict,
            _ => SqlFailure::Refused,
        }
    }
}

/// The SQLSTATE of an error; empty: Postgres reported none.
pub(crate) fn sqlstate(error: &sqlx::Error) -> Cow<'_, str> {
    error.as_database_error().and_then(|told| told.code()).unwrap_or_default()
}

/// Gives a call up after `timeout`: nothing else ends one when the network swallows packets. Its connection goes with
/// it, and whether it had an effect is not known. `unavailable` makes the module's own error of that.
///
/// # Errors
/// If the call fails or takes too long.
pub(crate) async fn with_timeout<T, E>(
    timeout: Duration,
    call: impl Future<Output = Result<T, E>>,
    unavailable: impl FnOnce(sqlx::Error) -> E,
) -> Result<T, E> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err(unavailable(sqlx::Error::PoolTimedOut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_without_a_free_connection_is_no_refusal() {
        assert_eq!(SqlFailure::of(&sqlx::Error::PoolTimedOut), SqlFailure::Unavailable);
        assert_eq!(SqlFailure::of(&sqlx::Error::RowNotFound), SqlFailure::Client);
    }
}
