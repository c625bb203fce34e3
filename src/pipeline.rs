//! Writes the rows of one export from the source into staged files: read, encode, hash, write.
//!
//! Each reader encodes and compresses its own rows into pieces. One blocking thread hashes and writes the pieces.
//! Memory is bounded by one piece for each reader and the pieces that wait for the writer.
//!
//! This module must not know the queue or the store.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use pg_rows::row::{BinaryRows, Fields};
use pg_rows::{Encoder, FileAssembler, Layout, Piece};
use tokio::sync::mpsc;

use crate::file::Exported;
use crate::job::Export;
use cdc_capture::{Progress, ReceiverClosed, RowLayout, RowReceiver, Rows};
use cdc_dataset::{CellMax, KnownColumn, MaskSecret};
use cdc_destination::{self, Draft, Drafts, Part};
use cdc_manifest::MOST_FILES;
use pg_rows::export_type::ExportType;

/// The largest number of pieces that wait between the readers and the writer.
const PIECES_AHEAD: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Source(#[from] cdc_capture::Error),
    #[error(transparent)]
    NotInFormat(pg_rows::Error),
    /// A text is not valid UTF-8.
    #[error(transparent)]
    InvalidText(pg_rows::Error),
    /// A row does not match the dataset, or the library of the format failed. Either there is a defect, or the table
    /// was changed meanwhile.
    #[error(transparent)]
    WrongRow(pg_rows::Error),
    #[error(transparent)]
    Compressor(pg_rows::Error),
    #[error(transparent)]
    Sink(#[from] cdc_destination::Error),
    /// A mask needs a secret, and this process has another one than the database accepts, or none.
    #[error(
        "MASK_SECRET of this process is not the one that the database accepts: restart the process with that one, or accept this one by \
         `cdc-export mask rotate`"
    )]
    NoMaskSecret,
    #[error("an export of more than {MOST_FILES} files: raise maxFileBytes, and request the export again")]
    TooManyFiles,
    #[error("writing the file panicked")]
    Panicked(#[source] tokio::task::JoinError),
}

impl From<pg_rows::Error> for Error {
    fn from(error: pg_rows::Error) -> Error {
        match error {
            pg_rows::Error::InvalidText { .. } => Error::InvalidText(error),
            pg_rows::Error::WrongType { .. } | pg_rows::Error::WrongShape { .. } | pg_rows::Error::CutShort(_) => {
                Error::WrongRow(error)
            }
            pg_rows::Error::Compressor(_) => Error::Compressor(error),
            pg_rows::Error::NotInFormat { .. } | pg_rows::Error::Encoding(_) => Error::NotInFormat(error),
            pg_rows::Error::Library { .. } => Error::WrongRow(error),
        }
    }
}

/// The rows to write, and the form of their files.
#[derive(Debug)]
pub struct ExportSpec<'a> {
    /// The export: its consumer, selection and encoding.
    pub export: &'a Export,
    /// The watermark from which the export begins.
    pub since: Option<DateTime<Utc>>,
    pub cell_max: CellMax,
    /// The size in bytes at which a file is full. `None` writes one file.
    pub max_file_bytes: Option<u64>,
    /// The compression level. `None` uses the default level of the codec.
    pub compression_level: Option<u8>,
    /// The secret of masks. `None` if the process has none, or one that the database does not accept.
    pub mask_secret: Option<&'a MaskSecret>,
    /// True to stage no file if there are no rows.
    pub skips_empty: bool,
    pub progress: &'a Progress,
}

/// Writes the rows of an export's snapshot into drafts, and stages all but the last one.
///
/// Writes several drafts if [`ExportSpec::max_file_bytes`] bounds the size of a file.
///
/// # Errors
/// If any step fails. The unstaged draft is then removed. The caller must remove the staged ones.
pub async fn run(rows: Rows<'_>, spec: &ExportSpec<'_>, drafts: Drafts) -> Result<WrittenExport, Error> {
    let export = Arc::new(ExportLayout::new(rows.layout(spec.export.row_request()), spec)?);
    let first = FileWriter::new(&export.file, drafts.create(1).await?)?;
    let (pieces_in, pieces_out) = mpsc::channel(PIECES_AHEAD);
    let written = WrittenParts::new(spec);
    let layout = Arc::clone(&export.file);
    let read = async move {
        let receiver = || PieceSender::new(&export, &pieces_in);
        match rows.read(spec.export.row_request(), spec.cell_max, spec.progress, receiver).await {
            // The writer has failed, and its own result contains the cause.
            Err(cdc_capture::Error::ReceiverGone) => std::future::pending().await,
            read => Ok(read?),
        }
    };
    // The first failure ends both sides. Otherwise a reader would notice a failed writer only at its next piece.
    let ((), (last, written)) = tokio::try_join!(read, write(first, written, pieces_out, &layout, &drafts))?;
    if spec.skips_empty && written.stats.rows == 0 {
        return Ok(WrittenExport(None));
    }
    Ok(WrittenExport(Some((last, written, drafts))))
}

/// A written export, whose last file is not staged yet. Its drafts are stopped when it is dropped.
pub struct WrittenExport(Option<(FileWriter, WrittenParts, Drafts)>);

impl WrittenExport {
    /// Stages the last file. Other exports can be written meanwhile.
    ///
    /// # Errors
    /// If the file can't be staged. The draft is then removed.
    pub async fn stage(self) -> Result<Exported, Error> {
        match self.0 {
            Some((last, written, _drafts)) => blocking(move || last.finish(written)).await,
            None => Ok(Exported::default()),
        }
    }
}

/// Writes all pieces, on a blocking thread for each file. The caller must stage the last file.
async fn write(
    mut writer: FileWriter,
    mut written: WrittenParts,
    mut pieces: mpsc::Receiver<EncodedPiece>,
    layout: &Arc<Layout>,
    drafts: &Drafts,
) -> Result<(FileWriter, WrittenParts), Error> {
    let mut first = None;
    loop {
        match blocking(move || writer.write_all(written, first, pieces)).await? {
            FileEnd::EndOfRows(writer, written) => return Ok((*writer, written)),
            FileEnd::FileFull(full, next, further) => (written, first, pieces) = (full, Some(next), further),
        }
        writer = FileWriter::new(layout, drafts.create(written.parts.len() as u32 + 1).await?)?;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Panicked)?
}

struct ExportLayout {
    rows: RowLayout,
    file: Arc<Layout>,
    /// The watermark before the export. `None` if no row can be late.
    since: Option<i64>,
}

impl ExportLayout {
    fn new(rows: RowLayout, spec: &ExportSpec<'_>) -> Result<ExportLayout, Error> {
        let &ExportSpec { export, since, compression_level, mask_secret, .. } = spec;
        // A full export does not select changes, so it has no late rows.
        let since = since.filter(|_| export.export_type != ExportType::Full);
        let columns = rows.columns.iter().map(|column| column.in_file(mask_secret));
        let columns = columns.collect::<Option<_>>().ok_or(Error::NoMaskSecret)?;
        Ok(ExportLayout {
            file: Arc::new(Layout::new(export.encoding, columns, compression_level)?),
            since: since.and_then(|time| (time - POSTGRES_EPOCH).num_microseconds()),
            rows,
        })
    }
}

/// Row counts and the latest time of one or several pieces.
#[derive(Clone, Copy, Debug, Default)]
struct RowStats {
    rows: u64,
    late_rows: u64,
    /// The latest time that can be a watermark, in microseconds since Postgres's epoch.
    latest: Option<i64>,
}

impl RowStats {
    fn add(&mut self, other: RowStats) {
        self.rows += other.rows;
        self.late_rows += other.late_rows;
        self.latest = self.latest.max(other.latest);
    }

    fn observe(&mut self, export: &ExportLayout, fields: &[Option<&[u8]>]) {
        self.rows += 1;
        let is_gone = export.rows.is_gone.and_then(|index| fields.get(index)) == Some(&Some(&[1]));
        let updated_at = export.rows.updated_at.and_then(|index| micros((*fields.get(index)?)?));
        // The time of a deleted row is not used as a watermark.
        if !is_gone {
            self.latest = self.latest.max(updated_at.filter(|micros| is_watermark(*micros)));
        }
        let late = updated_at.zip(export.since).is_some_and(|(updated_at, since)| updated_at <= since);
        // A row is late if a search by timestamps alone would miss it. Without a watermark, no row is late.
        self.late_rows += u64::from(export.since.is_some() && (is_gone || late || updated_at.is_none()));
    }
}

/// A piece and the statistics of its rows, or the error that ends the export.
type EncodedPiece = Result<(Piece, RowStats), Error>;

/// Encodes the rows of one reader, and sends them to the writer as pieces.
struct PieceSender {
    export: Arc<ExportLayout>,
    /// The encoder. `None` only while another thread packs a piece.
    encoder: Option<Encoder>,
    stats: RowStats,
    fields: Fields,
    failed: Option<Error>,
    pieces: mpsc::Sender<EncodedPiece>,
}

impl PieceSender {
    fn new(export: &Arc<ExportLayout>, pieces: &mpsc::Sender<EncodedPiece>) -> PieceSender {
        PieceSender {
            export: Arc::clone(export),
            encoder: Some(Encoder::new(&export.file)),
            stats: RowStats::default(),
            fields: Fields::default(),
            failed: None,
            pieces: pieces.clone(),
        }
    }

    /// Encodes whole rows. Returns true if the encoder has enough rows for a piece.
    fn encode(&mut self, rows: &[u8]) -> Result<bool, Error> {
        let Some(encoder) = &mut self.encoder else { return Ok(true) };
        let (mut rows, mut fields) = (BinaryRows::new(rows), self.fields.take());
        while rows.next_into(&mut fields).map_err(pg_rows::Error::from)? {
            let layout = &self.export.rows;
            if let Some(KnownColumn { index, value }) = layout.known.filter(|known| known.index <= fields.len()) {
                fields.insert(index, value);
            }
            if fields.len() != layout.fields() {
                let (expected, found) = (layout.fields(), fields.len());
                return Err(pg_rows::Error::WrongShape { expected, found }.into());
            }
            encoder.row(&fields[..layout.columns.len()])?;
            self.stats.observe(&self.export, &fields);
        }
        self.fields.put_back(fields);
        Ok(encoder.is_full())
    }

    /// Makes a piece of the encoded rows. Returns `None` if there are none.
    async fn pack(&mut self) -> Result<Option<Piece>, Error> {
        let Some(mut encoder) = self.encoder.take_if(|encoder| !encoder.is_empty()) else { return Ok(None) };
        let pack = move || {
            let piece = encoder.pack()?;
            Ok((piece, encoder))
        };
        // A long call must not block the runtime's threads, which also serve the API.
        let (piece, encoder) = if self.export.file.packs_long() { blocking(pack).await? } else { pack()? };
        self.encoder = Some(encoder);
        Ok(Some(piece))
    }
}

impl RowReceiver for PieceSender {
    fn receive(&mut self, rows: &[u8]) -> bool {
        self.encode(rows).unwrap_or_else(|error| {
            self.failed = Some(error);
            true
        })
    }

    async fn flush(&mut self) -> Result<(), ReceiverClosed> {
        let packed = match self.failed.take() {
            Some(error) => Err(error),
            None => self.pack().await,
        };
        let (piece, goes_on) = match packed {
            Ok(None) => return Ok(()),
            Ok(Some(piece)) => (Ok((piece, std::mem::take(&mut self.stats))), Ok(())),
            Err(error) => (Err(error), Err(ReceiverClosed)),
        };
        self.pieces.send(piece).await.map_err(|_| ReceiverClosed)?;
        goes_on
    }
}

struct WrittenParts {
    parts: Vec<Part>,
    stats: RowStats,
    /// The size in bytes at which a file is full. `None` writes one file.
    max_bytes: Option<u64>,
    progress: Progress,
}

impl WrittenParts {
    fn new(spec: &ExportSpec<'_>) -> WrittenParts {
        let (max_bytes, progress) = (spec.max_file_bytes, spec.progress.clone());
        WrittenParts { parts: Vec::new(), stats: RowStats::default(), max_bytes, progress }
    }

    fn report(&self, draft: &dyn Draft) {
        let staged: u64 = self.parts.iter().map(|part| part.staged.identity.bytes).sum();
        self.progress.written(self.stats.rows, staged + draft.size());
    }
}

struct FileWriter {
    assembler: Box<dyn FileAssembler>,
    draft: Box<dyn Draft>,
    /// The bytes before the first row, until they are written together with it.
    begin: Vec<u8>,
    rows: u64,
}

enum FileEnd {
    /// The file has reached its maximum size and is staged. This piece and the rest go into the next file.
    FileFull(WrittenParts, (Piece, RowStats), mpsc::Receiver<EncodedPiece>),
    /// All rows are written. The caller must stage the file.
    EndOfRows(Box<FileWriter>, WrittenParts),
}

impl FileWriter {
    fn new(layout: &Arc<Layout>, draft: Box<dyn Draft>) -> Result<FileWriter, Error> {
        let (assembler, begin) = layout.begin()?;
        Ok(FileWriter { assembler, draft, begin, rows: 0 })
    }

    fn write_all(
        mut self,
        mut written: WrittenParts,
        mut first: Option<(Piece, RowStats)>,
        mut pieces: mpsc::Receiver<EncodedPiece>,
    ) -> Result<FileEnd, Error> {
        while let Some(piece) = first.take().map(Ok).or_else(|| pieces.blocking_recv()) {
            let (piece, stats) = piece?;
            if written.max_bytes.is_some_and(|max| self.draft.size() >= max) {
                if written.parts.len() + 1 == MOST_FILES {
                    return Err(Error::TooManyFiles);
                }
                self.stage(&mut written)?;
                return Ok(FileEnd::FileFull(written, (piece, stats), pieces));
            }
            self.append(&mut written, piece, stats)?;
        }
        Ok(FileEnd::EndOfRows(Box::new(self), written))
    }

    fn append(&mut self, written: &mut WrittenParts, piece: Piece, stats: RowStats) -> Result<(), Error> {
        let bytes = self.assembler.append(piece)?;
        FileWriter::write(&mut *self.draft, &mut self.begin, bytes)?;
        self.rows += stats.rows;
        written.stats.add(stats);
        written.report(&*self.draft);
        Ok(())
    }

    /// Writes bytes, together with the header if it is not written yet. So a small file takes one write.
    fn write(draft: &mut dyn Draft, begin: &mut Vec<u8>, mut bytes: Vec<u8>) -> Result<(), Error> {
        if !begin.is_empty() {
            begin.append(&mut bytes);
            bytes = std::mem::take(begin);
        }
        if bytes.is_empty() { Ok(()) } else { Ok(draft.write(&bytes)?) }
    }

    fn stage(self, written: &mut WrittenParts) -> Result<(), Error> {
        let FileWriter { assembler, mut draft, mut begin, rows } = self;
        FileWriter::write(&mut *draft, &mut begin, assembler.finish()?)?;
        written.report(&*draft);
        let staged = draft.stage()?;
        written.parts.push(Part { rows, staged });
        Ok(())
    }

    fn finish(self, mut written: WrittenParts) -> Result<Exported, Error> {
        self.stage(&mut written)?;
        let WrittenParts { parts, stats: RowStats { rows, late_rows, latest }, .. } = written;
        Ok(Exported { rows, late_rows, last_updated_at: latest.map(time), parts })
    }
}

const POSTGRES_EPOCH: DateTime<Utc> = DateTime::from_timestamp(946_684_800, 0).expect("2000-01-01 is a time");

/// Returns true if a time can be a watermark: it is finite and before the year 200000. `chrono` can't represent much
/// later times. The table `watermarks` has the same bound.
fn is_watermark(micros: i64) -> bool {
    const YEAR_200000: i64 = 6_248_276_496_000_000_000;
    micros > i64::MIN && micros < YEAR_200000
}

/// Parses a `timestamptz` in binary format: microseconds since Postgres's epoch.
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
    fn infinite_and_too_late_times_are_not_watermarks() {
        assert!(!is_watermark(i64::MAX) && !is_watermark(i64::MIN) && is_watermark(0));
        assert_eq!(time(0).to_rfc3339(), "2000-01-01T00:00:00+00:00");
        let last = 6_248_276_495_999_999_999;
        assert!(is_watermark(last) && !is_watermark(last + 1));
        assert_eq!(time(last).to_rfc3339(), "+199999-12-31T23:59:59.999999+00:00");
    }
}
