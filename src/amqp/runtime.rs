//! lapin on tokio, with streams of frames that are legible to it.

use std::future::ready;
use std::io::{Error, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use async_rs::traits::{Executor, Reactor, RuntimeKit};
use async_rs::util::Task;
use async_rs::{Runtime, Tokio};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AMQPUriTcpExt, TLSConfig};
use lapin::uri::AMQPUri;
use lapin::{AsyncTcpStream, Connection, ConnectionProperties};

use crate::amqp::legible::Legible;

/// Connects to a broker, and reads only what is legible. Needs tokio's runtime.
pub(super) async fn connect(address: AMQPUri, named: ConnectionProperties) -> lapin::Result<Connection> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(OnTokio(tokio.clone()));
    let connect = async move |address: AMQPUri, _| {
        let tokio = Runtime::new(tokio.clone());
        // With TLS what is legible is inside of it.
        let stream = address.connect_with_config_async(TLSConfig::default(), &tokio).await?;
        Ok(AsyncTcpStream::Plain(Legible::new(stream)))
    };
    Connection::connector(address, runtime, connect, named).await
}

/// tokio, but for its streams.
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
    type TcpStream = Legible<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    // `connect` makes the streams, and lapin registers none.
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
