//! Where Postgres' programs may be downloaded from, and what the archive has to be.

use std::net::IpAddr;
use std::str::FromStr;

use url::Url;

/// A web folder of Postgres' programs: `{version}/postgresql-{version}-{target}.tar.gz`.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// Without a `/` at its end.
    pub(super) url: String,
    /// The checksum of its archive, if it isn't the one in the source.
    pub(super) checksum: Option<Checksum>,
}

impl Mirror {
    /// With this checksum of its archive, in place of the ones in the source.
    pub fn with_checksum(self, checksum: Checksum) -> Mirror {
        Mirror { checksum: Some(checksum), ..self }
    }
}

/// The SHA-256 of an archive, in 64 small hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum(pub(super) String);

/// A text that is no SHA-256.
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
    /// The builds of the `postgresql-binaries` project.
    fn default() -> Mirror {
        let url = "https://github.com/theseus-rs/postgresql-binaries/releases/download".to_owned();
        Mirror { url, checksum: None }
    }
}

/// A text that is no address of a web folder.
#[derive(Debug, thiserror::Error)]
#[error("not an https address without a password, nor an http one of this machine")]
pub struct NotAMirror;

impl FromStr for Mirror {
    type Err = NotAMirror;

    fn from_str(text: &str) -> Result<Mirror, NotAMirror> {
        let url: Url = text.parse().map_err(|_| NotAMirror)?;
        // A password in it would be logged.
        let is_open = url.query().is_none() && url.username().is_empty() && url.password().is_none();
        let usable = match url.scheme() {
            "https" => is_open,
            // Others on the way could read and change what is sent.
            "http" => is_open && url.host_str().is_some_and(is_this_machine),
            _ => false,
        };
        let mirror = Mirror { url: text.trim_end_matches('/').to_owned(), checksum: None };
        if usable { Ok(mirror) } else { Err(NotAMirror) }
    }
}

/// Whether a host is this machine: an address of the loopback, or `localhost`.
fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}
