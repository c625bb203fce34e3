//! Reading a folder or bucket of exports: its manifests, and the files that they name.
//!
//! Needs no destination id, so it also reads a copy of an export folder. Writes nothing. All calls block, including
//! those for a bucket, so they belong on a thread of a command.

use std::fmt;
use std::io::{self, Read};

use crate::{Error, Lookup};

/// A folder or bucket that is open for reading.
pub trait Archive: fmt::Debug + Send + Sync {
    /// Checks that the folder or bucket as a whole can still be read, so that an error for a file is about that file.
    fn require(&self) -> Result<(), Error>;

    /// Returns the number of readers that are useful at once on a host with this number of cores.
    fn readers(&self, cores: usize) -> usize;

    /// Converts an error of a file's reader.
    fn failure(&self, error: io::Error) -> Error;

    /// Lists the names of the manifests, in no order.
    fn manifests(&self) -> Result<Box<dyn Iterator<Item = Result<String, Error>> + '_>, Error>;

    /// Opens the file with this name. Follows no link out of the folder.
    fn open_file(&self, name: &str) -> Result<Lookup<Box<dyn Read + Send>>, Error>;

    /// Reads the text of a manifest. Returns `None` if the manifest is gone.
    fn text(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let mut text = Vec::new();
        match self.open_file(name)? {
            Lookup::Nothing => return Ok(None),
            Lookup::NoFile => return Err(io::Error::other("it is no plain file").into()),
            Lookup::File(bytes, _) if bytes > cdc_manifest::MAX_BYTES => {
                let why = format!("it has {bytes} bytes, and no manifest has more than {}", cdc_manifest::MAX_BYTES);
                return Err(io::Error::other(why).into());
            }
            Lookup::File(_, file) => {
                file.take(cdc_manifest::MAX_BYTES).read_to_end(&mut text).map_err(|error| self.failure(error))?
            }
        };
        Ok(Some(text))
    }

    /// Returns true if a URL leads to the file with this name, here or where the folder or bucket was copied from.
    fn leads_to(&self, url: &str, name: &str) -> bool;

    /// Returns the name of the file at `path`, which is relative to the manifest. Returns `None` if `path` leads out of
    /// the folder, or out of the lane in a bucket.
    fn name_of(&self, manifest: &str, path: &str) -> Option<String> {
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::folder::archive::FolderArchive;

    #[test]
    fn no_path_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let archive = FolderArchive::open(dir.path()).unwrap();
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
        let archive = FolderArchive::open(dir.path()).unwrap();
        assert!(matches!(archive.open_file("sub/a.csv").unwrap(), Lookup::File(3, _)));
        for name in ["link", "linked/a.csv", "sub", "pipe.manifest.json"] {
            assert!(matches!(archive.open_file(name).unwrap(), Lookup::NoFile), "{name}");
        }
        for name in ["none", "none/a.csv"] {
            assert!(matches!(archive.open_file(name).unwrap(), Lookup::Nothing), "{name}");
        }
        let names: Vec<_> = archive.manifests().unwrap().map(Result::unwrap).collect();
        assert_eq!(names, ["pipe.manifest.json"]);
        assert_eq!(archive.text("sub/a.csv").unwrap().unwrap(), b"abc");
        assert!(archive.text("pipe.manifest.json").is_err());
        assert!(archive.text("none").unwrap().is_none());
    }
}
