//! The argument `--output`.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::client::download::{Output, folder_of};

/// Checks that a file can be made there, before there is anything to write. Makes nothing.
pub(super) fn check(output: &Output) -> Result<(), String> {
    let folder = match output {
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
    // A folder that is to be made needs a folder above it.
    let there = match output {
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
    File::create_new(&probe).and_then(|_| fs::remove_file(&probe)).map_err(|why| format!("{}: {why}", there.display()))
}

/// Reads the argument. A name without an extension, with a slash at its end, or of an existing folder is a folder.
pub(super) fn output(text: &str) -> Result<Output, Infallible> {
    if text == "-" {
        return Ok(Output::Stdout);
    }
    // A slash at the end would hide a file of that name.
    let path: PathBuf = Path::new(text).components().collect();
    let is_folder = path.is_dir() || text.ends_with('/') || path.extension().is_none() && !path.exists();
    Ok(if is_folder && !text.is_empty() { Output::Folder(path) } else { Output::File(path) })
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
            assert_eq!(super::output(text), Ok(output), "{text}");
        }
    }
}
