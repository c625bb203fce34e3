//! The speed of encoding: bytes of the file per second, on one core. Prints the median of a hundred rounds.
//!
//! ```text
//! cargo bench --bench encode
//! ```

mod rows;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use pg_rows::column::{Column, ColumnType};
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::row::Fields;
use pg_rows::{Encoder, Layout};

use crate::rows::{columns_of_users, put_row, put_user};

/// About what a piece of an export holds.
const ROWS: i64 = 2_400;
/// Encodings of these rows in one round: some ten milliseconds.
const PER_ROUND: usize = 50;
const ROUNDS: usize = 100;

/// Users, each with this name.
fn rows_of_users(name: &str) -> Vec<u8> {
    let mut rows = Vec::new();
    for id in 0..ROWS {
        put_user(id, name, &mut rows);
    }
    rows
}

/// The kinds that users don't have.
const OTHERS: [Column; 10] = [
    Column::new("a", ColumnType::Int4),
    Column::new("b", ColumnType::Float4),
    Column::new("c", ColumnType::Float8),
    Column::new("d", ColumnType::Numeric),
    Column::new("e", ColumnType::Uuid),
    Column::new("f", ColumnType::Bytea),
    Column::new("g", ColumnType::Jsonb),
    Column::new("h", ColumnType::Timestamp),
    Column::new("i", ColumnType::Date),
    Column::new("j", ColumnType::Time),
];

/// Rows with a value of each of the other kinds.
fn rows_of_others() -> Vec<u8> {
    let mut rows = Vec::new();
    for n in 0..ROWS {
        let float = (n as f64 + 0.123_456_789) * 1.7;
        // 1234 0000 5678.90
        let numeric = [4, 2, 0, 2, 1234, n as u16, 5678, 9000].map(u16::to_be_bytes).concat();
        let uuid = (n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c834).to_be_bytes();
        let json = format!("\x01{{\"id\": {n}, \"tags\": [\"a\", \"b\"]}}");
        let (micros, day) = (825_000_000_000_000 + n * 2_592_000_017, 9_000 + n as i32);
        let fields: [&[u8]; 10] = [
            &(n as i32).to_be_bytes(),
            &(float as f32).to_be_bytes(),
            &float.to_be_bytes(),
            &numeric,
            &uuid,
            &uuid,
            json.as_bytes(),
            &micros.to_be_bytes(),
            &day.to_be_bytes(),
            &(micros % 86_400_000_000).to_be_bytes(),
        ];
        put_row(&fields, &mut rows);
    }
    rows
}

/// Encodes as an export does, into a piece of the file; returns how many bytes it is.
fn encode(layout: &Arc<Layout>, encoder: &mut Encoder, room: &mut Fields, rows: &[u8]) -> usize {
    rows::encode(encoder, room, rows);
    let piece = encoder.pack().expect("it can be packed");
    let (mut assembler, _) = layout.begin().expect("the format is built");
    assembler.append(piece).expect("the piece is of this layout").len()
}

/// Prints the speed of one case.
fn measure(case: &str, format: Format, columns: Vec<Column>, rows: &[u8]) {
    let encoding = Encoding { format, compression: Compression::None };
    let layout = Arc::new(Layout::new(encoding, columns, None).expect("the format is built"));
    let (mut encoder, mut room) = (Encoder::new(&layout), Fields::default());
    let mut round = || {
        let begun = Instant::now();
        let bytes: usize = (0..PER_ROUND).map(|_| encode(&layout, &mut encoder, &mut room, black_box(rows))).sum();
        bytes as f64 / begun.elapsed().as_secs_f64()
    };
    // The first round warms the caches.
    round();
    let mut speeds: Vec<_> = (0..ROUNDS).map(|_| round()).collect();
    speeds.sort_by(f64::total_cmp);
    println!("{:7} {case:12} {:6.2} GiB/s", format.as_str(), speeds[ROUNDS / 2] / f64::from(1 << 30));
}

fn main() {
    for format in [Format::Csv, Format::Ndjson] {
        for (case, name) in
            [("plain", "Ada Lovelace"), ("quoted", "Lovelace, Ada \"A.\""), ("not ascii", "Ada Łóvelace")]
        {
            measure(case, format, columns_of_users(), &rows_of_users(name));
        }
        measure("other kinds", format, OTHERS.to_vec(), &rows_of_others());
    }
}
