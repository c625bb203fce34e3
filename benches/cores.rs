//! The gain of an export from more processors. Threads encode and pack rows from memory, as readers receive them, and
//! one thread hashes and writes the pieces. There is no Postgres and no queue, so only the computation counts.
//!
//! ```text
//! cargo bench --bench cores                  # 1, 2 and 4 threads on the processors there are
//! taskset -c 0 cargo bench --bench cores     # on one
//! ```
//!
//! For each format it prints the processor time of a million rows, on the threads and on the one that is serial, and
//! from these what a machine of 16 processors would need, by Amdahl's law. That figure is calculated, not measured.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::BufMut;
use pg_rows::column::{Column, ColumnType};
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::row::{BinaryRows, Fields};
use pg_rows::{Encoder, Layout, Piece};
use ring::digest;
use rustix::time::{ClockId, clock_gettime};

/// Rows of one case, by all threads together.
const ROWS: usize = 1_000_000;
/// Rows that are in memory, and come again and again.
const BLOCK_ROWS: usize = 10_000;
/// As many pieces wait for the writer in an export.
const PIECES_AHEAD: usize = 2;

/// The columns of the demo's table `users`.
fn columns_of_users() -> Vec<Column> {
    [
        ("id", ColumnType::Int8),
        ("name", ColumnType::Text),
        ("email", ColumnType::Text),
        ("created_at", ColumnType::Timestamptz),
        ("updated_at", ColumnType::Timestamptz),
        ("is_deleted", ColumnType::Bool),
    ]
    .map(|(name, kind)| Column::new(name, kind))
    .into()
}

/// One message for each row, as COPY sends them.
fn messages() -> Vec<Vec<u8>> {
    let message = |id: i64| {
        let (name, email) = (format!("Ada {} Lovelace", id * 7919 % 9973), format!("user.{id}@example.com"));
        let made = 825_000_000_000_000 + id * 2_592_000_017;
        let (id, made, changed) = (id.to_be_bytes(), made.to_be_bytes(), (made + 86_400_123_456).to_be_bytes());
        let fields: [&[u8]; 6] = [&id, name.as_bytes(), email.as_bytes(), &made, &changed, &[0]];
        let mut row = Vec::new();
        row.put_i16(fields.len() as i16);
        for field in fields {
            row.put_i32(field.len() as i32);
            row.put_slice(field);
        }
        row
    };
    (0..BLOCK_ROWS as i64).map(message).collect()
}

/// The processor time of this thread so far.
fn own_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Encodes and packs this number of rows. Returns the processor time of that.
fn read(layout: &Arc<Layout>, messages: &[Vec<u8>], count: usize, pieces: &mpsc::SyncSender<Piece>) -> Duration {
    let (mut encoder, mut room) = (Encoder::new(layout), Fields::default());
    let pass_on = |encoder: &mut Encoder| {
        let piece = encoder.pack().expect("it can be packed");
        pieces.send(piece).expect("the writer goes on to the end");
    };
    for message in messages.iter().cycle().take(count) {
        let (mut rows, mut fields) = (BinaryRows::new(message), room.take());
        while rows.next_into(&mut fields).expect("the rows are whole") {
            encoder.row(&fields).expect("the rows are of these columns");
        }
        room.put_back(fields);
        if encoder.is_full() {
            pass_on(&mut encoder);
        }
    }
    if !encoder.is_empty() {
        pass_on(&mut encoder);
    }
    own_time()
}

/// Puts the pieces behind one another, hashes and writes them; returns the processor time that it took, and the bytes
/// of the file.
fn write(layout: &Arc<Layout>, pieces: &mpsc::Receiver<Piece>) -> (Duration, u64) {
    use std::io::Write as _;

    let mut file = tempfile::tempfile().expect("a file can be made");
    let (mut hash, mut size) = (digest::Context::new(&digest::SHA256), 0);
    let mut put = |bytes: &[u8]| {
        file.write_all(bytes).expect("the file can be written");
        hash.update(bytes);
        size += bytes.len() as u64;
    };
    let (mut assembler, begin) = layout.begin().expect("the format is built");
    put(&begin);
    for piece in pieces {
        put(&assembler.append(piece).expect("the piece is of this layout"));
    }
    put(&assembler.finish().expect("the format can be ended"));
    hash.finish();
    (own_time(), size)
}

struct Measured {
    wall: Duration,
    /// Sum of all reading threads.
    parallel: Duration,
    serial: Duration,
    bytes: u64,
}

fn measure(layout: &Arc<Layout>, messages: &[Vec<u8>], threads: usize) -> Measured {
    let (pieces_in, pieces_out) = mpsc::sync_channel(PIECES_AHEAD);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..threads)
            .map(|_| {
                let pieces = pieces_in.clone();
                scope.spawn(move || read(layout, messages, ROWS / threads, &pieces))
            })
            .collect();
        drop(pieces_in);
        let (serial, bytes) = scope.spawn(move || write(layout, &pieces_out)).join().expect("the writer ends");
        let parallel = readers.into_iter().map(|reader| reader.join().expect("a reader ends")).sum();
        Measured { wall: begun.elapsed(), parallel, serial, bytes }
    })
}

fn main() {
    let messages = messages();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{ROWS} rows, {processors} processors");
    println!("format         threads   wall s   on the threads s   serial s   MB   calculated: 16 processors, rows/s");
    for (format, compression) in [
        (Format::Csv, Compression::None),
        (Format::Csv, Compression::Zstd),
        (Format::Csv, Compression::Gzip),
        (Format::Ndjson, Compression::None),
        (Format::Parquet, Compression::Zstd),
    ] {
        let Ok(layout) = Layout::new(Encoding { format, compression }, columns_of_users(), None).map(Arc::new) else {
            continue;
        };
        for threads in [1, 2, 4] {
            let Measured { wall, parallel, serial, bytes } = measure(&layout, &messages, threads);
            let slowest = serial.max(parallel / 15).as_secs_f64();
            println!(
                "{:7} {:6} {threads:8} {:8.3} {:18.3} {:10.3} {:4} {:14.1} M",
                format.as_str(),
                compression.as_str(),
                wall.as_secs_f64(),
                parallel.as_secs_f64(),
                serial.as_secs_f64(),
                bytes / 1_000_000,
                ROWS as f64 / slowest / 1e6,
            );
        }
    }
}
