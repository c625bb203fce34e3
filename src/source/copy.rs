//! Reads rows by `COPY … TO STDOUT (FORMAT BINARY)`, the fastest way to read from Postgres. COPY takes no parameters.
//! Several readers of one snapshot share a table's ranges.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Buf;
use futures_util::TryStreamExt;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::dataset::Table;
use crate::job::Progress;
use crate::row::RowReceiver;
use crate::source::Error;
use crate::source::session::Reader;

/// Signature, flags and length of the header extension (PostgreSQL documentation, "COPY", "Binary Format").
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = 19;
/// The end marker. It takes the place of a row's count of fields.
const END: [u8; 2] = (-1i16).to_be_bytes();

/// The heap blocks of one COPY, 2 MiB. The start of a COPY then costs little, and progress is reported often.
const RANGE_BLOCKS: u64 = 256;

/// The fewest ranges for each reader. With fewer ranges, another reader's connection takes longer than it saves.
const RANGES_FOR_A_READER: u64 = 4;

/// The work that all readers of a table share.
pub(crate) struct Reading {
    /// A SELECT with a WHERE.
    pub(crate) select: String,
    pub(crate) ranges: Ranges,
    pub(crate) table: Table,
    pub(crate) progress: Progress,
}

/// The ranges of a table. Each range is taken once, by the next free reader.
pub(crate) struct Ranges {
    /// `None` if the table can't be read in ranges. The whole table is then one range.
    blocks: Option<u64>,
    taken: AtomicU64,
    read: AtomicU64,
    exhausted: CancellationToken,
}

impl Ranges {
    /// Returns the ranges of a table with this number of blocks.
    pub(crate) fn new(blocks: Option<u64>) -> Ranges {
        let (taken, read, exhausted) = Default::default();
        Ranges { blocks, taken, read, exhausted }
    }

    /// Returns the number of readers that the ranges keep busy.
    pub(crate) fn readers(&self) -> usize {
        usize::try_from(self.count() / RANGES_FOR_A_READER).unwrap_or(usize::MAX).max(1)
    }

    /// Waits until the last range is taken.
    pub(crate) async fn exhausted(&self) {
        self.exhausted.cancelled().await;
    }

    fn count(&self) -> u64 {
        self.blocks.map_or(1, |blocks| blocks.div_ceil(RANGE_BLOCKS).max(1))
    }

    /// Takes the next range. Returns it as an SQL condition, to be appended to other conditions.
    fn take(&self) -> Option<String> {
        let (n, last) = (self.taken.fetch_add(1, Ordering::Relaxed), self.count() - 1);
        if n >= last {
            self.exhausted.cancel();
        }
        let (from, to) = (n * RANGE_BLOCKS, (n + 1) * RANGE_BLOCKS);
        match n {
            _ if n > last => None,
            0 if last == 0 => Some(String::new()),
            // The last range is open-ended, because the table may have grown after its blocks were counted.
            _ if n == last => Some(format!(" and ctid >= '({from},0)'")),
            _ => Some(format!(" and ctid >= '({from},0)' and ctid < '({to},0)'")),
        }
    }

    fn finish_one(&self, progress: &Progress) {
        progress.reach(self.read.fetch_add(1, Ordering::Relaxed) + 1, self.count());
    }
}

/// Reads ranges until none is left. Returns the number of ranges that this reader read.
pub(crate) async fn read(
    conn: &mut PgConnection,
    reader: &Reader,
    reading: &Reading,
    receiver: &mut impl RowReceiver,
) -> Result<u64, Error> {
    let mut ranges = 0;
    while let Some(range) = reading.ranges.take() {
        read_one((conn, reader), reading, &range, receiver).await?;
        reading.ranges.finish_one(&reading.progress);
        ranges += 1;
    }
    receiver.flush().await?;
    Ok(ranges)
}

async fn read_one(
    (conn, reader): (&mut PgConnection, &Reader),
    reading: &Reading,
    range: &str,
    receiver: &mut impl RowReceiver,
) -> Result<(), Error> {
    let failed = Error::from_sql(&reading.table);
    let copy = format!("-- source.copy\n copy ({}{range}) to stdout (format binary)", reading.select);
    reader.awaits_server();
    let mut messages = conn.copy_out_raw(&copy).await.map_err(&failed)?;
    let mut begun = false;
    let mut ended = false;
    // Each message is one row ("Message Flow", "COPY Operations"); the first one begins with the header.
    while let Some(mut message) = messages.try_next().await.map_err(&failed)? {
        reader.heard();
        if !begun {
            if !message.starts_with(SIGNATURE) || message.len() < HEADER_BYTES {
                return Err(Error::Protocol("no header before a COPY's rows"));
            }
            message.advance(HEADER_BYTES);
            begun = true;
            if message.is_empty() {
                continue;
            }
        }
        if message.as_ref() == END {
            ended = true;
            continue;
        }
        if receiver.receive(&message) {
            reader.rests();
            receiver.flush().await?;
            reader.awaits_server();
        }
    }
    reader.rests();
    if ended { Ok(()) } else { Err(Error::Protocol("a COPY without its end")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(blocks: Option<u64>) -> Vec<String> {
        let ranges = Ranges::new(blocks);
        std::iter::from_fn(|| ranges.take()).collect()
    }

    #[test]
    fn the_ranges_are_the_whole_table_and_the_last_one_is_open() {
        for blocks in [None, Some(0), Some(1), Some(256)] {
            assert_eq!(taken(blocks), [""]);
        }
        assert_eq!(taken(Some(257)), [" and ctid >= '(0,0)' and ctid < '(256,0)'", " and ctid >= '(256,0)'"]);
        assert_eq!(taken(Some(513))[1..], [" and ctid >= '(256,0)' and ctid < '(512,0)'", " and ctid >= '(512,0)'"]);
    }

    #[test]
    fn the_last_range_is_known_as_soon_as_it_is_taken() {
        let ranges = Ranges::new(Some(512));
        ranges.take();
        assert!(!ranges.exhausted.is_cancelled());
        ranges.take();
        assert!(ranges.exhausted.is_cancelled());
    }

    #[test]
    fn a_small_table_has_use_for_one_reader() {
        assert_eq!([None, Some(0), Some(7 * 256)].map(|blocks| Ranges::new(blocks).readers()), [1; 3]);
        assert_eq!(Ranges::new(Some(8 * 256)).readers(), 2);
    }

    #[test]
    fn progress_counts_what_is_read_in_whatever_order() {
        let (ranges, progress) = (Ranges::new(Some(4 * 256)), Progress::default());
        let reached = [(); 4].map(|()| {
            ranges.finish_one(&progress);
            progress.read().percent
        });
        assert_eq!(reached, [25, 50, 75, 99]);
    }
}
