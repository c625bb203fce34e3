//! What an attempt made: a staged file, and how it is known again.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// What an attempt made: a file that is whole and on disk, still under its hidden name.
#[derive(Clone, Debug)]
pub struct Exported {
    /// Rows in the file, the header not among them.
    pub rows: u64,
    /// Those among them that the timestamps alone would have missed.
    pub late_rows: u64,
    /// Those that are gone, and of which the log has the key alone.
    pub key_only_deletes: u64,
    /// The latest finite `updated_at` among those that are in the table.
    pub last_updated_at: Option<DateTime<Utc>>,
    /// The file.
    pub file: StagedFile,
}

/// A staged file, and how to know it again under its final name.
#[derive(Clone, Debug)]
pub struct StagedFile {
    /// The id of the folder that has it.
    pub store: Uuid,
    /// Its hidden name there.
    pub name: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// What a file of another content can't share.
    pub identity: FileIdentity,
}

/// How a file is known again: a renamed file keeps all three, a rewritten or copied one doesn't.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// Size in bytes.
    pub size: u64,
    /// Number of its inode.
    pub inode: u64,
    /// Last modification, nanoseconds since 1970.
    pub modified_ns: i64,
}
