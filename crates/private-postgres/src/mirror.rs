//! The mirror from which the Postgres programs are downloaded, and the expected checksum of the archive.

use std::net::IpAddr;
use std::str::FromStr;

use url::Url;

/// A web folder with archives of the Postgres programs: `{version}/postgresql-{version}-{target}.tar.gz`.
///
/// ```
/// use private_postgres::mirror::{Checksum, Mirror};
///
/// let mirror: Mirror = "https://files.example.com/postgres".parse().unwrap();
/// let checksum: Checksum = "ab".repeat(32).parse().unwrap();
/// let _mirror = mirror.with_checksum(checksum);
/// // The address is logged, so it may have no password. Without TLS only this machine is accepted.
/// assert!("https://user:secret@files.example.com".parse::<Mirror>().is_err());
/// assert!("http://files.example.com".parse::<Mirror>().is_err());
/// ```
#[derive(Clone, Debug)]
pub struct Mirror {
    /// The URL, without a `/` at its end.
    pub(super) url: String,
    /// The checksum of the archive, if the operator set one.
    pub(super) checksum: Option<Checksum>,
}

impl Mirror {
    /// Returns the mirror with this checksum, which replaces the known checksums.
    pub fn with_checksum(self, checksum: Checksum) -> Mirror {
        Mirror { checksum: Some(checksum), ..self }
    }
}

/// The SHA-256 of an archive, as 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum(pub(super) String);

/// The error of a text that is not a SHA-256.
#[derive(Debug, thiserror::Error)]
#[error("not a SHA-256 of 64 hexadecimal digits")]
pub struct NotAChecksum;

impl FromStr for Checksum {
    type Err = NotAChecksum;

    fn from_str(text: &str) -> Result<Checksum, NotAChecksum> {
        let is_one = text.len() == 64 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if is_one { Ok(Checksum(text.to_ascii_lowercase())) } else { Err(NotAChecksum) }
    }
}

impl Default for Mirror {
    /// Returns the mirror of the `postgresql-binaries` project.
    fn default() -> Mirror {
        let url = "https://github.com/theseus-rs/postgresql-binaries/releases/download".to_owned();
        Mirror { url, checksum: None }
    }
}

/// The error of a text that is not an allowed URL of a mirror.
#[derive(Debug, thiserror::Error)]
#[error("not an https address without a password, nor an http one of this machine")]
pub struct NotAMirror;

impl FromStr for Mirror {
    type Err = NotAMirror;

    fn from_str(text: &str) -> Result<Mirror, NotAMirror> {
        let url: Url = text.parse().map_err(|_| NotAMirror)?;
        // The URL is logged, so it must not contain a password.
        let is_open = url.query().is_none() && url.username().is_empty() && url.password().is_none();
        let usable = match url.scheme() {
            "https" => is_open,
            // Without TLS, others in the network could read and change the data.
            "http" => is_open && url.host_str().is_some_and(is_this_machine),
            _ => false,
        };
        let mirror = Mirror { url: text.trim_end_matches('/').to_owned(), checksum: None };
        if usable { Ok(mirror) } else { Err(NotAMirror) }
    }
}

/// Returns true if a host is this machine: a loopback address, or `localhost`.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}
