//! Where a command puts a file.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where to put a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    /// In this file, which isn't there yet.
    File(PathBuf),
    /// In this folder, under its own name. The folder is made if need be.
    Folder(PathBuf),
}

impl Output {
    /// Whether a file can be made there, checked before there is anything to write. Makes nothing.
    pub(crate) fn check(&self) -> Result<(), String> {
        let folder = match self {
            Output::Stdout => return Ok(()),
            Output::File(path) | Output::Folder(path) if path.as_os_str().is_empty() => {
                return Err("a file, a folder, or - is expected".to_owned());
            }
            // A link that leads to nothing is there too.
            Output::File(path) if path.symlink_metadata().is_ok() => {
                return Err(format!("{} is there already", path.display()));
            }
            Output::File(path) => folder_of(path),
            Output::Folder(path) => path,
        };
        // Where the folder is to be made: the one above it that is there.
        let there = match self {
            Output::Folder(_) => {
                folder.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("."))
            }
            _ => folder,
        };
        let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
        if there.symlink_metadata().is_ok() && !there.is_dir() {
            return Err(format!("{} is no folder, and one is expected there", there.display()));
        }
        let probe = there.join(format!(".cdc-export-{}.part", std::process::id()));
        File::create_new(&probe)
            .and_then(|_| fs::remove_file(&probe))
            .map_err(|why| format!("{}: {why}", there.display()))
    }
}

/// The folder that a path's last name is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl From<&str> for Output {
    /// A name with an extension is a file's; one without, or with a slash at its end, or of a folder that is there, is a folder's.
    fn from(text: &str) -> Output {
        if text == "-" {
            return Output::Stdout;
        }
        // Without the slash at its end, which would hide a file of that name.
        let path: PathBuf = Path::new(text).components().collect();
        let is_folder = path.is_dir() || text.ends_with('/') || path.extension().is_none() && !path.exists();
        if is_folder && !text.is_empty() { Output::Folder(path) } else { Output::File(path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_extension_is_a_files() {
        for (text, output) in [
            ("-", Output::Stdout),
            ("inbox", Output::Folder("inbox".into())),
            ("./inbox", Output::Folder("./inbox".into())),
            ("inbox/", Output::Folder("inbox".into())),
            ("a/b.d/", Output::Folder("a/b.d".into())),
            ("/", Output::Folder("/".into())),
            ("..", Output::Folder("..".into())),
            ("a.csv", Output::File("a.csv".into())),
            ("inbox/a.csv.zst", Output::File("inbox/a.csv.zst".into())),
            ("", Output::File("".into())),
            ("/etc/passwd", Output::File("/etc/passwd".into())),
        ] {
            assert_eq!(Output::from(text), output, "{text}");
        }
    }
}
