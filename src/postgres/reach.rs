//! Describes why a database can't be reached, with a remedy for the operator. The texts contain no address: the caller
//! adds it.

use std::io;
use std::time::Duration;

use rustls::CertificateError;

use pg_session::failure::{sqlstate, withheld_message};

/// The timeout of a first connection, if its address has none.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

const NO_ANSWER_HINT: &str = "is the address right, and does no firewall lie between?";

pub(super) fn no_answer(limit: Duration) -> String {
    format!("no answer within {} seconds; {NO_ANSWER_HINT}", limit.as_secs())
}

pub(super) fn unreachable(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(cause) => network_failure(cause),
        sqlx::Error::Tls(cause) => {
            // The text of the library ends with the cause.
            let cause = cause.to_string();
            format!(
                "no connection with TLS: {cause}; see sslmode and sslrootcert, and ssl in the server's postgresql.conf"
            )
        }
        sqlx::Error::Database(reported) => {
            let next = match &*sqlstate(error) {
                "28P01" => "; are user and password right?",
                "28000" => "; is the user right, and does the server's pg_hba.conf let it in from here?",
                "3D000" => "; `createdb` makes it, or name another one",
                "42501" => "; GRANT CONNECT ON DATABASE lets the role in",
                "53300" => "; raise max_connections or the role's limit, or stop what else is connected",
                _ => "",
            };
            format!("{}{next}", reported.message())
        }
        other => withheld_message(other).unwrap_or_else(|| other.to_string()),
    }
}

fn network_failure(cause: &io::Error) -> String {
    match cause.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused; is Postgres running there?".to_owned(),
        io::ErrorKind::NotFound => "there is no such socket; is Postgres running there?".to_owned(),
        io::ErrorKind::TimedOut => format!("no answer; {NO_ANSWER_HINT}"),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            "the connection was closed at once; is it Postgres that listens there?".to_owned()
        }
        // The standard library has no error kind for failures of the resolver.
        _ if cause.to_string().contains("lookup address") => {
            format!("the host is not known ({cause}); is its name right?")
        }
        _ if is_unknown_issuer(cause) => {
            let next =
                "no authority that is trusted here has signed the server's certificate; name a file with the right one";
            format!("{cause}: {next} in sslrootcert, or with verify-ca in SSL_CERT_FILE")
        }
        _ => cause.to_string(),
    }
}

fn is_unknown_issuer(cause: &io::Error) -> bool {
    let reported = cause.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    reported.is_some_and(|reported| *reported == rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer))
}
