//! A client's byte stream. A write without progress fails after a timeout, so a client that stops reading releases its
//! resources soon.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

/// Time after which a connection is closed if its client reads nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Time after which the kernel closes a connection whose peer acknowledges nothing. Either the peer is gone, or its
/// receive window stays closed after the last write.
#[cfg(target_os = "linux")]
const ACKNOWLEDGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum number of unsent bytes in the kernel's send buffer. The socket becomes writable each time half of it is
/// sent. So a client that reads 2 KiB per second is treated as slow instead of stalled.
#[cfg(target_os = "linux")]
const UNSENT_BYTES: u32 = 128 * 1024;

pub(crate) fn prepare(stream: &TcpStream) {
    // Without this option, the last bytes of a response wait for the client's delayed acknowledgment.
    let _ = stream.set_nodelay(true);
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_user_timeout(Some(ACKNOWLEDGE_TIMEOUT));
        let _ = socket.set_tcp_notsent_lowat(UNSENT_BYTES);
    }
}

/// A client's stream whose writes fail if they make no progress.
pub(crate) struct ClientStream {
    stream: TcpStream,
    /// The deadline of the pending write.
    stall_deadline: Option<Pin<Box<Sleep>>>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream) -> ClientStream {
        ClientStream { stream, stall_deadline: None }
    }

    /// Fails a write that has made no progress for [`STALL_TIMEOUT`].
    fn with_stall_timeout<T>(&mut self, written: Poll<Result<T>>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if written.is_ready() {
            self.stall_deadline = None;
            return written;
        }
        let stall_deadline =
            self.stall_deadline.get_or_insert_with(|| Box::pin(sleep(failpoint::time("http.stall", STALL_TIMEOUT))));
        match stall_deadline.as_mut().poll(cx) {
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
        self.with_stall_timeout(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.with_stall_timeout(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for ClientStream {
    fn drop(&mut self) {
        if self.stall_deadline.is_some() {
            // Otherwise the kernel would keep the unread bytes for a while.
            let _ = self.stream.set_zero_linger();
        }
    }
}

/// A request body that sets `is_read` when its end was read.
pub(crate) struct RequestBody {
    body: Incoming,
    is_read: Arc<AtomicBool>,
}

impl RequestBody {
    pub(crate) fn new(body: Incoming, is_read: Arc<AtomicBool>) -> RequestBody {
        is_read.store(body.is_end_stream(), Ordering::Relaxed);
        RequestBody { body, is_read }
    }
}

impl HttpBody for RequestBody {
    type Data = <Incoming as HttpBody>::Data;
    type Error = <Incoming as HttpBody>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.is_read.store(true, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
