//! How fast binary rows become a file's: bytes of the file in a second, on one core.
//!
//! ```text
//! cargo bench --bench encode
//! ```

use std::hint::black_box;

use bytes::{BufMut, Bytes, BytesMut};
use cdc_export::dataset::USERS;
use cdc_export::encode::Encoder;
use cdc_export::job::{ExportType, Format};
use cdc_export::row::Frame;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// About what a frame of an export holds.
const ROWS: i64 = 1_200;

/// A frame of users, each with this name.
fn frame(name: &str) -> Frame {
    let mut rows = BytesMut::new();
    for id in 0..ROWS {
        let made = 825_000_000_000_000 + id * 2_592_000_017;
        let email = format!("user.{id}@example.com");
        let (id, made, changed) = (id.to_be_bytes(), made.to_be_bytes(), (made + 86_400_123_456).to_be_bytes());
        let fields: [&[u8]; 6] = [&id, name.as_bytes(), email.as_bytes(), &made, &changed, &[0]];
        rows.put_i16(6);
        for field in fields {
            rows.put_i32(field.len() as i32);
            rows.put_slice(field);
        }
    }
    Frame(Bytes::from(rows))
}

fn encode(encoder: &mut Encoder, frame: &Frame, out: &mut Vec<u8>) {
    let (mut rows, mut fields) = (frame.rows(), Vec::new());
    while rows.next_into(&mut fields).expect("the frame is whole") {
        encoder.row(&fields, out).expect("the rows are users");
    }
}

fn csv(c: &mut Criterion) {
    measure(c, Format::Csv);
}

fn ndjson(c: &mut Criterion) {
    measure(c, Format::Ndjson);
}

fn measure(c: &mut Criterion, format: Format) {
    let mut encoder = Encoder::new(format, USERS.file_columns(ExportType::Full), None).expect("it is built");
    let mut group = c.benchmark_group(format.as_str());
    for (case, name) in [("plain", "Ada Lovelace"), ("quoted", "Lovelace, Ada \"A.\""), ("not ascii", "Ada Łóvelace")]
    {
        let (frame, mut out) = (frame(name), Vec::new());
        encode(&mut encoder, &frame, &mut out);
        group.throughput(Throughput::Bytes(out.len() as u64));
        group.bench_function(case, |bencher| {
            bencher.iter(|| {
                out.clear();
                encode(&mut encoder, black_box(&frame), &mut out);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, csv, ndjson);
criterion_main!(benches);
