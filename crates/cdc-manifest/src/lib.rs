#![doc = include_str!("../README.md")]

mod after;
mod chain;
mod chain_report;
mod consumer;
mod dataset_name;
mod file_name;
mod job_id;
mod lane;
mod list;
mod manifest;
mod plain_name;
mod seal;
mod signing;

pub use after::After;
pub use chain::{Chains, Digest, Link, ReaderPosition, RequestTime, Successors, parse_digest, request_time};
pub use chain_report::ChainReport;
pub use consumer::ConsumerId;
pub use dataset_name::is_dataset_name;
pub use file_name::{MOST_FILES, file_names, part_name, stem_of};
pub use job_id::JobId;
pub use lane::Lane;
pub use manifest::{
    Chained, InvalidManifest, MAX_BYTES, Manifest, ManifestColumn, ManifestDatasets, ManifestFile, ManifestJob,
    ManifestSource, VERSION,
};
pub use plain_name::{NotPlain, PlainName};
pub use seal::{Broken, PublicKey};
pub use signing::SigningKey;
