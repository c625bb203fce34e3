//! A broker for tests, which answers each method as the test says.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::connection::CALL_TIMEOUT;

/// A method that the client sent.
pub(super) struct Call {
    pub(super) channel: u16,
    /// The method's class and its number in that class.
    pub(super) method: (u16, u16),
}

impl Call {
    /// Returns the frames with which a broker answers this method.
    pub(super) fn answer(&self) -> Vec<u8> {
        match self.method {
            (10, 11) => tune(0),
            (10, 40) => method(0, 10, 41, &text(b"")),
            (20, 10) => method(self.channel, 20, 11, &long(b"")),
            (60, 20) => method(self.channel, 60, 21, &text(b"tag")),
            (class @ (10 | 20 | 40 | 60 | 85), number @ (10 | 40 | 50)) if (class, number) != (60, 40) => {
                method(self.channel, class, number + 1, b"")
            }
            _ => Vec::new(),
        }
    }
}

/// A broker for one test.
pub(super) struct TestBroker {
    pub(super) address: BrokerAddress,
    /// Gets an item for each connection that ended.
    closed: mpsc::UnboundedReceiver<()>,
}

impl TestBroker {
    /// Starts a broker that greets each client and answers its methods so.
    pub(super) async fn start(answer: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static) -> TestBroker {
        TestBroker::greeting("amqp", start(&[]), answer).await
    }

    /// Starts a broker that sends these bytes to each client first, and is reached by this scheme.
    pub(super) async fn greeting(
        scheme: &str,
        greeting: Vec<u8>,
        answer: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static,
    ) -> TestBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answer, (closes, closed)) = (Arc::new(answer), mpsc::unbounded_channel());
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (answer, closes, greeting) = (Arc::clone(&answer), closes.clone(), greeting.clone());
                tokio::spawn(async move {
                    // It ends with an error when the client closes the connection.
                    let _ = serve(&mut socket, &greeting, &*answer).await;
                    let _ = closes.send(());
                });
            }
        });
        TestBroker { address: format!("{scheme}://u:p@127.0.0.1:{port}/%2f").parse().unwrap(), closed }
    }

    /// Waits until a client has closed its connection.
    pub(super) async fn is_left(&mut self) {
        tokio::time::timeout(CALL_TIMEOUT, self.closed.recv()).await.expect("the connection is still open").unwrap();
    }
}

async fn serve(
    socket: &mut TcpStream,
    greeting: &[u8],
    answer: &(dyn Fn(&Call) -> Vec<u8> + Send + Sync),
) -> std::io::Result<()> {
    socket.read_exact(&mut [0; 8]).await?;
    socket.write_all(greeting).await?;
    loop {
        let (kind, channel) = (socket.read_u8().await?, socket.read_u16().await?);
        let mut content = vec![0; socket.read_u32().await? as usize + 1];
        socket.read_exact(&mut content).await?;
        if let (1, [a, b, c, d, ..]) = (kind, content.as_slice()) {
            let method = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            socket.write_all(&answer(&Call { channel, method })).await?;
        }
    }
}

/// Returns a frame of this type.
pub(super) fn frame(kind: u8, channel: u16, content: &[u8]) -> Vec<u8> {
    [&[kind][..], &channel.to_be_bytes(), &long(content), &[0xce]].concat()
}

/// Returns a method's frame.
pub(super) fn method(channel: u16, class: u16, number: u16, arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&class.to_be_bytes()[..], &number.to_be_bytes(), arguments].concat())
}

/// Returns the frame of connection.start with the entries of a table.
pub(super) fn start(properties: &[u8]) -> Vec<u8> {
    method(0, 10, 10, &[&[0, 9][..], &long(properties), &long(b"PLAIN"), &long(b"en_US")].concat())
}

/// Returns the frame of connection.tune with this size of frames.
pub(super) fn tune(max_frame: u32) -> Vec<u8> {
    method(0, 10, 30, &[&[0, 0][..], &max_frame.to_be_bytes(), &[0, 60]].concat())
}

/// Returns a short string.
pub(super) fn text(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text].concat()
}

/// Returns a value with its length before it.
pub(super) fn long(value: &[u8]) -> Vec<u8> {
    [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

/// Returns a table's entry whose value is nested arrays.
pub(super) fn nested(depth: usize) -> Vec<u8> {
    let inner = (0..depth).fold(Vec::new(), |inner, _| [b"A".to_vec(), long(&inner)].concat());
    [text(b"deep"), inner].concat()
}
