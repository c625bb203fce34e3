//! Stream that sanitizes the frames of a broker before lapin parses them.
//!
//! A broker accepts from any client a short string that isn't UTF-8, and headers as deeply nested as a frame is long.
//! lapin's parser fails at the first, which would end the connection at each attempt, and overflows its stack at the
//! second, which would end the process. So each frame is checked, and changed in place at the same length. A message id
//! or a content type that was changed is refused later, as any other invalid one.
//!
//! A broker may also be hostile. So a method that no broker sends to this client, or a message that [`MessageLimits`]
//! doesn't permit, is an error, which ends the connection.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::receiver::amqp::address::MAX_FRAME;
use crate::receiver::amqp::message_limits::MessageLimits;

/// Type of a method frame. Methods and content headers are the frames that have strings or tables.
const METHOD: u8 = 1;
/// Type of a content header frame.
const HEADER: u8 = 2;
/// All types of frames.
const FRAME_TYPES: std::ops::RangeInclusive<u8> = 1..=8;
/// The class and the number of connection.start, the first method of a broker.
const START: (u16, u16) = (10, 10);
/// Those of basic.return and basic.deliver, which a message follows.
const RETURN: (u16, u16) = (60, 50);
const DELIVER: (u16, u16) = (60, 60);
/// Those of connection.secure, channel.flow and basic.cancel, which lapin answers.
const ANSWERED: [(u16, u16); 3] = [(10, 20), (20, 20), (60, 30)];
/// The other methods that a broker sends to this client.
const SENT_BY_BROKERS: [(u16, u16); 17] = [
    // connection: tune, open-ok, close, close-ok, blocked, unblocked.
    (10, 30),
    (10, 41),
    (10, 50),
    (10, 51),
    (10, 60),
    (10, 61),
    // channel: open-ok, flow-ok, close, close-ok.
    (20, 11),
    (20, 21),
    (20, 40),
    (20, 41),
    // exchange: declare-ok.
    (40, 11),
    // basic: qos-ok, consume-ok, cancel-ok, ack, nack.
    (60, 11),
    (60, 21),
    (60, 31),
    (60, 80),
    (60, 120),
    // confirm: select-ok.
    (85, 11),
];
/// Bytes before a frame's payload: type, channel and size.
const FRAME_HEAD: usize = 7;
/// Length of a protocol header, by which a broker refuses the protocol version. It is not a frame.
const PROTOCOL_HEADER: usize = 8;
/// Bytes after a frame's payload: the end marker.
const FRAME_END: usize = 1;
/// Maximum payload of a frame, in bytes. No broker may send more, because [`MAX_FRAME`] was negotiated.
const MAX_PAYLOAD: usize = MAX_FRAME as usize - FRAME_HEAD - FRAME_END;
/// Bytes that are read at a time.
const CHUNK: usize = 16 << 10;
/// Maximum depth of nested values in headers. Real headers are flatter, and this depth is safe for the stack.
const MAX_DEPTH: usize = 32;
/// Replacement for a byte that isn't UTF-8: ASCII SUB. No message id or content type may contain it.
const SUBSTITUTE: u8 = 0x1a;
/// Tag of a byte array. A value with this tag is not parsed further.
const BYTE_ARRAY: u8 = b'x';

/// A broker's stream of frames, each of which lapin can parse.
pub(super) struct SanitizingStream<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that were returned to the reader.
    consumed: usize,
    /// Bytes at the front of `buffer` that are whole, sanitized frames.
    sanitized: usize,
    limits: Arc<MessageLimits>,
    /// Ends when the connection is given up.
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> SanitizingStream<S> {
    /// Returns a stream that ends with an error when the connection is `given_up`.
    pub(super) fn new(stream: S, limits: Arc<MessageLimits>, given_up: CancellationToken) -> SanitizingStream<S> {
        let given_up = Box::pin(given_up.cancelled_owned());
        SanitizingStream { stream, buffer: Vec::new(), consumed: 0, sanitized: 0, limits, given_up }
    }

    /// Sanitizes the frames that are complete.
    fn sanitize(&mut self) -> Result<(), Error> {
        loop {
            let rest = &mut self.buffer[self.sanitized..];
            let Some(&[kind, _, _, a, b, c, d]) = rest.first_chunk::<FRAME_HEAD>() else { return Ok(()) };
            if !FRAME_TYPES.contains(&kind) {
                // The refusal of the protocol version, or no broker at all. lapin reports both.
                self.sanitized += rest.len().min(PROTOCOL_HEADER);
                continue;
            }
            let payload = u32::from_be_bytes([a, b, c, d]) as usize;
            if payload > MAX_PAYLOAD {
                return Err(invalid("the broker sent a frame larger than was agreed"));
            }
            let Some(frame) = rest.get_mut(..FRAME_HEAD + payload + FRAME_END) else { return Ok(()) };
            sanitize(kind, &mut frame[FRAME_HEAD..FRAME_HEAD + payload], &self.limits)?;
            self.sanitized += frame.len();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SanitizingStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Error>> {
        if self.given_up.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(ErrorKind::ConnectionAborted.into()));
        }
        while self.consumed == self.sanitized {
            let SanitizingStream { stream, buffer, consumed, sanitized, .. } = &mut *self;
            buffer.drain(..*consumed);
            (*consumed, *sanitized) = (0, 0);
            let had = buffer.len();
            buffer.resize(had + CHUNK, 0);
            let got = Pin::new(stream).poll_read(context, &mut buffer[had..]);
            buffer.truncate(had + if let Poll::Ready(Ok(got)) = got { got } else { 0 });
            if ready!(got)? == 0 {
                return Poll::Ready(Ok(0));
            }
            self.sanitize()?;
        }
        let length = into.len().min(self.sanitized - self.consumed);
        into[..length].copy_from_slice(&self.buffer[self.consumed..][..length]);
        self.consumed += length;
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SanitizingStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // The end of TLS waits for a broker that doesn't read.
        if self.given_up.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// Returns the error of a broker that breaks the protocol.
fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

/// Sanitizes the payload of a frame.
fn sanitize(kind: u8, payload: &mut [u8], limits: &MessageLimits) -> Result<(), Error> {
    let mut parser = Parser { bytes: payload, at: 0 };
    match kind {
        METHOD => method(&mut parser, limits),
        HEADER => {
            if parser.body_bytes().is_some_and(|bytes| bytes > limits.body_bytes()) {
                return Err(invalid("the broker sent a message larger than is accepted"));
            }
            // A malformed header may be nested to any depth. Without flags, lapin parses no properties, and reports the
            // rest as an error.
            if header(&mut parser).is_none()
                && let Some(flags) = payload.get_mut(12..14)
            {
                flags.fill(0);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Sanitizes a method. lapin reports one that is cut off as an error.
fn method(parser: &mut Parser<'_>, limits: &MessageLimits) -> Result<(), Error> {
    let (Some(class), Some(number)) = (parser.u16(), parser.u16()) else { return Ok(()) };
    match (class, number) {
        // Version, properties of the broker. No other method that a broker sends has a table.
        START => {
            parser.skip(2).and_then(|()| parser.table()).ok_or_else(|| invalid("the broker's properties are malformed"))
        }
        // The publisher of the message chose these strings.
        RETURN | DELIVER => {
            if !limits.take() {
                return Err(invalid("the broker sent more messages than the prefetch or the publishings permit"));
            }
            let _ = if number == RETURN.1 { returned(parser) } else { delivered(parser) };
            Ok(())
        }
        other if ANSWERED.contains(&other) && !limits.answer() => Err(invalid("the broker asks again and again")),
        other if ANSWERED.contains(&other) || SENT_BY_BROKERS.contains(&other) => Ok(()),
        _ => Err(invalid("the broker sent a method that no broker sends")),
    }
}

/// Sanitizes basic.return: reply code, reply text, exchange, routing key.
fn returned(parser: &mut Parser<'_>) -> Option<()> {
    parser.skip(2)?;
    (0..3).try_for_each(|_| parser.text())
}

/// Sanitizes basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key.
fn delivered(parser: &mut Parser<'_>) -> Option<()> {
    parser.text()?;
    parser.skip(9)?;
    (0..2).try_for_each(|_| parser.text())
}

/// Sanitizes a message's properties, in the order of their flags from the highest bit.
fn header(parser: &mut Parser<'_>) -> Option<()> {
    let flags = parser.u16()?;
    for bit in (0..16).rev().filter(|bit| flags & 1 << bit != 0) {
        match bit {
            // Delivery mode, priority.
            12 | 11 => parser.skip(1)?,
            13 => parser.table()?,
            // Timestamp.
            6 => parser.skip(8)?,
            15 | 14 | 10 | 9 | 8 | 7 | 5 | 4 | 3 | 2 => parser.text()?,
            // No other flags are defined.
            _ => return None,
        }
    }
    Some(())
}

/// Parser of a payload. Each method returns `None` if too few bytes are left.
struct Parser<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

/// A table or an array that the parser has entered.
struct Container {
    end: usize,
    has_names: bool,
}

impl Parser<'_> {
    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(drop)
    }

    fn take(&mut self, length: usize) -> Option<&mut [u8]> {
        let from = self.at;
        self.at = from.checked_add(length)?;
        self.bytes.get_mut(from..self.at)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// Parses the fields of a content header before its flags, and returns the size of the body in bytes.
    fn body_bytes(&mut self) -> Option<u64> {
        // Class, weight.
        self.skip(4)?;
        self.take(8)?.first_chunk().map(|bytes| u64::from_be_bytes(*bytes))
    }

    fn length(&mut self) -> Option<usize> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
    }

    /// Sanitizes a short string.
    fn text(&mut self) -> Option<()> {
        let length = self.u8()?;
        let mut rest = self.take(length.into())?;
        while let Err(error) = std::str::from_utf8(rest) {
            let (from, length) = (error.valid_up_to(), error.error_len());
            let to = length.map_or(rest.len(), |length| from + length);
            rest[from..to].fill(SUBSTITUTE);
            rest = &mut rest[to..];
        }
        Some(())
    }

    /// Sanitizes a table's names, and turns values that are nested too deeply into byte arrays.
    fn table(&mut self) -> Option<()> {
        let length = self.length()?;
        let mut entered = vec![Container { end: self.at.checked_add(length)?, has_names: true }];
        while let Some(&Container { end, has_names }) = entered.last() {
            if self.at >= end {
                // A value that exceeds its container is malformed: lapin might parse it in another way.
                if self.at > end {
                    return None;
                }
                entered.pop();
                continue;
            }
            if has_names {
                self.text()?;
            }
            let tag_at = self.at;
            match self.u8()? {
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'U' | b'u' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'L' | b'l' | b'd' | b'T' => self.skip(8)?,
                b'D' => self.skip(5)?,
                b'V' => {}
                b'S' | BYTE_ARRAY => {
                    let length = self.length()?;
                    self.skip(length)?;
                }
                tag @ (b'A' | b'F') => {
                    let length = self.length()?;
                    if entered.len() < MAX_DEPTH {
                        entered.push(Container { end: self.at.checked_add(length)?, has_names: tag == b'F' });
                    } else {
                        self.bytes[tag_at] = BYTE_ARRAY;
                        self.skip(length)?;
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::io::{AsyncReadExt, Cursor};

    use super::*;
    use crate::receiver::amqp::test_broker::{self, long, nested, text};

    /// Returns a frame of this type.
    fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
        test_broker::frame(kind, 1, content)
    }

    /// Returns a content header frame with these properties.
    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &flags.to_be_bytes(), properties].concat())
    }

    fn stream(sent: &[u8]) -> SanitizingStream<Cursor<&[u8]>> {
        let limits = MessageLimits::new();
        limits.permit(2);
        limits.permit_body(10);
        SanitizingStream::new(Cursor::new(sent), Arc::new(limits), CancellationToken::new())
    }

    /// Reads a stream at once and byte by byte, and returns its bytes.
    async fn read(sent: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        stream(sent).read_to_end(&mut all).await.unwrap();
        let mut by_bytes = Vec::new();
        let mut stream = stream(sent);
        let mut byte = [0];
        while stream.read(&mut byte).await.unwrap() == 1 {
            by_bytes.push(byte[0]);
        }
        assert!(all == by_bytes);
        all
    }

    #[tokio::test]
    async fn valid_frames_are_unchanged() {
        let headers = [
            [text("ä".as_bytes()), b"t\x01".to_vec()].concat(),
            [text(b"b"), b"S".to_vec(), long(b"\xff")].concat(),
            [text(b"c"), b"F".to_vec(), long(&[text(b"d"), b"D\x01\0\0\0\x02".to_vec()].concat())].concat(),
            [text(b"e"), b"A".to_vec(), long(b"Vb\x01u\0\x02I\0\0\0\x04L\0\0\0\0\0\0\0\x08")].concat(),
        ]
        .concat();
        let properties = [text(b"application/json"), long(&headers), vec![2], text(b"id"), vec![0; 8]].concat();
        let delivered = [&[0, 60, 0, 60][..], &text(b"tag"), &[0; 9], &text(b"exchange"), &text(b"key")].concat();
        let sent = [
            frame(METHOD, &delivered),
            header(1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 6, &properties),
            frame(3, &[0xff; 100_000]),
            frame(8, &[]),
        ]
        .concat();
        assert!(read(&sent).await == sent);
        // The answer to an unsupported protocol version is no frame.
        assert_eq!(read(b"AMQP\0\0\x09\x01").await, b"AMQP\0\0\x09\x01");
    }

    #[tokio::test]
    async fn every_short_string_that_is_not_utf8_is_sanitized() {
        let delivered = |key: &[u8]| {
            frame(METHOD, &[&[0, 60, 0, 60][..], &text(b"tag"), &[0; 9], &text(b"exchange"), &text(key)].concat())
        };
        assert_eq!(read(&delivered(b"k\xfcche\xe2\x82")).await, delivered(b"k\x1ache\x1a\x1a"));
        let returned =
            |key: &[u8]| frame(METHOD, &[&[0, 60, 0, 50, 1, 2][..], &text(b"why"), &text(b""), &text(key)].concat());
        assert_eq!(read(&returned(b"\xff")).await, returned(b"\x1a"));
        for bit in [15, 14, 10, 9, 8, 7, 5, 4, 3, 2] {
            let of = |value: &[u8]| header(1 << bit, &text(value));
            assert_eq!(read(&of(b"a\xffb")).await, of(b"a\x1ab"), "{bit}");
        }
        let named = |name: &[u8]| header(1 << 13, &long(&[text(name), b"V".to_vec()].concat()));
        assert_eq!(read(&named(b"\xe4")).await, named(b"\x1a"));
    }

    #[tokio::test]
    async fn values_nested_too_deeply_become_byte_arrays() {
        let of = |depth| header(1 << 13 | 1 << 7, &[long(&nested(depth)), text(b"id")].concat());
        assert!(read(&of(MAX_DEPTH - 1)).await == of(MAX_DEPTH - 1));
        for depth in [MAX_DEPTH, 26_000] {
            let (sent, read) = (of(depth), read(&of(depth)).await);
            let changed = Vec::from_iter((0..sent.len()).filter(|at| sent[*at] != read[*at]));
            // Frame, flags, the table's length and its name are before the first tag.
            let first = FRAME_HEAD + 14 + 4 + 5;
            assert_eq!(changed, [first + 5 * (MAX_DEPTH - 1)], "{depth}");
            assert_eq!(read[changed[0]], BYTE_ARRAY);
        }
    }

    /// Reads a stream that ends with an error, and returns the error's text.
    async fn error(sent: &[u8]) -> String {
        let error = stream(sent).read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
        error.to_string()
    }

    /// connection.start is sent before either side has authenticated itself.
    #[tokio::test]
    async fn properties_of_a_broker_have_a_depth() {
        let of = |properties: &[u8]| test_broker::start(properties);
        assert!(read(&of(&nested(MAX_DEPTH - 1))).await == of(&nested(MAX_DEPTH - 1)));
        let deep = of(&nested(20_000));
        let read = read(&deep).await;
        let changed = Vec::from_iter((0..deep.len()).filter(|at| deep[*at] != read[*at]));
        assert!(matches!(*changed, [at] if read[at] == BYTE_ARRAY), "{changed:?}");
        assert!(error(&of(b"\x01a?")).await.contains("properties"));
    }

    #[tokio::test]
    async fn a_method_that_no_broker_sends_is_an_error() {
        let table = long(&nested(20_000));
        for (class, number) in [(10, 11), (40, 10), (40, 30), (50, 10), (50, 20), (60, 20), (60, 71), (99, 1)] {
            let sent = test_broker::method(1, class, number, &[&[0, 0][..], &text(b"a"), &table].concat());
            assert!(error(&sent).await.contains("method"), "{class} {number}");
        }
        for (class, number) in SENT_BY_BROKERS.into_iter().chain(ANSWERED) {
            let sent = test_broker::method(1, class, number, &table);
            assert!(read(&sent).await == sent);
        }
    }

    #[tokio::test]
    async fn messages_beyond_the_limits_are_errors() {
        let bodies = |sizes: &[u64]| -> Vec<u8> {
            let content = |size: &u64| [&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat();
            sizes.iter().flat_map(|size| frame(HEADER, &content(size))).collect()
        };
        assert!(read(&bodies(&[10, 0])).await == bodies(&[10, 0]));
        for size in [11, u64::MAX] {
            assert!(error(&bodies(&[size])).await.contains("larger"));
        }
        for number in [RETURN.1, DELIVER.1] {
            let sent = |times| test_broker::method(1, 60, number, b"").repeat(times);
            assert!(read(&sent(2)).await == sent(2));
            assert!(error(&sent(3)).await.contains("more messages"));
        }
        for (class, number) in ANSWERED {
            assert!(error(&test_broker::method(1, class, number, b"").repeat(1_001)).await.contains("again"));
        }
    }

    /// lapin stops at the header, so nothing after it may be passed on unseen.
    #[tokio::test]
    async fn frames_after_a_protocol_header_are_sanitized() {
        let key = |key: &[u8]| {
            let delivered = [&text(b"tag")[..], &[0; 9], &text(b"exchange"), &text(key)].concat();
            [b"AMQP\0\0\x09\x01".to_vec(), test_broker::method(1, 60, 60, &delivered)].concat()
        };
        assert_eq!(read(&key(b"\xff")).await, key(b"\x1a"));
    }

    #[tokio::test]
    async fn malformed_headers_lose_their_flags() {
        let array_beyond_table = [text(b"a"), b"A\0\0\0\x09V".to_vec()].concat();
        for (flags, properties) in [
            (1 << 13, long(b"\x01a?")),
            (1 << 13, long(&array_beyond_table)),
            (1 << 13, b"\xff\xff\xff\xff".to_vec()),
            (1 << 15, b"\x09short".to_vec()),
            (1, Vec::new()),
        ] {
            let read = read(&header(flags, &properties)).await;
            assert_eq!(read, header(0, &properties), "{flags} {properties:?}");
        }
    }

    #[tokio::test]
    async fn a_frame_larger_than_agreed_is_an_error() {
        let larger = [&[HEADER, 0, 1][..], &(MAX_PAYLOAD as u32 + 1).to_be_bytes()].concat();
        assert!(error(&larger).await.contains("larger"));
    }
}
