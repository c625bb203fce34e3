//! Counts the rows of an unpacked file, and stops at the limits that follow from its manifest.

use std::io::{self, Write};

use crate::manifest::ManifestFile;

/// The bytes to which any file may unpack, however small it is.
const MIN_UNPACKED_BYTES: u64 = 1 << 30;
/// The bytes to which each byte of a larger file may unpack. gzip reaches 1,032.
const MAX_RATIO: u64 = 1100;

/// The largest numbers of rows and bytes to which a file may unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackLimits {
    /// The rows without the header.
    pub rows: u64,
    pub bytes: u64,
}

impl UnpackLimits {
    pub fn from_manifest(file: &ManifestFile) -> UnpackLimits {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let bytes = number(&file.bytes).saturating_mul(MAX_RATIO).saturating_add(MIN_UNPACKED_BYTES);
        UnpackLimits { rows: number(&file.rows), bytes }
    }
}

/// A file that unpacks to more than its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    #[error("it has more than {0} rows")]
    Rows(u64),
    /// The file has more bytes than one of its size can have.
    #[error("it unpacks to more than {0} bytes")]
    Bytes(u64),
}

/// Counts the rows of unpacked CSV. A write fails with [`LimitExceeded`] at the limits.
#[derive(Debug)]
pub struct LineCounter {
    limits: UnpackLimits,
    /// True inside a quoted field, where line ends don't count.
    is_quoted: bool,
    bytes: u64,
    lines: u64,
    is_line_open: bool,
}

impl LineCounter {
    /// Creates a counter for the file's first byte.
    pub fn new(limits: UnpackLimits) -> LineCounter {
        LineCounter { limits, is_quoted: false, bytes: 0, lines: 0, is_line_open: false }
    }

    /// Returns the number of lines, without the header.
    pub fn count(&self) -> u64 {
        (self.lines + u64::from(self.is_line_open)).saturating_sub(1)
    }
}

impl Write for LineCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (mut is_quoted, mut lines) = (self.is_quoted, 0);
        for byte in bytes {
            // A quote within a field is written twice: it closes the field and opens it again.
            is_quoted ^= *byte == b'"';
            lines += u64::from(*byte == b'\n' && !is_quoted);
        }
        if let Some(last) = bytes.last() {
            self.is_line_open = *last != b'\n' || is_quoted;
        }
        (self.is_quoted, self.lines) = (is_quoted, self.lines + lines);
        self.bytes += bytes.len() as u64;
        if self.count() > self.limits.rows {
            return Err(io::Error::other(LimitExceeded::Rows(self.limits.rows)));
        }
        if self.bytes > self.limits.bytes {
            return Err(io::Error::other(LimitExceeded::Bytes(self.limits.bytes)));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_stops_at_the_limits() {
        let count = |text: &str, rows: u64, bytes: u64| {
            let mut counter = LineCounter::new(UnpackLimits { rows, bytes });
            let written = text.as_bytes().chunks(3).try_for_each(|chunk| counter.write_all(chunk));
            written.map(|()| counter.count()).map_err(|error| *error.get_ref().unwrap().downcast_ref().unwrap())
        };
        assert_eq!(count("id\n1\n2\n", 2, 7), Ok(2));
        assert_eq!(count("id\n1\n2", 2, 7), Ok(2));
        assert_eq!(count("id\n1\n2\n", 1, 7), Err(LimitExceeded::Rows(1)));
        assert_eq!(count("id\n1\n2", 1, 7), Err(LimitExceeded::Rows(1)));
        assert_eq!(count("id\n\"1\n\n\n\n2\"", 1, 100), Ok(1));
        // A row without an end.
        assert_eq!(count(&format!("id\n{}", "x".repeat(100)), 2, 100), Err(LimitExceeded::Bytes(100)));
        let file = |bytes: &str| {
            let (sha256, bytes) = (String::new(), bytes.to_owned());
            UnpackLimits::from_manifest(&ManifestFile { sha256, bytes, rows: "7".to_owned(), path: None })
        };
        assert_eq!(file("10"), UnpackLimits { rows: 7, bytes: (1 << 30) + 11_000 });
        assert_eq!(file(&u64::MAX.to_string()).bytes, u64::MAX);
    }
}
