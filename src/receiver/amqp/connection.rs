//! Connections to a broker, and calls over them.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::message_limits::MessageLimits;
use crate::receiver::amqp::runtime;
use crate::telemetry::chain;

/// Timeout of a call to the broker, and of a connection attempt. RabbitMQ gives a client as much for the handshake.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the broker has to confirm the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a broker. Dropping it closes the connection, even if the broker doesn't answer.
pub(super) struct BrokerConnection {
    pub(super) lapin: Connection,
    pub(super) limits: Arc<MessageLimits>,
    /// Closes the socket when it is dropped. lapin then ends the thread of the connection.
    socket: Option<DropGuard>,
}

impl BrokerConnection {
    /// Connects.
    ///
    /// # Errors
    /// With the reason why there is no connection.
    pub(super) async fn open(address: &BrokerAddress) -> Result<BrokerConnection, String> {
        let named = ConnectionProperties::default().with_connection_name("cdc-export".into());
        let given_up = CancellationToken::new();
        let socket = given_up.clone().drop_guard();
        let limits = Arc::new(MessageLimits::new());
        let attempt = runtime::connect(address.0.clone(), named, Arc::clone(&limits), given_up);
        let Ok(connected) = timeout(CALL_TIMEOUT, attempt).await else {
            return Err(format!("{address} can't be connected to: no answer in time"));
        };
        let lapin = connected.map_err(|error| {
            let hint = if is_unreadable(&error) { ": a port speaks either amqp or amqps (TLS)" } else { "" };
            format!("{address} can't be connected to: {}{hint}", chain(&error))
        })?;
        Ok(BrokerConnection { lapin, limits, socket: Some(socket) })
    }
}

impl Drop for BrokerConnection {
    fn drop(&mut self) {
        let socket = self.socket.take();
        // lapin tells the broker that the connection ends.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                tokio::time::sleep(CLOSE_TIMEOUT).await;
                drop(socket);
            });
        }
    }
}

/// Returns true if the peer answered with another protocol, or closed the connection.
fn is_unreadable(error: &lapin::Error) -> bool {
    match error.kind() {
        lapin::ErrorKind::ParsingError(_) => true,
        lapin::ErrorKind::IOError(error) => {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
            matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted)
                || matches!(tls, Some(rustls::Error::InvalidMessage(_)))
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
    use std::io::Error;

    use rustls::{CertificateError, InvalidMessage};
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
            let connection = BrokerConnection::open(&broker.address).await.unwrap();
            assert_eq!(connection.lapin.configuration().frame_max(), agreed, "{asked}");
        }
    }

    #[test]
    fn a_peer_of_another_protocol_is_told_from_other_errors() {
        let invalid = |error: rustls::Error| lapin::Error::from(Error::new(ErrorKind::InvalidData, error));
        assert!(is_unreadable(&invalid(InvalidMessage::InvalidContentType.into())));
        assert!(!is_unreadable(&invalid(CertificateError::UnknownIssuer.into())));
        assert!(!is_unreadable(&Error::new(ErrorKind::InvalidData, "the broker sent a large frame").into()));
    }

    #[tokio::test]
    async fn an_attempt_that_is_given_up_leaves_no_socket() {
        for scheme in ["amqp", "amqps"] {
            let mut broker = TestBroker::silent(scheme).await;
            let address = broker.address.clone();
            let attempt = tokio::spawn(async move { BrokerConnection::open(&address).await.is_ok() });
            broker.is_reached().await;
            attempt.abort();
            broker.is_left().await;
        }
    }

    #[tokio::test]
    async fn a_connection_ends_though_the_broker_does_not_let_go_of_it() {
        let mut broker = TestBroker::start(|call| match call.method {
            (10, 50) => Vec::new(),
            _ => call.answer(),
        })
        .await;
        drop(BrokerConnection::open(&broker.address).await.unwrap());
        broker.is_left().await;
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
            let error = BrokerConnection::open(&address).await.err().unwrap();
            let begin = format!("{scheme}://127.0.0.1:{port} can't be connected to: ");
            assert!(
                error.starts_with(&begin) && error.ends_with(": a port speaks either amqp or amqps (TLS)"),
                "{error}"
            );
        }
    }
}
