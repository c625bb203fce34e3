//! Where a command puts a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where to put a file.
#[derive(Clone, Debug)]
pub(crate) enum Output {
    Stdout,
    /// A file, or a folder for it.
    Path(PathBuf),
}

impl Output {
    /// Whether a file can be made there, checked before there is anything to write.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Output::Path(path) = self else { return Ok(()) };
        if path.as_os_str().is_empty() {
            return Err("a file, a folder, or - is expected".to_owned());
        }
        let folder = if path.is_dir() { path } else { folder_of(path) };
        if !path.is_dir() && path.exists() {
            return Err(format!("{} is there already", path.display()));
        }
        let probe = folder.join(format!(".cdc-export-{}.part", std::process::id()));
        File::create_new(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|why| format!("{}: {why}", folder.display()))
    }
}

/// The folder that a path's last name is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl From<&str> for Output {
    fn from(text: &str) -> Output {
        if text == "-" { Output::Stdout } else { Output::Path(text.into()) }
    }
}
