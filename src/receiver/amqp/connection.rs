//! Connections to a broker, and calls over them.

use std::io::ErrorKind;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::runtime;
use crate::telemetry::chain;

/// Timeout of a call to the broker, and of a connection attempt.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Age of a connection attempt after which another one is started.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(300);

/// Opens connections to one broker, one at a time.
pub(super) struct Connector {
    address: BrokerAddress,
    /// The running attempt. It is kept after a timeout, since lapin keeps a thread and a socket for an abandoned one.
    attempt: Mutex<Option<(Instant, JoinHandle<lapin::Result<Connection>>)>>,
}

impl Connector {
    pub(super) fn new(address: &BrokerAddress) -> Connector {
        Connector { address: address.clone(), attempt: Mutex::default() }
    }

    /// Connects.
    ///
    /// # Errors
    /// With the reason why there is no connection, or none yet.
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

/// Returns true if the peer answered with another protocol, or closed the connection.
fn is_unreadable(error: &lapin::Error) -> bool {
    match error.kind() {
        lapin::ErrorKind::ParsingError(_) => true,
        lapin::ErrorKind::IOError(error) => {
            matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
        }
        _ => false,
    }
}

/// Runs a call with a timeout. The error names `what` failed, and why.
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
    use crate::receiver::amqp::address::MAX_FRAME;
    use crate::receiver::amqp::test_broker::{TestBroker, tune};

    /// lapin would allocate 32 frames for each direction.
    #[tokio::test]
    async fn a_frame_is_as_large_as_the_client_permits_at_most() {
        for (asked, agreed) in [(0, MAX_FRAME), (u32::MAX, MAX_FRAME), (8192, 8192)] {
            let broker = TestBroker::start(move |call| match call.method {
                (10, 11) => tune(asked),
                _ => call.answer(),
            })
            .await;
            let connection = Connector::new(&broker.address).connect().await.unwrap();
            assert_eq!(connection.configuration().frame_max(), agreed, "{asked}");
        }
    }

    #[tokio::test]
    async fn a_port_of_another_protocol_is_reported_with_its_address() {
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
