//! A connection's bytes: a write that makes no progress ends, so that a client that doesn't read holds nothing for long.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::failpoint;
use crate::http::connections::Connection;

/// The connection of a client that reads nothing for this long is closed.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The system closes a connection whose other end acknowledges nothing for this long: its machine is gone, or its window stays closed after
/// everything was written.
#[cfg(target_os = "linux")]
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// This much of an answer may wait in the system to be sent. A client's progress shows at each half of it, so that a client that reads 2
/// KiB a second counts as slow, not as stalled.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 * 1024;

/// Sets the socket's options for a client's connection.
pub(crate) fn prepare(stream: &TcpStream) {
    // Without it the last bytes of an answer wait for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_user_timeout(Some(ACKNOWLEDGE_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
    }
}

/// A client's stream, whose writes end with an error when they make no progress.
pub(crate) struct ClientStream {
    stream: TcpStream,
    connection: Arc<Connection>,
    /// Whether hyper has taken the whole answer, of which a part may not be written yet.
    answered: Arc<AtomicBool>,
    /// The end of the time that the waiting write has.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, connection: Arc<Connection>, answered: Arc<AtomicBool>) -> ClientStream {
        ClientStream { stream, connection, answered, stalled: None }
    }

    /// Ends a write that has made no progress for too long.
    fn watched<T>(&mut self, written: Poll<Result<T>>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(failpoint::time("http.stall", STALL_TIMEOUT))));
        match stalled.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(Error::from(ErrorKind::TimedOut))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watched(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.watched(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper calls it once it has written everything that it has.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.answered.swap(false, Ordering::Relaxed) {
            self.connection.rests();
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.stalled.is_some() {
            // Otherwise the system would keep the unread bytes for a while.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// An answer's body. It sets `answered` when hyper has taken the whole body, or dropped it.
pub(crate) struct AnswerBody {
    body: Body,
    answered: Arc<AtomicBool>,
}

impl AnswerBody {
    pub(crate) fn new(body: Body, answered: Arc<AtomicBool>) -> AnswerBody {
        AnswerBody { body, answered }
    }
}

impl HttpBody for AnswerBody {
    type Data = <Body as HttpBody>::Data;
    type Error = <Body as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for AnswerBody {
    fn drop(&mut self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}
