//! Byte streams to a broker, with TLS or without, and the runtime in which lapin uses them.
//!
//! lapin's own TLS isn't used: it brings forty crates, for keys in files of PKCS #12.

use std::future::ready;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_rs::Tokio;
use async_rs::traits::Reactor;
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_platform_verifier::ConfigVerifierExt;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::compat::TokioAsyncReadCompatExt;

/// A byte stream of a broker, with TLS or without.
pub(super) type BrokerStream = Box<dyn Bytes>;

pub(super) trait Bytes: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Bytes for S {}

/// Shuts a stream down when it is dropped, whoever owns the stream.
pub(super) struct ShutdownGuard(Socket);

impl Drop for ShutdownGuard {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Opens a stream to a broker, with TLS if its address says so. The trusted authorities are the system's.
pub(super) async fn open(address: &AMQPUri) -> Result<(BrokerStream, ShutdownGuard), Error> {
    let host = &address.authority.host;
    let stream = TcpStream::connect((host.as_str(), address.authority.port)).await?;
    stream.set_nodelay(true)?;
    let guard = ShutdownGuard(SockRef::from(&stream).try_clone()?);
    if address.scheme == AMQPScheme::AMQP {
        return Ok((Box::new(stream.compat()), guard));
    }
    http_client::provide();
    let name = ServerName::try_from(host.clone()).map_err(Error::other)?;
    let config = ClientConfig::with_platform_verifier().map_err(Error::other)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    Ok((Box::new(stream.compat()), guard))
}

/// The reactor of tokio, for streams that [`open`] has opened.
#[derive(Clone, Debug)]
pub(super) struct OpenedStreams(pub(super) Tokio);

impl Reactor for OpenedStreams {
    type TcpStream = BrokerStream;
    type Sleep = <Tokio as Reactor>::Sleep;

    // lapin gets an open stream, and registers and connects none.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _: H,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static, Error> {
        Err::<BrokerStream, _>(ErrorKind::Unsupported.into())
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = Result<BrokerStream, Error>> + Send + 'static {
        ready(Err(ErrorKind::Unsupported.into()))
    }

    fn sleep(&self, time: Duration) -> Self::Sleep {
        self.0.sleep(time)
    }

    fn interval(&self, time: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(time)
    }
}
