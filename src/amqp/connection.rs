//! Connections to a broker, and calls over them.

use std::io::ErrorKind;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::amqp::address::Address;
use crate::amqp::runtime;
use crate::telemetry::chain;

/// How long the broker may take to answer a call, or to let somebody in.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an attempt to connect is waited for before another one is begun.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);

/// Makes connections to one broker, one after the other.
pub(super) struct Connector {
    address: Address,
    /// The attempt that is under way. lapin keeps a thread and a socket for one that nobody waits for any more.
    attempt: Mutex<Option<(Instant, JoinHandle<lapin::Result<Connection>>)>>,
}

impl Connector {
    pub(super) fn new(address: &Address) -> Connector {
        Connector { address: address.clone(), attempt: Mutex::default() }
    }

    /// Connects.
    ///
    /// # Errors
    /// With the reason why it can't be connected to, or not yet.
    pub(super) async fn connect(&self) -> Result<Connection, String> {
        let mut slot = self.attempt.lock().await;
        slot.take_if(|(begun, _)| begun.elapsed() > ATTEMPT_TIMEOUT);
        let (_, attempt) = slot.get_or_insert_with(|| {
            let named = ConnectionProperties::default().with_connection_name("cdc-export".into());
            (Instant::now(), tokio::spawn(runtime::connect(self.address.0.clone(), named)))
        });
        let Ok(ended) = timeout(CALL_TIMEOUT, attempt).await else {
            return Err(format!("{} can't be connected to: no answer in time", self.address));
        };
        *slot = None;
        let connected = ended.map_err(|panicked| chain(&panicked))?;
        connected.map_err(|error| {
            let hint = if is_unreadable(&error) { ": a port speaks either amqp or amqps (TLS)" } else { "" };
            format!("{} can't be connected to: {}{hint}", self.address, chain(&error))
        })
    }
}

/// Whether the other side answered with something else than AMQP, or hung up on it.
fn is_unreadable(error: &lapin::Error) -> bool {
    match error.kind() {
        lapin::ErrorKind::ParsingError(_) => true,
        lapin::ErrorKind::IOError(error) => {
            matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
        }
        _ => false,
    }
}

/// What a call returns within this time. An error says what couldn't be, and why.
pub(super) async fn within<T>(
    time: Duration,
    what: &str,
    call: impl Future<Output = lapin::Result<T>>,
) -> Result<T, String> {
    match timeout(time, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(format!("{what}: {}", chain(&error))),
        Err(_) => Err(format!("{what}: no answer in time")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_port_that_speaks_something_else_is_told_with_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let _ = socket.read(&mut [0; 64]).await;
                let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            }
        });
        for scheme in ["amqp", "amqps"] {
            let address = format!("{scheme}://name:secret@127.0.0.1:{port}/%2f").parse().unwrap();
            let error = Connector::new(&address).connect().await.err().unwrap();
            let begin = format!("{scheme}://127.0.0.1:{port} can't be connected to: ");
            assert!(
                error.starts_with(&begin) && error.ends_with(": a port speaks either amqp or amqps (TLS)"),
                "{error}"
            );
        }
    }
}
