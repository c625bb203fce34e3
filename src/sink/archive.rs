//! A place that files were exported to, for reading alone: its manifests, and the files that they name. Needs no mark in the place, writes
//! nothing there, and blocks, a bucket's too: for threads of a command.

use std::io::{self, Read};

use tokio::runtime::Handle;

#[cfg(feature = "buckets")]
use crate::sink::bucket::Bucket;
#[cfg(feature = "buckets")]
use crate::sink::bucket::archive::{ObjectReader, Shelf};
use crate::sink::folder::archive::Dir;
use crate::sink::found::Found;
use crate::sink::{Error, Settings};

/// The longest manifest that is read, in bytes. One of as many files as an export may have, with the longest names and keys, is half as long.
const LONGEST: u64 = 32 << 20;

/// A place of files and their manifests. Every call fails if the place can't be read.
#[derive(Debug)]
pub enum Archive {
    /// A folder.
    Folder(Dir),
    /// A bucket.
    #[cfg(feature = "buckets")]
    Bucket(Shelf),
}

/// A file of a place, open.
#[derive(Debug)]
pub enum ArchivedFile {
    /// In a folder.
    Folder(std::fs::File),
    /// In a bucket.
    #[cfg(feature = "buckets")]
    Object(ObjectReader),
}

impl Archive {
    /// The place of these settings, if it can be listed.
    ///
    /// # Errors
    /// If it isn't there.
    pub fn open(settings: &Settings, runtime: &Handle) -> Result<Archive, Error> {
        let _ = runtime;
        match settings {
            Settings::Folder { path, .. } => {
                let dir = Dir::open(path)?;
                dir.require()?;
                Ok(Archive::Folder(dir))
            }
            #[cfg(feature = "buckets")]
            Settings::Bucket(bucket) => Shelf::open(Bucket::new(bucket.clone())?, runtime.clone()).map(Archive::Bucket),
        }
    }

    /// Requires that the place is still there to be read: that what can't be found or read in it tells of that alone.
    pub fn require(&self) -> Result<(), Error> {
        match self {
            Archive::Folder(dir) => dir.require(),
            // The store's own answer to each request tells.
            #[cfg(feature = "buckets")]
            Archive::Bucket(_) => Ok(()),
        }
    }

    /// How many requests of it are best under way at once on so many cores.
    pub fn readers(&self, cores: usize) -> usize {
        match self {
            Archive::Folder(_) => cores,
            // Each waits for its answer most of the time.
            #[cfg(feature = "buckets")]
            Archive::Bucket(_) => cores.max(16),
        }
    }

    /// What a file's reader that failed means for the place.
    pub fn failure(&self, error: io::Error) -> Error {
        match self {
            Archive::Folder(_) => error.into(),
            #[cfg(feature = "buckets")]
            Archive::Bucket(_) => Error::Unavailable(error),
        }
    }

    /// The names of the manifests, as they come.
    pub fn manifests(&self) -> Result<Box<dyn Iterator<Item = Result<String, Error>> + '_>, Error> {
        match self {
            Archive::Folder(dir) => Ok(Box::new(dir.manifests()?)),
            #[cfg(feature = "buckets")]
            Archive::Bucket(shelf) => Ok(Box::new(shelf.manifests())),
        }
    }

    /// A manifest's text; `None`: it isn't there any more.
    ///
    /// # Errors
    /// If it is too long.
    pub fn text(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut text = Vec::new();
        match self.open_file(name)? {
            Found::Nothing => return Ok(None),
            Found::NoFile => return Err(io::Error::other("it is no plain file").into()),
            Found::File(bytes, _) if bytes > LONGEST => {
                let why = format!("it has {bytes} bytes, and no manifest has more than {LONGEST}");
                return Err(io::Error::other(why).into());
            }
            Found::File(_, file) => file.take(LONGEST).read_to_end(&mut text).map_err(|error| self.failure(error))?,
        };
        Ok(Some(text))
    }

    /// The name in the place of what lies at `path` from a manifest. `None`: that leads out of the folder, or out of the lane in a bucket.
    pub fn name_of(&self, manifest: &str, path: &str) -> Option<String> {
        let mut parts: Vec<&str> = manifest.split('/').collect();
        parts.pop();
        // `{dataset}/{consumer}` of `{dataset}/{consumer}/_manifests`.
        let lane = parts.len().saturating_sub(1);
        for part in path.split('/') {
            match part {
                "." => {}
                ".." if parts.len() > lane => drop(parts.pop()),
                "" | ".." => return None,
                part if part.contains('\0') => return None,
                part => parts.push(part),
            }
        }
        Some(parts.join("/"))
    }

    /// Opens what has this name in the place.
    pub fn open_file(&self, name: &str) -> Result<Found<ArchivedFile>, Error> {
        match self {
            Archive::Folder(dir) => Ok(dir.open_file(name)?.map(ArchivedFile::Folder)),
            #[cfg(feature = "buckets")]
            Archive::Bucket(shelf) => Ok(shelf.open_file(name)?.map(ArchivedFile::Object)),
        }
    }
}

impl ArchivedFile {
    /// The bytes from `from` on that fill the buffer.
    #[cfg(feature = "parquet")]
    pub fn read_at(&self, buffer: &mut [u8], from: u64) -> io::Result<()> {
        match self {
            ArchivedFile::Folder(file) => std::os::unix::fs::FileExt::read_exact_at(file, buffer, from),
            #[cfg(feature = "buckets")]
            ArchivedFile::Object(object) => object.read_at(buffer, from),
        }
    }
}

impl Read for ArchivedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            ArchivedFile::Folder(file) => file.read(buffer),
            #[cfg(feature = "buckets")]
            ArchivedFile::Object(object) => object.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_manifest_of_an_export_is_read() {
        use crate::file::MOST_FILES;
        use crate::manifest::{Chained, Column, File, Manifest, Source, VERSION};

        let text = |length: usize| "x".repeat(length);
        let file =
            File { sha256: text(64), bytes: u64::MAX.to_string(), rows: u64::MAX.to_string(), path: Some(text(255)) };
        // A name of 63 bytes, each of which JSON writes as six; a type's name with its schema's, in quotes.
        let column = Column { name: "\u{1}".repeat(63), type_name: text(150) };
        let export = Chained {
            version: VERSION.to_owned(),
            job: text(36),
            source: Source { cluster: text(16), database: text(10) },
            consumer: text(128),
            dataset: text(63),
            table: Some(text(150)),
            export_type: "incremental".to_owned(),
            key: vec![text(63); 32],
            columns: vec![column; 1600],
            format: "csv".to_owned(),
            compression: "none".to_owned(),
            snapshot: Some(text(1 << 16)),
            continuity: Some(text(100)),
            watermark_from: Some(text(30)),
            watermark_to: Some(text(30)),
            rows: u64::MAX.to_string(),
            files: vec![file; MOST_FILES],
            previous: Some(text(64)),
        };
        // The longest key of an object, and its bucket's name.
        let longest = Manifest::new(u64::MAX, export, vec![text(1024 + 100); MOST_FILES]).text().len() as u64;
        assert!((LONGEST / 3..=LONGEST * 2 / 3).contains(&longest), "{longest}");
    }

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::Folder(Dir::open(dir.path()).unwrap());
        let in_bucket = "orders/search/_manifests/00000000000000000017.json";
        for (manifest, path, name) in [
            ("a.manifest.json", "a.csv", Some("a.csv")),
            ("a.manifest.json", "./b/a.csv", Some("b/a.csv")),
            ("a.manifest.json", "b/../a.csv", Some("a.csv")),
            ("a.manifest.json", "../a.csv", None),
            ("a.manifest.json", "b/../../a.csv", None),
            ("a.manifest.json", "/etc/passwd", None),
            ("a.manifest.json", "", None),
            ("a.manifest.json", "a\0b", None),
            (in_bucket, "../a.csv", Some("orders/search/a.csv")),
            (in_bucket, "../../search/a.csv", None),
            (in_bucket, "../../other/a.csv", None),
            (in_bucket, "../../../../a.csv", None),
        ] {
            assert_eq!(archive.name_of(manifest, path).as_deref(), name, "{path}");
        }
    }

    #[test]
    fn links_and_pipes_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        std::fs::write(at("sub/a.csv"), "abc").unwrap();
        std::os::unix::fs::symlink("sub/a.csv", at("link")).unwrap();
        std::os::unix::fs::symlink("sub", at("linked")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe.manifest.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        std::fs::write(at(".hidden.manifest.json"), "").unwrap();
        let archive = Archive::Folder(Dir::open(dir.path()).unwrap());
        assert!(matches!(archive.open_file("sub/a.csv").unwrap(), Found::File(3, _)));
        for name in ["link", "linked/a.csv", "sub", "pipe.manifest.json"] {
            assert!(matches!(archive.open_file(name).unwrap(), Found::NoFile), "{name}");
        }
        for name in ["none", "none/a.csv"] {
            assert!(matches!(archive.open_file(name).unwrap(), Found::Nothing), "{name}");
        }
        let names: Vec<_> = archive.manifests().unwrap().map(Result::unwrap).collect();
        assert_eq!(names, ["pipe.manifest.json"]);
        assert!(archive.text("pipe.manifest.json").is_err());
        assert!(archive.text("none").unwrap().is_none());
    }
}
