//! Why a database can't be reached, and what its operator can do about it. The texts name no address: the caller does.

use std::io;
use std::time::Duration;

use crate::connection::failure::sqlstate;

/// How long a server may take to answer a new connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// What is said of a server that doesn't answer.
pub(super) fn no_answer() -> String {
    format!(
        "no answer within {} seconds; is the address right, and does no firewall lie between?",
        CONNECT_TIMEOUT.as_secs()
    )
}

/// What is said of an error of a new connection.
pub(super) fn unreachable(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(cause) => of_network(cause),
        sqlx::Error::Tls(cause) => {
            // The library's text has the cause at its end.
            let cause = cause.to_string();
            format!(
                "no connection with TLS: {cause}; see sslmode and sslrootcert, and ssl in the server's postgresql.conf"
            )
        }
        sqlx::Error::Database(told) => {
            let next = match &*sqlstate(error) {
                "28P01" => "; are user and password right?",
                "28000" => "; is the user right, and does the server's pg_hba.conf let it in from here?",
                "3D000" => "; `createdb` makes it, or name another one",
                "42501" => "; GRANT CONNECT ON DATABASE lets the role in",
                "53300" => "; raise max_connections or the role's limit, or stop what else is connected",
                _ => "",
            };
            format!("{}{next}", told.message())
        }
        other => other.to_string(),
    }
}

fn of_network(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused; is Postgres running there?".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket; is Postgres running there?".to_owned(),
        io::ErrorKind::TimedOut => no_answer(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the connection was closed at once; is it Postgres that listens there?".to_owned()
        }
        // The standard library has no kind of its own for what the resolver says.
        _ if cause.to_string().contains("lookup address") => {
            format!("the host is not known ({cause}); is its name right?")
        }
        _ => cause.to_string(),
    }
}
