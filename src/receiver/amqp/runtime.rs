//! lapin on tokio, with a [`SanitizingStream`] under each connection.

use std::future::ready;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::compat::TokioAsyncReadCompatExt;
use tokio_util::sync::CancellationToken;

use crate::receiver::amqp::message_limits::MessageLimits;
use crate::receiver::amqp::sanitizing_stream::SanitizingStream;
use crate::tls;

/// Connects to a broker through a [`SanitizingStream`]. Must be called inside tokio's runtime.
///
/// Each connection has a thread of lapin, which ends when the connection does. lapin has no call that ends an attempt,
/// or a connection whose broker doesn't answer. `given_up` ends both.
pub(super) async fn connect(
    address: AMQPUri,
    named: ConnectionProperties,
    limits: Arc<MessageLimits>,
    given_up: CancellationToken,
) -> lapin::Result<Connection> {
    let connect = async move |address: AMQPUri, _| {
        let Some(opened) = given_up.run_until_cancelled(open(&address)).await else {
            return Err(Error::from(ErrorKind::ConnectionAborted).into());
        };
        Ok(AsyncTcpStream::Plain(SanitizingStream::new(opened?, Arc::clone(&limits), given_up.clone())))
    };
    Connection::connector(address, Runtime::new(OnTokio(Tokio::current())), connect, named).await
}

/// Opens a connection to a broker, with TLS if its address says so. The trusted authorities are the system's.
async fn open(address: &AMQPUri) -> Result<BrokerStream, Error> {
    let host = &address.authority.host;
    let stream = TcpStream::connect((host.as_str(), address.authority.port)).await?;
    stream.set_nodelay(true)?;
    if address.scheme == AMQPScheme::AMQP {
        return Ok(Box::new(stream.compat()));
    }
    tls::provide();
    let name = ServerName::try_from(host.clone()).map_err(Error::other)?;
    let config = match tls::authorities() {
        Some(own) => ClientConfig::builder().with_root_certificates(own).with_no_client_auth(),
        None => ClientConfig::with_platform_verifier().map_err(Error::other)?,
    };
    let connector = TlsConnector::from(Arc::new(config));
    Ok(Box::new(connector.connect(name, stream).await?.compat()))
}

/// A byte stream that carries AMQP frames.
trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// A connection, with TLS or without.
type BrokerStream = Box<dyn Bytes>;

/// Runtime of tokio, whose streams `connect` replaces.
#[derive(Clone, Debug)]
struct OnTokio(Tokio);

impl RuntimeKit for OnTokio {}

impl Executor for OnTokio {
    type Task<T: Send + 'static> = <Tokio as Executor>::Task<T>;

    fn block_on<T, F: Future<Output = T>>(&self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn<T: Send + 'static, F: Future<Output = T> + Send + 'static>(&self, future: F) -> Task<Self::Task<T>> {
        self.0.spawn(future)
    }

    fn spawn_blocking<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(&self, call: F) -> Task<Self::Task<T>> {
        self.0.spawn_blocking(call)
    }
}

impl Reactor for OnTokio {
    type TcpStream = SanitizingStream<BrokerStream>;
    type Sleep = <Tokio as Reactor>::Sleep;

    // `connect` makes all streams, so lapin registers none.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Error> {
        Err::<Self::TcpStream, _>(ErrorKind::Unsupported.into())
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = Result<Self::TcpStream, Error>> + Send + 'static {
        ready(Err(ErrorKind::Unsupported.into()))
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }
}
