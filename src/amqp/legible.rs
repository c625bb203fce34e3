//! What a broker sends, made legible to lapin: a message that it can't read would end the connection at each try, and headers that are
//! nested deeply enough its process.
//!
//! A broker takes from any client a short text that isn't UTF-8, and headers as deep as a frame is long; lapin's parser takes neither.
//! So frames are looked at before it gets them, and mended in place, at the same length. What was mended reads as what it is, no
//! message that anybody meant: an id or a type of content that was mended is refused, and laid aside as any other one.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};

/// The kinds of frames that have texts or tables in them: methods, and the headers of messages.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// The kinds of frames that there are.
const KINDS: std::ops::RangeInclusive<u8> = 1..=8;
/// What is before a frame's content, and behind it.
const HEAD: usize = 7;
const END: usize = 1;
/// No broker agrees to more for a frame, since lapin asks for no more than 128 KiB.
const LARGEST: usize = 1 << 20;
/// So many bytes are read at a time.
const CHUNK: usize = 16 << 10;
/// How deep a value may lie in headers: deeper than any that somebody means, and of no danger to a stack.
const DEEPEST: usize = 32;
/// In place of a byte that isn't of UTF-8. No id and no type of a content may have it.
const ILLEGIBLE: u8 = 0x1a;
/// The tag of a value that nobody looks into.
const OPAQUE: u8 = b'x';

/// A broker's stream of frames, of which each is legible.
pub(super) struct Legible<S> {
    stream: S,
    read: Vec<u8>,
    /// So many bytes at the front of `read` were handed out.
    given: usize,
    /// So many are whole frames, and mended.
    mended: usize,
}

impl<S> Legible<S> {
    pub(super) fn new(stream: S) -> Legible<S> {
        Legible { stream, read: Vec::new(), given: 0, mended: 0 }
    }

    /// Mends the frames that are whole by now.
    fn mend(&mut self) -> Result<(), Error> {
        loop {
            let rest = &mut self.read[self.mended..];
            let Some(&[kind, _, _, a, b, c, d]) = rest.first_chunk::<HEAD>() else { return Ok(()) };
            if !KINDS.contains(&kind) {
                // The refusal of the protocol, or no broker at all: lapin says so.
                self.mended = self.read.len();
                return Ok(());
            }
            let content = u32::from_be_bytes([a, b, c, d]) as usize;
            if content > LARGEST {
                return Err(Error::new(ErrorKind::InvalidData, "a frame is larger than was agreed"));
            }
            let Some(frame) = rest.get_mut(..HEAD + content + END) else { return Ok(()) };
            mend(kind, &mut frame[HEAD..HEAD + content]);
            self.mended += frame.len();
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Legible<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, Error>> {
        while self.given == self.mended {
            let Legible { stream, read, given, mended } = &mut *self;
            read.drain(..*given);
            (*given, *mended) = (0, 0);
            let had = read.len();
            read.resize(had + CHUNK, 0);
            let got = Pin::new(stream).poll_read(context, &mut read[had..]);
            read.truncate(had + if let Poll::Ready(Ok(got)) = got { got } else { 0 });
            if ready!(got)? == 0 {
                return Poll::Ready(Ok(0));
            }
            self.mend()?;
        }
        let length = into.len().min(self.mended - self.given);
        into[..length].copy_from_slice(&self.read[self.given..][..length]);
        self.given += length;
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Legible<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, from: &[u8]) -> Poll<Result<usize, Error>> {
        Pin::new(&mut self.stream).poll_write(context, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

/// Mends the content of a frame.
fn mend(kind: u8, content: &mut [u8]) {
    match kind {
        // Of a method that hasn't the form of one lapin makes an error, without a depth.
        METHOD => drop(method(&mut Walk { bytes: content, at: 0 })),
        HEADER => {
            let walked = header(&mut Walk { bytes: content, at: 0 });
            // One without its form might be as deep as it likes. To lapin it ends with its flags, and what is behind them is an error.
            if walked.is_none()
                && let Some(flags) = content.get_mut(12..14)
            {
                flags.fill(0);
            }
        }
        _ => {}
    }
}

/// The texts of a method that brings a message, which are as whoever published it wrote them.
fn method(walk: &mut Walk<'_>) -> Option<()> {
    match (walk.u16()?, walk.u16()?) {
        // basic.return: a code, its text, exchange, routing key.
        (60, 50) => {
            walk.skip(2)?;
            (0..3).try_for_each(|_| walk.text())
        }
        // basic.deliver: the consumer, the delivery's number, whether it came before, exchange, routing key.
        (60, 60) => {
            walk.text()?;
            walk.skip(9)?;
            (0..2).try_for_each(|_| walk.text())
        }
        _ => Some(()),
    }
}

/// A message's properties, in the order of their flags from the highest one on.
fn header(walk: &mut Walk<'_>) -> Option<()> {
    // The class, a weight, the body's length.
    walk.skip(12)?;
    let flags = walk.u16()?;
    for bit in (0..16).rev().filter(|bit| flags & 1 << bit != 0) {
        match bit {
            // The mode of delivery, the priority.
            12 | 11 => walk.skip(1)?,
            13 => walk.table()?,
            // The time.
            6 => walk.skip(8)?,
            15 | 14 | 10 | 9 | 8 | 7 | 5 | 4 | 3 | 2 => walk.text()?,
            // There are no further flags.
            _ => return None,
        }
    }
    Some(())
}

/// A way through bytes. Each step is `None` where there are fewer than it needs.
struct Walk<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

/// A table or an array around the place that a walk has come to.
struct Around {
    end: usize,
    has_names: bool,
}

impl Walk<'_> {
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

    fn length(&mut self) -> Option<usize> {
        self.take(4)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes) as usize)
    }

    /// Mends a short text.
    fn text(&mut self) -> Option<()> {
        let length = self.u8()?;
        let mut rest = self.take(length.into())?;
        while let Err(error) = std::str::from_utf8(rest) {
            let (from, length) = (error.valid_up_to(), error.error_len());
            let to = length.map_or(rest.len(), |length| from + length);
            rest[from..to].fill(ILLEGIBLE);
            rest = &mut rest[to..];
        }
        Some(())
    }

    /// Mends a table's names, and makes opaque what lies too deep in it.
    fn table(&mut self) -> Option<()> {
        let length = self.length()?;
        let mut around = vec![Around { end: self.at.checked_add(length)?, has_names: true }];
        while let Some(&Around { end, has_names }) = around.last() {
            if self.at >= end {
                // A value that reaches out of what it lies in would be read in another order by somebody else.
                if self.at > end {
                    return None;
                }
                around.pop();
                continue;
            }
            if has_names {
                self.text()?;
            }
            let place = self.at;
            match self.u8()? {
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'U' | b'u' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'L' | b'l' | b'd' | b'T' => self.skip(8)?,
                b'D' => self.skip(5)?,
                b'V' => {}
                b'S' | OPAQUE => {
                    let length = self.length()?;
                    self.skip(length)?;
                }
                tag @ (b'A' | b'F') => {
                    let length = self.length()?;
                    if around.len() < DEEPEST {
                        around.push(Around { end: self.at.checked_add(length)?, has_names: tag == b'F' });
                    } else {
                        self.bytes[place] = OPAQUE;
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

    /// A frame of this kind.
    fn frame(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &length, content, &[0xce]].concat()
    }

    fn text(text: &[u8]) -> Vec<u8> {
        [&[u8::try_from(text.len()).unwrap()], text].concat()
    }

    /// A value with its length in front of it.
    fn long(value: &[u8]) -> Vec<u8> {
        [&u32::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
    }

    /// The header of a message with these properties.
    fn header(flags: u16, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &flags.to_be_bytes(), properties].concat())
    }

    /// What is read of a stream that has this, in as small and as large pieces as there may be.
    async fn read(sent: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        Legible::new(Cursor::new(sent)).read_to_end(&mut all).await.unwrap();
        let mut by_bytes = Vec::new();
        let mut stream = Legible::new(Cursor::new(sent));
        let mut byte = [0];
        while stream.read(&mut byte).await.unwrap() == 1 {
            by_bytes.push(byte[0]);
        }
        assert!(all == by_bytes);
        all
    }

    /// A table whose only value is an array in an array, and so on.
    fn nested(depth: usize) -> Vec<u8> {
        let inner = (0..depth).fold(Vec::new(), |inner, _| [b"A".to_vec(), long(&inner)].concat());
        long(&[text(b"deep"), inner].concat())
    }

    #[tokio::test]
    async fn what_is_legible_stays_as_it_is() {
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
        // The answer to another version of the protocol is no frame.
        assert_eq!(read(b"AMQP\0\0\x09\x01").await, b"AMQP\0\0\x09\x01");
    }

    #[tokio::test]
    async fn a_short_text_that_is_not_utf8_is_mended_wherever_it_is() {
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
    async fn what_lies_too_deep_is_opaque() {
        let of = |depth| header(1 << 13 | 1 << 7, &[nested(depth), text(b"id")].concat());
        assert!(read(&of(DEEPEST - 1)).await == of(DEEPEST - 1));
        for depth in [DEEPEST, 26_000] {
            let (sent, read) = (of(depth), read(&of(depth)).await);
            let changed = Vec::from_iter((0..sent.len()).filter(|at| sent[*at] != read[*at]));
            // Frame, flags, the table's length and its name are before the first tag.
            let first = HEAD + 14 + 4 + 5;
            assert_eq!(changed, [first + 5 * (DEEPEST - 1)], "{depth}");
            assert_eq!(read[changed[0]], OPAQUE);
        }
    }

    #[tokio::test]
    async fn headers_without_their_form_are_not_gone_into() {
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
        let larger = [&[HEADER, 0, 1][..], &(LARGEST as u32 + 1).to_be_bytes()].concat();
        let error = Legible::new(Cursor::new(larger)).read(&mut [0]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
}
