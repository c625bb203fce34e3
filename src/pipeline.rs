//! One export's rows from the source to a staged file: read, encode, hash, write.
//!
//! Knows no queue and no store. Reading goes on while the last frame is encoded and written on a thread that may block; memory
//! is the frames in between.

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::mpsc;

use crate::dataset::{CellMax, Column, TableSchema};
use crate::encode::{self, Encoder, compress::Compressor};
use crate::file::Exported;
use crate::job::{ExportType, Job, Progress};
use crate::row::Frame;
use crate::sink::{self, Draft, Drafts};
use crate::source::{self, rows::Rows};

/// Frames that wait between the reader and the writer.
const FRAMES_AHEAD: usize = 2;

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rows could not be read.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// A value that the asked-for format has no form for.
    #[error(transparent)]
    NotInFormat(encode::Error),
    /// A text that no file may hold.
    #[error(transparent)]
    InvalidText(encode::Error),
    /// A row isn't what the dataset says: a defect, or the table was changed under the service.
    #[error(transparent)]
    WrongRow(encode::Error),
    /// The file could not be compressed.
    #[error(transparent)]
    Compressor(encode::Error),
    /// The file could not be written.
    #[error(transparent)]
    Sink(#[from] sink::Error),
    /// The writing thread panicked: a defect.
    #[error("writing the file panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl From<encode::Error> for Error {
    fn from(error: encode::Error) -> Error {
        match error {
            encode::Error::InvalidText { .. } => Error::InvalidText(error),
            encode::Error::WrongType { .. } | encode::Error::WrongShape { .. } | encode::Error::CutShort(_) => {
                Error::WrongRow(error)
            }
            encode::Error::Compressor(_) => Error::Compressor(error),
            encode::Error::NotInFormat { .. } | encode::Error::NotBuilt(_) => Error::NotInFormat(error),
            #[cfg(feature = "parquet")]
            encode::Error::Parquet(_) => Error::WrongRow(error),
        }
    }
}

/// What is to be written.
#[derive(Debug)]
pub struct ExportSpec<'a> {
    /// For whom, which rows, and how.
    pub job: &'a Job,
    /// What its table looks like.
    pub schema: &'a TableSchema,
    /// The watermark that the export begins at.
    pub since: Option<DateTime<Utc>>,
    /// How large a value may be.
    pub cell_max: CellMax,
    /// The compressor's level; `None`: the codec's own.
    pub compression_level: Option<u8>,
    /// Where to say how far it is.
    pub progress: &'a Progress,
}

/// Writes the rows of a job's snapshot into a draft and stages it.
///
/// # Errors
/// If any step fails; the draft is removed then.
pub async fn run(rows: Rows<'_>, spec: &ExportSpec<'_>, drafts: &Drafts) -> Result<Exported, Error> {
    let writer = Writer::new(spec, drafts.create().await?)?;
    let (frames_in, frames_out) = mpsc::channel(FRAMES_AHEAD);
    // The first failure ends both. When writing fails, reading would fail for want of a taker, but only at its next frame.
    let read = async { Ok(rows.read(spec.job, spec.cell_max, spec.progress, frames_in).await?) };
    let ((), writer) = tokio::try_join!(read, write(writer, frames_out))?;
    blocking(move || writer.stage()).await
}

/// Writes on a thread of its own, from the first frame to the last.
async fn write(writer: Writer, mut frames: mpsc::Receiver<Frame>) -> Result<Writer, Error> {
    // The receiver comes back too: dropped over there, it would fail the reader before the cause is known here.
    let (written, _frames) = blocking(move || Ok((writer.write_all(&mut frames), frames))).await?;
    written
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Panicked)?
}

/// The end of the line: rows become bytes, bytes become a file.
struct Writer {
    encoder: Encoder,
    compressor: Compressor,
    draft: Draft,
    /// What is encoded and not yet written.
    buffer: Vec<u8>,
    packed: Vec<u8>,
    rows: u64,
    columns: usize,
    /// Where in a row of the source its time is, perhaps behind the file's columns.
    updated_at: Option<usize>,
    /// Whether a row of the source has a time behind the file's columns, which isn't for the file.
    hidden_time: bool,
    since: Option<i64>,
    latest: Option<i64>,
    late_rows: u64,
    key_only_deletes: u64,
    progress: Progress,
}

impl Writer {
    fn new(spec: &ExportSpec<'_>, draft: Draft) -> Result<Writer, Error> {
        let &ExportSpec { job, schema, since, compression_level, progress, .. } = spec;
        let schema = schema.narrowed(&job.selection);
        // A full export finds no changes, late ones neither.
        let since = since.filter(|_| job.export_type != ExportType::Full);
        let columns = schema.file_columns(job.export_type);
        let width = columns.len();
        let hidden_time = schema.hidden_time().is_some();
        let is_time = |column: &Column| schema.updated_at.as_ref().is_some_and(|time| time.name == column.name);
        let updated_at = if hidden_time { Some(width) } else { columns.iter().position(is_time) };
        let encoder = Encoder::new(job.encoding.format, columns, compression_level)?;
        let mut buffer = Vec::new();
        encoder.begin(&mut buffer);
        Ok(Writer {
            encoder,
            compressor: Compressor::new(job.encoding.compression, compression_level)?,
            draft,
            buffer,
            packed: Vec::new(),
            rows: 0,
            columns: width,
            updated_at,
            hidden_time,
            since: since.and_then(|time| (time - POSTGRES_EPOCH).num_microseconds()),
            latest: None,
            late_rows: 0,
            key_only_deletes: 0,
            progress: progress.clone(),
        })
    }

    fn write_all(mut self, frames: &mut mpsc::Receiver<Frame>) -> Result<Writer, Error> {
        while let Some(frame) = frames.blocking_recv() {
            self.write(&frame)?;
        }
        Ok(self)
    }

    fn write(&mut self, frame: &Frame) -> Result<(), Error> {
        let mut rows = frame.rows();
        let mut fields = Vec::new();
        while rows.next_into(&mut fields).map_err(encode::Error::from)? {
            let row = fields.get(..self.columns).unwrap_or(&fields);
            self.encoder.row(row, &mut self.buffer)?;
            self.rows += 1;
            // A full export has no such field.
            let gone = fields.get(self.columns + usize::from(self.hidden_time));
            let is_key_only = gone == Some(&None);
            self.key_only_deletes += u64::from(is_key_only);
            self.observe(&fields, is_key_only || gone == Some(&Some(&[1])));
        }
        if self.buffer.len() >= self.compressor.frame_bytes() {
            self.flush()?;
        }
        Ok(())
    }

    /// A row that is gone has no time that could be a watermark, and the timestamps alone would never have found it.
    fn observe(&mut self, fields: &[Option<&[u8]>], gone: bool) {
        let updated_at = self.updated_at.and_then(|i| micros((*fields.get(i)?)?));
        if !gone {
            self.latest = self.latest.max(updated_at.filter(|micros| is_watermark(*micros)));
        }
        let late = updated_at.zip(self.since).is_some_and(|(updated_at, since)| updated_at <= since);
        // Without a watermark everything is new.
        self.late_rows += u64::from(self.since.is_some() && (gone || late || updated_at.is_none()));
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.draft.write(self.compressor.frame(&self.buffer, &mut self.packed)?)?;
        self.buffer.clear();
        self.progress.written(self.rows, self.draft.size());
        Ok(())
    }

    fn stage(mut self) -> Result<Exported, Error> {
        self.encoder.finish(&mut self.buffer)?;
        // An unpacker wants at least one frame, be it empty.
        if !self.buffer.is_empty() || self.draft.size() == 0 {
            self.flush()?;
        }
        let file = self.draft.stage()?;
        Ok(Exported {
            rows: self.rows,
            late_rows: self.late_rows,
            key_only_deletes: self.key_only_deletes,
            last_updated_at: self.latest.map(time),
            file,
        })
    }
}

/// Postgres counts from here.
const POSTGRES_EPOCH: DateTime<Utc> = DateTime::from_timestamp(946_684_800, 0).expect("2000-01-01 is a time");

/// Whether a time can be a watermark: neither infinity, nor from the year 200000 on, where our calendar ends (the table
/// `watermarks` has the same bound).
fn is_watermark(micros: i64) -> bool {
    const YEAR_200000: i64 = 6_248_276_496_000_000_000;
    micros > i64::MIN && micros < YEAR_200000
}

/// A `timestamptz` in its binary form: microseconds since Postgres's epoch.
fn micros(field: &[u8]) -> Option<i64> {
    Some(i64::from_be_bytes(field.try_into().ok()?))
}

fn time(micros: i64) -> DateTime<Utc> {
    POSTGRES_EPOCH + TimeDelta::microseconds(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_no_watermark_can_be_are_passed_over() {
        assert!(!is_watermark(i64::MAX) && !is_watermark(i64::MIN) && is_watermark(0));
        assert_eq!(time(0).to_rfc3339(), "2000-01-01T00:00:00+00:00");
        let last = 6_248_276_495_999_999_999;
        assert!(is_watermark(last) && !is_watermark(last + 1));
        assert_eq!(time(last).to_rfc3339(), "+199999-12-31T23:59:59.999999+00:00");
    }
}
