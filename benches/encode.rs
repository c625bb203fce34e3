//! How fast binary rows become a file's: bytes of the file in a second, on one core.
//!
//! ```text
//! cargo bench --bench encode
//! ```

use std::hint::black_box;

use bytes::{BufMut, Bytes, BytesMut};
use cdc_export::dataset::{Column, ColumnType};
use cdc_export::encode::Encoder;
use cdc_export::job::encoding::Format;
use cdc_export::row::Frame;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};

/// About what a frame of an export holds.
const ROWS: i64 = 1_200;

/// A frame of users, each with this name.
fn frame(name: &str) -> Frame {
    let mut rows = BytesMut::new();
    for id in 0..ROWS {
        let made = 825_000_000_000_000 + id * 2_592_000_017;
        let email = format!("user.{id}@example.com");
        let (id, made, changed) = (id.to_be_bytes(), made.to_be_bytes(), (made + 86_400_123_456).to_be_bytes());
        put_row(&[&id, name.as_bytes(), email.as_bytes(), &made, &changed, &[0]], &mut rows);
    }
    Frame(Bytes::from(rows))
}

fn put_row(fields: &[&[u8]], rows: &mut BytesMut) {
    rows.put_i16(fields.len() as i16);
    for field in fields {
        rows.put_i32(field.len() as i32);
        rows.put_slice(field);
    }
}

/// The kinds that users don't have.
const OTHERS: [Column; 10] = [
    Column::named("a", ColumnType::Int4),
    Column::named("b", ColumnType::Float4),
    Column::named("c", ColumnType::Float8),
    Column::named("d", ColumnType::Numeric),
    Column::named("e", ColumnType::Uuid),
    Column::named("f", ColumnType::Bytea),
    Column::named("g", ColumnType::Jsonb),
    Column::named("h", ColumnType::Timestamp),
    Column::named("i", ColumnType::Date),
    Column::named("j", ColumnType::Time),
];

/// A frame of rows with a value of each of the other kinds.
fn frame_of_others() -> Frame {
    let mut rows = BytesMut::new();
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
    Frame(Bytes::from(rows))
}

fn encode(encoder: &mut Encoder, frame: &Frame, out: &mut Vec<u8>) {
    let (mut rows, mut fields) = (frame.rows(), Vec::new());
    while rows.next_into(&mut fields).expect("the frame is whole") {
        encoder.row(&fields, out).expect("the rows are of these columns");
    }
}

fn csv(c: &mut Criterion) {
    measure(c, Format::Csv);
}

fn ndjson(c: &mut Criterion) {
    measure(c, Format::Ndjson);
}

fn users() -> Vec<Column> {
    [
        ("id", ColumnType::Int8),
        ("name", ColumnType::Text),
        ("email", ColumnType::Text),
        ("created_at", ColumnType::Timestamptz),
        ("updated_at", ColumnType::Timestamptz),
        ("is_deleted", ColumnType::Bool),
    ]
    .map(|(name, kind)| Column::named(name, kind))
    .into()
}

fn measure(c: &mut Criterion, format: Format) {
    let mut encoder = Encoder::new(format, users(), None).expect("it is built");
    let mut group = c.benchmark_group(format.as_str());
    for (case, name) in [("plain", "Ada Lovelace"), ("quoted", "Lovelace, Ada \"A.\""), ("not ascii", "Ada Łóvelace")]
    {
        measure_one(&mut group, case, &mut encoder, &frame(name));
    }
    let mut encoder = Encoder::new(format, OTHERS.to_vec(), None).expect("it is built");
    measure_one(&mut group, "other kinds", &mut encoder, &frame_of_others());
    group.finish();
}

fn measure_one(group: &mut BenchmarkGroup<'_, WallTime>, case: &str, encoder: &mut Encoder, frame: &Frame) {
    let mut out = Vec::new();
    encode(encoder, frame, &mut out);
    group.throughput(Throughput::Bytes(out.len() as u64));
    group.bench_function(case, |bencher| {
        bencher.iter(|| {
            out.clear();
            encode(encoder, black_box(frame), &mut out);
        });
    });
}

criterion_group!(benches, csv, ndjson);
criterion_main!(benches);
