//! A broker's address, with a name and a password in it.

use std::fmt;
use std::str::FromStr;

use lapin::uri::AMQPUri;

/// After twice so many seconds without a sign of the broker a connection to it is lost. RabbitMQ's own default is four times as long.
const HEARTBEAT: u16 = 15;

/// Where a broker is, and who connects.
#[derive(Clone)]
pub struct Address(pub(super) AMQPUri);

/// Why a text is no address. It doesn't quote the text, which has a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an address such as amqps://name:password@host/vhost is expected, in which the virtual host `/` is %2f or left out with the `/` \
     before it, and what is special in a password is encoded, as %23 for `#`"
)]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Address, NoAddress> {
        let mut uri: AMQPUri = text.parse().map_err(|_| NoAddress)?;
        // RabbitMQ would look for a virtual host without a name.
        if uri.authority.host.is_empty() || uri.vhost.is_empty() {
            return Err(NoAddress);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(Address(uri))
    }
}

/// Without the name and the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address(AMQPUri { scheme, authority, .. }) = self;
        write!(f, "{scheme}://{}:{}", authority.host, authority.port)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_of_amqp() {
        for text in ["amqp://localhost", "amqps://u:p@h:5671/%2f?heartbeat=5", "amqp://u:p%40@127.0.0.1:5672/exports"] {
            let address: Address = text.parse().unwrap();
            assert_eq!(format!("{address:?}"), "Address");
        }
        let Address(uri) = "amqp://u:p%40@h".parse().unwrap();
        assert_eq!((uri.authority.userinfo.password.as_str(), uri.vhost.as_str()), ("p@", "/"));
        assert_eq!(uri.query.heartbeat, Some(HEARTBEAT));
        let address: Address = "amqps://u:p%40@h/v".parse().unwrap();
        assert_eq!(address.to_string(), "amqps://h:5671");
        for text in ["", "localhost", "http://h/", "amqp://h/", "amqp://u:p#q@h"] {
            assert_eq!(text.parse::<Address>().unwrap_err(), NoAddress, "{text}");
        }
    }
}
