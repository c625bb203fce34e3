//! Export files at their destination: a folder or a bucket, behind the trait [`Destination`].
//!
//! A file is written as a hidden [`Draft`], staged, and published under its final name after its job is committed.
//! [`Limited`] bounds the operations that one caller has under way. [`Archive`] reads files and manifests of any folder
//! or bucket.
//!
//! Must not know the queue, the store or the file formats.

mod archive;
#[cfg(feature = "buckets")]
mod bucket;
mod destination;
mod drafts;
mod error;
mod folder;
mod limited;
mod lookup;
mod marker_file;
mod published_file;
mod settings;
mod small_file;
mod stall;

pub use archive::Archive;
#[cfg(feature = "buckets")]
pub use bucket::{BucketAddress, Settings as BucketSettings};
pub use destination::{Destination, Prepared, Published, WrittenManifest, path_from_manifest};
pub use drafts::{Draft, Drafts};
pub use error::Error;
pub use limited::Limited;
pub use lookup::Lookup;
pub use marker_file::MarkerFile;
pub use published_file::PublishedFile;
pub use settings::Settings;
pub use small_file::SmallFile;
pub use stall::{StallWatch, stall_limit};

/// The file or object that holds the id of a destination, beside the export files.
const DESTINATION_ID_FILE: &str = ".cdc-export-store";
