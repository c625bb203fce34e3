//! Counts the rows of an unpacked CSV file, and stops at the limits that follow from its manifest.

use std::io;

use cdc_manifest::ManifestFile;

/// The bytes to which any file may unpack, however small it is.
const MIN_UNPACKED_BYTES: u64 = 1 << 30;
/// The bytes to which each byte of a larger file may unpack. gzip reaches 1,032.
const MAX_RATIO: u64 = 1100;

pub(super) struct LineCounter {
    /// The rows that the file may have, without the header.
    max_rows: u64,
    max_bytes: u64,
    /// True inside a quoted field, where line ends don't count.
    is_quoted: bool,
    bytes: u64,
    lines: u64,
    is_line_open: bool,
}

impl LineCounter {
    pub(super) fn new(file: &ManifestFile) -> LineCounter {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let max_bytes = number(&file.bytes).saturating_mul(MAX_RATIO).saturating_add(MIN_UNPACKED_BYTES);
        let max_rows = number(&file.rows);
        LineCounter { max_rows, max_bytes, is_quoted: false, bytes: 0, lines: 0, is_line_open: false }
    }

    /// Counts the next bytes of the file. Returns an error at the limits.
    pub(super) fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        for byte in bytes {
            // A quote within a field is written twice: it closes the field and opens it again.
            self.is_quoted ^= *byte == b'"';
            self.lines += u64::from(*byte == b'\n' && !self.is_quoted);
        }
        if let Some(last) = bytes.last() {
            self.is_line_open = *last != b'\n' || self.is_quoted;
        }
        self.bytes += bytes.len() as u64;
        // The first line is the header.
        if (self.lines + u64::from(self.is_line_open)).saturating_sub(1) > self.max_rows {
            return Err(io::Error::other(format!("it has more than {} rows", self.max_rows)));
        }
        if self.bytes > self.max_bytes {
            return Err(io::Error::other(format!("it unpacks to more than {} bytes", self.max_bytes)));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_stops_at_the_limits() {
        let counter = |rows: u64, bytes: &str| {
            let (sha256, bytes, rows) = (String::new(), bytes.to_owned(), rows.to_string());
            LineCounter::new(&ManifestFile { sha256, bytes, rows, path: None })
        };
        for (text, rows, max_bytes, refused) in [
            ("id\n1\n2\n", 2, 7, ""),
            ("id\n1\n2", 2, 7, ""),
            ("id\n1\n2\n", 1, 7, "it has more than 1 rows"),
            ("id\n1\n2", 1, 7, "it has more than 1 rows"),
            ("id\n\"1\n\n\n\n2\"", 1, 100, ""),
            // A row without an end.
            (&format!("id\n{}", "x".repeat(100)), 2, 100, "it unpacks to more than 100 bytes"),
        ] {
            let mut counter = LineCounter { max_bytes, ..counter(rows, "") };
            let counted = text.as_bytes().chunks(3).try_for_each(|chunk| counter.count(chunk));
            assert_eq!(counted.map_or_else(|error| error.to_string(), |()| String::new()), refused, "{text}");
        }
        assert_eq!(counter(7, "10").max_bytes, (1 << 30) + 11_000);
        assert_eq!(counter(7, &u64::MAX.to_string()).max_bytes, u64::MAX);
    }
}
