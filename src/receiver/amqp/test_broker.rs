//! A broker for tests, which answers each method as the test says.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

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
    /// Gets an item when a client is connected, and when its connection ended.
    events: mpsc::Receiver<ClientEvent>,
}

#[derive(Debug, PartialEq)]
enum ClientEvent {
    Reached,
    Left,
}

/// Returns the frames with which a broker answers a method.
type Answer = dyn Fn(&Call) -> Vec<u8> + Send + Sync;

impl TestBroker {
    /// Starts a broker that greets each client and answers its methods.
    pub(super) async fn start(answer: impl Fn(&Call) -> Vec<u8> + Send + Sync + 'static) -> TestBroker {
        TestBroker::serve("amqp", Some(Arc::new(answer))).await
    }

    /// Starts a broker that accepts connections and sends nothing.
    pub(super) async fn silent(scheme: &str) -> TestBroker {
        TestBroker::serve(scheme, None).await
    }

    async fn serve(scheme: &str, answer: Option<Arc<Answer>>) -> TestBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (happens, events) = mpsc::channel(16);
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (answer, happens) = (answer.clone(), happens.clone());
                tokio::spawn(async move {
                    let _ = happens.send(ClientEvent::Reached).await;
                    // Both end, the first by an error, when the client closes the connection.
                    let _ = match answer {
                        Some(answer) => talk(&mut socket, &*answer).await,
                        None => tokio::io::copy(&mut socket, &mut tokio::io::sink()).await.map(drop),
                    };
                    let _ = happens.send(ClientEvent::Left).await;
                });
            }
        });
        TestBroker { address: format!("{scheme}://u:p@127.0.0.1:{port}/%2f").parse().unwrap(), events }
    }

    /// Waits until a client is connected.
    pub(super) async fn is_reached(&mut self) {
        self.until(ClientEvent::Reached).await;
    }

    /// Waits until a client has closed its connection.
    pub(super) async fn is_left(&mut self) {
        self.until(ClientEvent::Left).await;
    }

    async fn until(&mut self, event: ClientEvent) {
        let happened = async { while self.events.recv().await.as_ref() != Some(&event) {} };
        timeout(CALL_TIMEOUT, happened).await.unwrap_or_else(|_| panic!("not {event:?}"));
    }
}

async fn talk(socket: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    socket.read_exact(&mut [0; 8]).await?;
    socket.write_all(&start(&[])).await?;
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

/// Returns the frames of a message's content, without properties.
pub(super) fn content(channel: u16, body: &[u8]) -> Vec<u8> {
    let header = [&[0, 60, 0, 0][..], &(body.len() as u64).to_be_bytes(), &[0, 0]].concat();
    [frame(2, channel, &header), frame(3, channel, body)].concat()
}

/// Returns the frame of basic.ack.
pub(super) fn confirm(channel: u16, tag: u64) -> Vec<u8> {
    method(channel, 60, 80, &[&tag.to_be_bytes()[..], &[0]].concat())
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
