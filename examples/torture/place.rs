//! The place of the files, a folder or a bucket. This module reads it without asking the service.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bucket::Bucket;
use crate::era::Export;
use crate::lanes::AD_HOC;
use crate::proxy::Link;

/// Number of replicas on one folder, and on one bucket without a common folder.
const ON_A_FOLDER: usize = 3;
const ON_A_BUCKET: usize = 2;

const NOTES: &str = ".uploads/";

pub(crate) enum Place {
    Folder(PathBuf),
    Bucket(Bucket),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The inode, or the ETag.
    pub(crate) tag: String,
    pub(crate) size: u64,
    pub(crate) modified: String,
}

pub(crate) struct Listing<'p> {
    place: &'p Place,
    pub(crate) finals: Vec<String>,
    pub(crate) manifests: Vec<String>,
    /// Hidden files, except the place's own mark and those of lanes.
    pub(crate) hidden: Vec<String>,
    /// The objects of a bucket, by name. Its list has the identity of each.
    objects: HashMap<String, Identity>,
}

pub(crate) fn replicas(store: Option<&Bucket>) -> usize {
    if store.is_some() { ON_A_BUCKET } else { ON_A_FOLDER }
}

impl Place {
    /// Makes an empty place: an unused prefix in the store, or a folder in `folder`.
    pub(crate) async fn new(store: Option<&Bucket>, folder: &Path) -> Result<Place> {
        if let Some(bucket) = store {
            return Ok(Place::Bucket(bucket.unused().await?));
        }
        let output = folder.join("output");
        std::fs::create_dir(&output)?;
        Ok(Place::Folder(output))
    }

    /// Returns the variables that describe the place to a process. With a link, they lead through it.
    pub(crate) fn environment(&self, link: Option<&Link>) -> Result<Vec<(&'static str, String)>> {
        Ok(match self {
            Place::Folder(path) => vec![("OUTPUT_DIR", path.to_string_lossy().into_owned())],
            Place::Bucket(bucket) => bucket.environment(link.map_or_else(|| bucket.port(), |link| Ok(link.port))?),
        })
    }

    pub(crate) async fn link(&self) -> Result<Option<Link>> {
        match self {
            Place::Folder(_) => Ok(None),
            Place::Bucket(bucket) => Ok(Some(Link::to(bucket.port()?).await?)),
        }
    }

    pub(crate) async fn list(&self) -> Result<Listing<'_>> {
        let mut objects = HashMap::new();
        let names: BTreeSet<String> = match self {
            Place::Folder(path) => {
                let entries =
                    std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
                entries.collect::<Result<_>>()?
            }
            Place::Bucket(bucket) => {
                objects = bucket.objects().await?;
                objects.keys().cloned().collect()
            }
        };
        let is_kept = |name: &String| name == ".cdc-export-store" || name.starts_with(".lane-");
        let (hidden, shown): (_, Vec<String>) =
            names.into_iter().filter(|name| !is_kept(name)).partition(|name| name.starts_with('.'));
        let is_manifest = |name: &String| name.ends_with(".manifest.json") || name.contains("/_manifests/");
        let (manifests, finals) = shown.into_iter().partition(is_manifest);
        Ok(Listing { place: self, finals, manifests, hidden, objects })
    }

    pub(crate) async fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Place::Folder(path) => Ok(std::fs::read(path.join(name)).ok()),
            Place::Bucket(bucket) => bucket.read(name).await,
        }
    }

    /// Returns the name of the file of a completed export in this place. Returns `None` if it has no name yet.
    pub(crate) fn name(&self, export: &Export) -> Option<String> {
        match self {
            Place::Folder(_) => Some(export.output_filename.clone()),
            Place::Bucket(bucket) => {
                let below = export.location.as_deref()?.strip_prefix(&bucket.url(""))?;
                Some(below.trim_start_matches('/').to_owned())
            }
        }
    }

    /// Returns the name that the file must have. In a bucket, it has the first eight digits of the attempt's token.
    pub(crate) fn due_name(&self, export: &Export) -> Result<String> {
        let Export { output_filename, dataset, consumer_id, staged_name, .. } = export;
        if let Place::Folder(_) = self {
            return Ok(output_filename.clone());
        }
        let consumer = if consumer_id == AD_HOC { "_ad_hoc" } else { consumer_id };
        let (stem, extension) = split(output_filename);
        // `.{database}.{job}.{token}.{n}.part`
        let token = staged_name.as_deref().and_then(|hidden| hidden.split('.').nth(3));
        let token = token.context("a completed export has a hidden name, which has its attempt's token")?;
        Ok(format!("{dataset}/{consumer}/{stem}_{}{extension}", &token[..8.min(token.len())]))
    }

    /// Returns the `outputFilename` of the export whose file has this name.
    pub(crate) fn output_filename(&self, name: &str) -> String {
        let (stem, extension) = split(name.rsplit('/').next().unwrap_or_default());
        match (self, stem.rsplit_once('_')) {
            (Place::Bucket(_), Some((stem, _token))) => format!("{stem}{extension}"),
            _ => name.to_owned(),
        }
    }

    /// Returns hidden files, notes of uploads, and uploads. Leaves out those of forgotten jobs.
    pub(crate) async fn leftovers(&self, is_forgotten: impl Fn(&str) -> bool) -> Result<Vec<String>> {
        let (kept, mut left): (Vec<_>, Vec<_>) = self.list().await?.hidden.into_iter().partition(|name| {
            // `.{database}.{job}.{token}.{n}.part`; a bucket has its notes in a folder of their own.
            let job = name.strip_prefix(NOTES).unwrap_or(name).split('.').nth(2);
            job.is_some_and(&is_forgotten)
        });
        let Place::Bucket(bucket) = self else { return Ok(left) };
        let mut of_kept = Vec::new();
        for note in kept {
            of_kept.extend(bucket.read(&note).await?.map(|text| String::from_utf8_lossy(&text).into_owned()));
        }
        let is_noted = |key: &str| of_kept.iter().any(|note| note.contains(&format!("\"{key}\"")));
        let uploads = bucket.uploads().await?.into_iter().filter(|upload| !is_noted(&upload.key));
        left.extend(uploads.map(|upload| format!("the upload of {}", upload.key)));
        Ok(left)
    }
}

impl Listing<'_> {
    /// Returns the identity of the file with this name: in a folder now, in a bucket when it was listed.
    pub(crate) fn identity(&self, name: &str) -> Option<Identity> {
        match self.place {
            Place::Folder(path) => {
                let found = std::fs::symlink_metadata(path.join(name)).ok()?;
                let modified = format!("{}.{:09}", found.mtime(), found.mtime_nsec());
                Some(Identity { tag: found.ino().to_string(), size: found.size(), modified })
            }
            Place::Bucket(_) => self.objects.get(name).cloned(),
        }
    }
}

/// Splits a name into stem and extension. Only a consumer's name has dots in a stem, and no extension here has two.
fn split(name: &str) -> (&str, &str) {
    name.rfind('.').map_or((name, ""), |at| name.split_at(at))
}
