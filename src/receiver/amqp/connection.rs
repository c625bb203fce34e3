//! Connections to a broker, and calls over them.

use std::io::{Error, ErrorKind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use tokio::runtime::Handle;
use tokio::time::timeout;

use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::stream::{self, OpenedStreams, ShutdownGuard};
use pg_session::failure::chain;

/// Timeout of a call to the broker, and of a connection attempt. RabbitMQ gives a client as much for the handshake.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that the broker has to confirm the end of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to a broker. Dropping it closes the connection, even if the broker doesn't answer.
pub(super) struct BrokerConnection {
    pub(super) lapin: Connection,
    socket: Option<ShutdownGuard>,
}

impl BrokerConnection {
    /// Connects. Must be called inside tokio's runtime.
    pub(super) async fn open(address: &BrokerAddress) -> Result<BrokerConnection, String> {
        let Ok(connected) = timeout(CALL_TIMEOUT, connect(address)).await else {
            return Err(format!("{address} can't be connected to: no answer in time"));
        };
        connected.map_err(|error| {
            let hint = if is_unreadable(&error) { ": a port speaks either amqp or amqps (TLS)" } else { "" };
            format!("{address} can't be connected to: {}{hint}", chain(&error))
        })
    }
}

/// Connects. Dropping the attempt closes the socket.
///
/// Each connection has a thread of lapin, which ends with the socket. lapin has no call that ends an attempt, or a
/// connection whose broker doesn't answer.
async fn connect(BrokerAddress(address): &BrokerAddress) -> lapin::Result<BrokerConnection> {
    let (stream, socket) = stream::open(address).await?;
    let opened = Mutex::new(Some(stream));
    let take_opened = async move |_, _| match opened.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(stream) => Ok(AsyncTcpStream::Plain(stream)),
        None => Err(Error::from(ErrorKind::ConnectionAborted).into()),
    };
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), OpenedStreams(Tokio::current())));
    let named = ConnectionProperties::default().with_connection_name("cdc-export".into());
    let lapin = Connection::connector(address.clone(), runtime, take_opened, named).await?;
    Ok(BrokerConnection { lapin, socket: Some(socket) })
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
    use rustls::{CertificateError, InvalidMessage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::receiver::amqp::address::MAX_FRAME;

    async fn listener(scheme: &str) -> (TcpListener, BrokerAddress) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, format!("{scheme}://name:secret@127.0.0.1:{port}/%2f").parse().unwrap())
    }

    /// Returns a connection to a broker that asks for frames of this size, and the broker's end of it.
    async fn connected(max_frame: u32) -> (BrokerConnection, TcpStream) {
        let (listener, address) = listener("amqp").await;
        let greet = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_exact(&mut [0; 8]).await.unwrap();
            let start = [&[0, 9][..], &long(b""), &long(b"PLAIN"), &long(b"en_US")].concat();
            socket.write_all(&method(10, &start)).await.unwrap();
            skip_frame(&mut socket).await;
            let tune = [&[0, 0][..], &max_frame.to_be_bytes(), &[0, 60]].concat();
            socket.write_all(&method(30, &tune)).await.unwrap();
            // Two methods: tune-ok and open.
            skip_frame(&mut socket).await;
            skip_frame(&mut socket).await;
            socket.write_all(&method(41, &[0])).await.unwrap();
            socket
        };
        let (connection, socket) = tokio::join!(BrokerConnection::open(&address), greet);
        (connection.unwrap(), socket)
    }

    async fn skip_frame(socket: &mut TcpStream) {
        socket.read_exact(&mut [0; 3]).await.unwrap();
        let length = socket.read_u32().await.unwrap() as usize;
        socket.read_exact(&mut vec![0; length + 1]).await.unwrap();
    }

    /// Returns the frame of a method of the class `connection`.
    fn method(number: u16, arguments: &[u8]) -> Vec<u8> {
        let payload = [&[0, 10][..], &number.to_be_bytes(), arguments].concat();
        [&[1, 0, 0][..], &long(&payload), &[0xce]].concat()
    }

    /// Returns a value with its length before it.
    fn long(value: &[u8]) -> Vec<u8> {
        [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    }

    /// Waits until the client has closed the connection.
    async fn is_left(mut socket: TcpStream) {
        let rest = async { tokio::io::copy(&mut socket, &mut tokio::io::sink()).await };
        let _ = timeout(CALL_TIMEOUT, rest).await.expect("the client closes the connection");
    }

    /// lapin would allocate 32 frames for each direction.
    #[tokio::test]
    async fn a_frame_is_as_large_as_the_client_permits_at_most() {
        for (asked, agreed) in [(0, MAX_FRAME), (u32::MAX, MAX_FRAME), (8192, 8192)] {
            let (connection, _socket) = connected(asked).await;
            assert_eq!(connection.lapin.configuration().frame_max(), agreed, "{asked}");
        }
    }

    #[test]
    fn a_peer_of_another_protocol_is_told_from_other_errors() {
        let invalid = |error: rustls::Error| lapin::Error::from(Error::new(ErrorKind::InvalidData, error));
        assert!(is_unreadable(&invalid(InvalidMessage::InvalidContentType.into())));
        assert!(!is_unreadable(&invalid(CertificateError::UnknownIssuer.into())));
        assert!(!is_unreadable(&Error::new(ErrorKind::InvalidData, "another fault").into()));
    }

    #[tokio::test]
    async fn an_attempt_that_is_given_up_leaves_no_socket() {
        for scheme in ["amqp", "amqps"] {
            let (listener, address) = listener(scheme).await;
            let attempt = tokio::spawn(async move { BrokerConnection::open(&address).await.is_ok() });
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_u8().await.unwrap();
            attempt.abort();
            is_left(socket).await;
        }
    }

    #[tokio::test]
    async fn a_connection_ends_though_the_broker_does_not_let_go_of_it() {
        let (connection, socket) = connected(0).await;
        drop(connection);
        is_left(socket).await;
    }

    #[tokio::test]
    async fn a_port_of_another_protocol_is_reported_with_its_address() {
        for scheme in ["amqp", "amqps"] {
            let (listener, address) = listener(scheme).await;
            let answer = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let _ = socket.read(&mut [0; 64]).await;
                let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            };
            let (connection, ()) = tokio::join!(BrokerConnection::open(&address), answer);
            let error = connection.err().unwrap();
            let begin = format!("{address} can't be connected to: ");
            assert!(
                error.starts_with(&begin) && error.ends_with(": a port speaks either amqp or amqps (TLS)"),
                "{error}"
            );
        }
    }
}
