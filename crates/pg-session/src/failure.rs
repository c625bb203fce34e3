//! Classifies errors of sqlx, and limits the time of calls.
//!
//! The classes correspond to possible reactions (SQLSTATEs: PostgreSQL documentation, appendix A). Each module
//! translates them into its own errors.

use std::borrow::Cow;
use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SqlFailure {
    /// Postgres can't be reached, is out of resources or ended the connection. Or the pool has no free
    /// connection.
    Unavailable,
    /// Postgres is starting or stopping, or recovering from a crash. Or an administrator ended the session.
    Starting,
    /// The statement was cancelled by its timeout or by a user.
    Cancelled,
    /// The server, or the session, is read-only.
    ReadOnly,
    LockTimeout,
    /// A deadlock or a serialization conflict with another transaction.
    Conflict,
    /// A foreign server has refused or can't be reached. The connection to Postgres goes on.
    ForeignServer,
    Denied,
    NotThere,
    Duplicate,
    InvalidText,
    /// Postgres reports another error, which its SQLSTATE identifies.
    Refused,
    /// sqlx reports another error.
    Client,
}

/// The reason why a session that can't write is refused.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub enum ReadOnlySession {
    /// A standby's snapshots also omit transactions that are in progress on the primary.
    #[error("this Postgres is a standby: use its primary")]
    Standby,
    /// The operator has set it, maybe because a disk is full.
    #[error(
        "the role's sessions are read-only: `ALTER ROLE … SET default_transaction_read_only = off` lets the role write"
    )]
    Setting,
}

impl From<ReadOnlySession> for sqlx::Error {
    fn from(refusal: ReadOnlySession) -> sqlx::Error {
        sqlx::Error::Io(std::io::Error::other(refusal))
    }
}

impl SqlFailure {
    pub fn of(error: &sqlx::Error) -> SqlFailure {
        let reported = match error {
            sqlx::Error::Database(reported) => reported,
            sqlx::Error::Io(cause) if cause.get_ref().is_some_and(|inner| inner.is::<ReadOnlySession>()) => {
                return SqlFailure::ReadOnly;
            }
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed => return SqlFailure::Unavailable,
            _ => return SqlFailure::Client,
        };
        let code = reported.code().unwrap_or_default();
        let is_fatal = reported
            .try_downcast_ref::<PgDatabaseError>()
            .is_some_and(|reported| matches!(reported.severity(), PgSeverity::Fatal | PgSeverity::Panic));
        match &*code {
            "57P01" | "57P02" | "57P03" => SqlFailure::Starting,
            // A fatal error refuses or ends the connection, regardless of its code.
            _ if is_fatal => SqlFailure::Unavailable,
            "57014" => SqlFailure::Cancelled,
            "25006" => SqlFailure::ReadOnly,
            "55P03" => SqlFailure::LockTimeout,
            "42501" => SqlFailure::Denied,
            "42P01" | "42703" => SqlFailure::NotThere,
            // An exclusion constraint is a unique one of other operators.
            "23505" | "23P01" => SqlFailure::Duplicate,
            "22021" | "22P05" => SqlFailure::InvalidText,
            // An error that ends no connection is not of this one. PgBouncer reports its own as 08P01.
            code if code.starts_with("HV") || code.starts_with("08") && code != "08P01" => SqlFailure::ForeignServer,
            // Connection exceptions, insufficient resources, operator intervention.
            code if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => SqlFailure::Unavailable,
            code if code.starts_with("40") => SqlFailure::Conflict,
            _ => SqlFailure::Refused,
        }
    }
}

/// Returns the class of the reason why Postgres can't be used.
///
/// Anybody may see it, so it has no address, no name and no message of the server. `docs/POSTGRES.md` lists the classes
/// with their remedies.
pub fn class_of_outage(error: &sqlx::Error) -> &'static str {
    match (SqlFailure::of(error), error) {
        (SqlFailure::ReadOnly, _) => "read-only",
        (SqlFailure::Starting, _) => "it is starting or stopping",
        // Or no connection of a pool was free in time.
        (SqlFailure::Cancelled | SqlFailure::LockTimeout | SqlFailure::Conflict, _)
        | (_, sqlx::Error::PoolTimedOut) => "no answer in time",
        (_, sqlx::Error::Tls(_)) => "no connection with TLS",
        (_, sqlx::Error::Io(cause)) if cause.kind() == std::io::ErrorKind::TimedOut => "no answer in time",
        (_, sqlx::Error::Io(_) | sqlx::Error::Protocol(_)) => "not reached",
        (_, _) => match &*sqlstate(error) {
            "28P01" => "the password is refused",
            // The last three: a missing database, one without ALLOW_CONNECTIONS, and one without the right CONNECT.
            "28000" | "3D000" | "55000" | "42501" => "the login is refused",
            "53300" => "too many connections",
            code if code.starts_with("53") => "out of memory or disk",
            _ => "another error",
        },
    }
}

/// Returns a text in place of Postgres's message about data (class 22), which may quote a row's value, and in place of
/// the driver's message about a password that it can't send, which quotes a character of it.
///
/// Returns `None` for any other error.
pub fn withheld_message(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let error = error.downcast_ref::<sqlx::Error>()?;
    if let sqlx::Error::Configuration(cause) = error
        && cause.to_string().starts_with("Failed to saslprep")
    {
        let why = "the driver can't send the user's name or the password: a character of it is forbidden by SASLprep";
        return Some(format!("{why}; `alter role` can give another password"));
    }
    let code = error.as_database_error()?.code()?;
    code.starts_with("22").then(|| format!("SQLSTATE {code}, whose message may quote a value"))
}

/// Formats an error and its causes in one line.
///
/// Omits repeated texts, because some libraries include the text of the cause in the error. Omits messages of Postgres
/// that may quote a row's value.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let (mut line, mut last) = (String::new(), String::new());
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let withheld = withheld_message(error);
        let is_last = withheld.is_some();
        let text = withheld.unwrap_or_else(|| error.to_string());
        if line.is_empty() {
            line.push_str(without_prefix(&text));
        } else if !last.ends_with(&text) {
            line.extend([": ", without_prefix(&text)]);
        }
        last = text;
        if is_last {
            break;
        }
    }
    line
}

/// Returns the text of an error without the additions of sqlx: a prefix, and the line number in Postgres's source.
fn without_prefix(text: &str) -> &str {
    if let Some(message) = text.strip_prefix("error communicating with database: ") {
        return message;
    }
    let Some(rest) = text.strip_prefix("error returned from database: ") else { return text };
    match rest.rsplit_once(" at line ") {
        Some((message, line)) if line.bytes().all(|byte| byte.is_ascii_digit()) => message,
        _ => rest,
    }
}

/// Returns the SQLSTATE of an error. Returns an empty text if Postgres didn't report the error.
pub fn sqlstate(error: &sqlx::Error) -> Cow<'_, str> {
    error.as_database_error().and_then(|reported| reported.code()).unwrap_or_default()
}

/// Cancels a call after `timeout`. Otherwise a call would never end if the network drops packets.
///
/// The connection of the call is closed, and its effect on the database is unknown. `unavailable` creates the error of
/// the calling module.
pub async fn with_timeout<T, E>(
    timeout: Duration,
    call: impl Future<Output = Result<T, E>>,
    unavailable: impl FnOnce(sqlx::Error) -> E,
) -> Result<T, E> {
    tokio::time::timeout(timeout, call).await.unwrap_or_else(|_| Err(unavailable(sqlx::Error::PoolTimedOut)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct ChainedError(&'static str, #[source] Option<Box<ChainedError>>);

    #[test]
    fn chain_contains_each_text_once() {
        let chained = |texts: &[&'static str]| {
            let error = texts.iter().rev().fold(None, |source, text| Some(Box::new(ChainedError(text, source))));
            chain(&error.unwrap())
        };
        assert_eq!(chained(&["can't", "no room", "No space (os error 28)"]), "can't: no room: No space (os error 28)");
        let refused = "error returned from database: relation \"a at line 7\" is not there at line 334";
        let cause = "relation \"a at line 7\" is not there at line 334";
        assert_eq!(chained(&["can't", refused, cause]), "can't: relation \"a at line 7\" is not there");
        assert_eq!(chained(&["error communicating with database: refused", "refused"]), "refused");
    }
}
