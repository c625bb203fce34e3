//! The files of one export at a destination.

use cdc_manifest::{ConsumerId, JobId, file_names};

use crate::{DatabaseId, StagedFile};

/// The files of an export, and what their names and that of their manifest are made of.
#[derive(Clone, Debug)]
pub struct ExportFiles {
    pub job: JobId,
    /// The consumer of the export's lane. `None` for an ad-hoc export.
    pub consumer: Option<ConsumerId>,
    pub database: DatabaseId,
    pub dataset: String,
    /// The final name of an only file. The names of several files are derived from it: see [`file_names`].
    pub name: String,
    pub parts: Vec<Part>,
    /// The text of the manifest, if it is recorded and the files are perhaps not published yet.
    pub manifest: Option<String>,
}

impl ExportFiles {
    /// Returns each file with its final name.
    pub fn named(&self) -> impl Iterator<Item = (String, &StagedFile)> {
        let names = file_names(&self.name, self.parts.len());
        names.zip(&self.parts).map(|(name, part)| (name, &part.staged))
    }

    pub fn owned(&self) -> Vec<(String, StagedFile)> {
        self.named().map(|(name, file)| (name, file.clone())).collect()
    }
}

/// A file of an export. An export has one or several, and each of them is a complete file of its format.
#[derive(Clone, Debug)]
pub struct Part {
    /// The number of rows, without the header.
    pub rows: u64,
    pub staged: StagedFile,
}

/// Returns the digest of an export's content, in hexadecimal.
///
/// For one file, this is the SHA-256 of the file. For several files, it is the SHA-256 of a list of their SHA-256s, one
/// a line.
pub fn content_sha256(parts: &[Part]) -> String {
    match parts {
        [only] => only.staged.sha256.clone(),
        several => {
            let lines: String = several.iter().map(|part| format!("{}\n", part.staged.sha256)).collect();
            hex::encode(ring::digest::digest(&ring::digest::SHA256, lines.as_bytes()))
        }
    }
}
