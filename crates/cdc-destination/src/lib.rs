#![doc = include_str!("../README.md")]

mod archive;
#[cfg(feature = "buckets")]
mod bucket;
mod database;
mod destination;
mod drafts;
mod error;
mod export_files;
mod file_name;
mod folder;
mod hidden;
mod limited;
mod lookup;
mod marker;
mod marker_file;
mod published_file;
mod settings;
mod small_file;
mod staged_file;
mod stall;

pub use archive::Archive;
#[cfg(feature = "buckets")]
pub use bucket::{BucketAddress, Settings as BucketSettings};
pub use database::{BadDatabaseId, DatabaseId};
pub use destination::{Destination, Prepared, Published, WrittenManifest, path_from_manifest};
pub use drafts::{Draft, Drafts};
pub use error::Error;
pub use export_files::{ExportFiles, Part, content_sha256};
pub use file_name::FileName;
pub use hidden::HiddenFile;
pub use limited::Limited;
pub use lookup::Lookup;
pub use marker::Marker;
pub use marker_file::MarkerFile;
pub use published_file::PublishedFile;
pub use settings::Settings;
pub use small_file::SmallFile;
pub use staged_file::{FileIdentity, FileLocation, StagedFile};
pub use stall::{StallWatch, stall_limit};

/// The file or object that holds the id of a destination, beside the export files.
const DESTINATION_ID_FILE: &str = ".cdc-export-store";
