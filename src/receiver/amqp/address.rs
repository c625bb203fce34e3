//! Address of a broker, including a user name and a password.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use lapin::uri::AMQPUri;
use url::{Host, Url};

/// Heartbeat in seconds. A connection without traffic for twice this time is lost. RabbitMQ's default is four times as
/// long.
const HEARTBEAT: u16 = 15;
/// Maximum size of a frame in bytes, which is RabbitMQ's default. A broker can lower it. Without this maximum, lapin
/// accepts any size that the broker names, and allocates two buffers of 32 frames each.
pub(super) const MAX_FRAME: u32 = 128 << 10;

#[derive(Clone)]
pub(super) struct BrokerAddress(pub(super) AMQPUri);

/// Error of a text that is no address. It doesn't quote the text, which has a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an address such as amqps://name:password@host/vhost is expected: the host is a name or an IPv4 address; the virtual host `/` is %2f, \
     or left out with the `/` before it; what is special in a password is encoded, as %23 for `#`; parameters may be {}",
    PARAMETERS.join(", ")
)]
pub(super) struct NoAddress;

const PARAMETERS: [&str; 3] = ["heartbeat", "channel_max", "auth_mechanism"];

impl FromStr for BrokerAddress {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<BrokerAddress, NoAddress> {
        let mut uri: AMQPUri = text.parse().map_err(|_| NoAddress)?;
        let url = Url::parse(text).map_err(|_| NoAddress)?;
        // lapin's parser replaces a host that it doesn't understand, such as an IPv6 address, by localhost.
        let has_host = matches!(url.host(), Some(Host::Domain(host)) if host == uri.authority.host);
        let knows = |(name, _): (Cow<'_, str>, _)| PARAMETERS.contains(&name.as_ref());
        // RabbitMQ would look for a virtual host with an empty name.
        let is_well = has_host && !uri.vhost.is_empty() && url.port() != Some(0) && url.fragment().is_none();
        if !is_well || !url.query_pairs().all(knows) || uri.query.heartbeat == Some(0) {
            return Err(NoAddress);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        uri.query.frame_max = Some(MAX_FRAME);
        Ok(BrokerAddress(uri))
    }
}

/// Writes the address without user name and password.
impl fmt::Display for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BrokerAddress(AMQPUri { scheme, authority, .. }) = self;
        write!(f, "{scheme}://{}:{}", authority.host, authority.port)
    }
}

impl fmt::Debug for BrokerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrokerAddress")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_amqp_addresses_are_accepted() {
        for text in ["amqp://localhost", "amqps://u:p@h:5671/%2f?heartbeat=5", "amqp://u:p%40@127.0.0.1:5672/exports"] {
            let address: BrokerAddress = text.parse().unwrap();
            assert_eq!(format!("{address:?}"), "BrokerAddress");
        }
        let BrokerAddress(uri) = "amqp://u:p%40@h".parse().unwrap();
        assert_eq!((uri.authority.userinfo.password.as_str(), uri.vhost.as_str()), ("p@", "/"));
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        let address: BrokerAddress = "amqps://u:p%40@h/v".parse().unwrap();
        assert_eq!(address.to_string(), "amqps://h:5671");
        for text in [
            "http://h/",
            "amqp://h/",
            "amqp://u:p#q@h",
            "amqp://u:p@[2001:db8::5]:5672/v",
            "amqp://h:0",
            "amqp://h/v?hearbeat=5",
            "amqp://h/v?heartbeat=0",
            "amqp://h/v#x",
        ] {
            assert_eq!(text.parse::<BrokerAddress>().unwrap_err(), NoAddress, "{text}");
        }
    }
}
