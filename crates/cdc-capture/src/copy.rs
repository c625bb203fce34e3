//! Reads rows by `COPY … TO STDOUT (FORMAT BINARY)`, the fastest way to read from Postgres. COPY takes no parameters.
//! Several readers of one snapshot share a table's ranges. The rows come as the server sends them: who takes them
//! slowly slows the server, and nobody holds more than the receiver wants to.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Buf;
use futures_util::TryStreamExt;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::progress::Progress;
use crate::row::RowReceiver;
use crate::session::Reader;
use pg_session::table_name::Table;

/// Signature, flags and length of the header extension (PostgreSQL documentation, "COPY", "Binary Format").
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const HEADER_BYTES: usize = 19;
/// The end marker. It takes the place of a row's count of fields.
const END: [u8; 2] = (-1i16).to_be_bytes();

/// The fewest and the most heap blocks of one COPY, 512 KiB and 32 MiB. Its start then costs little, and progress is
/// reported often.
const RANGE_BLOCKS: RangeInclusive<u64> = 64..=4096;

/// The fewest heap blocks for each reader, 8 MiB. With fewer, another reader's connection takes longer than it saves.
const BLOCKS_FOR_A_READER: u64 = 1024;

/// The work that all readers of a table share.
pub(crate) struct Reading {
    /// A SELECT with a WHERE.
    pub(crate) select: String,
    pub(crate) ranges: Ranges,
    pub(crate) table: Table,
    pub(crate) progress: Progress,
}

/// The ranges of a table. Each range is taken once, by the next free reader. They get shorter towards the end, so that
/// all readers end at about the same time.
pub(crate) struct Ranges {
    blocks: u64,
    /// The first block that no reader has taken, or `None` if all are taken.
    next: Mutex<Option<u64>>,
    readers: AtomicU64,
    read: AtomicU64,
    /// Cancelled when the last range is taken.
    pub(crate) exhausted: CancellationToken,
}

struct Range {
    /// An SQL condition, to be appended to other conditions.
    condition: String,
    blocks: u64,
}

/// Returns the number of readers that a table with this number of blocks keeps busy.
pub(crate) fn readers(blocks: u64) -> usize {
    usize::try_from(blocks / BLOCKS_FOR_A_READER).unwrap_or(usize::MAX).max(1)
}

impl Ranges {
    pub(crate) fn new(blocks: u64) -> Ranges {
        let (readers, read, exhausted) = Default::default();
        Ranges { blocks, next: Mutex::new(Some(0)), readers, read, exhausted }
    }

    /// Takes the next range: half of what is left for each reader.
    fn take(&self) -> Option<Range> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let from = (*next)?;
        let left = self.blocks.saturating_sub(from);
        let share = left / (2 * self.readers.load(Ordering::Relaxed).max(1));
        let blocks = share.clamp(*RANGE_BLOCKS.start(), *RANGE_BLOCKS.end());
        let to = from + blocks;
        *next = Some(to).filter(|_| blocks < left);
        let begin = if from == 0 { String::new() } else { format!(" and ctid >= '({from},0)'") };
        if next.is_some() {
            return Some(Range { condition: format!("{begin} and ctid < '({to},0)'"), blocks });
        }
        self.exhausted.cancel();
        // The last range is open-ended, because the table may have grown after its blocks were counted.
        Some(Range { condition: begin, blocks: left })
    }

    fn finish(&self, range: &Range, progress: &Progress) {
        progress.reach(self.read.fetch_add(range.blocks, Ordering::Relaxed) + range.blocks, self.blocks);
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
    reading.ranges.readers.fetch_add(1, Ordering::Relaxed);
    while let Some(range) = reading.ranges.take() {
        let query = format!("{}{}", reading.select, range.condition);
        copy_rows((conn, reader), &reading.table, "source.copy.range", &query, receiver).await?;
        reading.ranges.finish(&range, &reading.progress);
        ranges += 1;
    }
    receiver.flush().await?;
    Ok(ranges)
}

/// Reads the rows of one query, whose statement gets this name. What the receiver holds in the end is left with it.
/// The first row may take hours; `reader` tells the leader that it is waited for.
pub(crate) async fn copy_rows(
    (conn, reader): (&mut PgConnection, &Reader),
    table: &Table,
    name: &str,
    query: &str,
    receiver: &mut impl RowReceiver,
) -> Result<(), Error> {
    let failed = Error::from_sql(table);
    let copy = format!("-- {name}\n copy ({query}) to stdout (format binary)");
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

    fn taken(ranges: &Ranges) -> Vec<Range> {
        std::iter::from_fn(|| ranges.take()).collect()
    }

    #[test]
    fn the_ranges_are_the_whole_table_and_the_last_one_is_open() {
        let middle = " and ctid >= '(100,0)' and ctid < '(164,0)'";
        let three = &[" and ctid < '(100,0)'", middle, " and ctid >= '(164,0)'"][..];
        for (blocks, conditions) in [(0, &[""][..]), (1, &[""]), (64, &[""]), (200, three)] {
            let ranges = taken(&Ranges::new(blocks));
            assert_eq!(ranges.iter().map(|range| &*range.condition).collect::<Vec<_>>(), conditions);
        }
    }

    #[test]
    fn ranges_get_shorter_towards_the_end() {
        let ranges = taken(&Ranges::new(20_000));
        assert!(ranges.is_sorted_by(|one, next| one.blocks >= next.blocks));
        assert_eq!(ranges.iter().map(|range| range.blocks).sum::<u64>(), 20_000);
        assert_eq!((ranges[0].blocks, ranges.len()), (4_096, 11));
    }

    #[test]
    fn a_small_table_has_use_for_one_reader() {
        assert_eq!([0, 2047, 2048].map(readers), [1, 1, 2]);
    }

    #[test]
    fn progress_counts_what_is_read_in_whatever_order() {
        let (ranges, progress) = (Ranges::new(256), Progress::default());
        let next = || ranges.take().map(|range| (range, ranges.exhausted.is_cancelled()));
        let (taken, is_last): (Vec<_>, Vec<_>) = std::iter::from_fn(next).unzip();
        assert_eq!(is_last, [false, false, true]);
        let reach = |range| {
            ranges.finish(range, &progress);
            progress.read().percent
        };
        assert_eq!(taken.iter().rev().map(reach).collect::<Vec<_>>(), [25, 50, 99]);
    }
}
