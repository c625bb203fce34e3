//! The argument `--output`.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::command::BadUsage;
use cdc_client::Output;

/// Checks that the destination can be written, before an export is made for it. Creates nothing.
pub(super) fn check(output: Option<&Output>) -> Result<(), BadUsage> {
    let wrong = |why: String| BadUsage(format!("--output: {why}"));
    output.map_or(Ok(()), |output| require_writable(output).map_err(wrong))
}

fn require_writable(output: &Output) -> Result<(), String> {
    let folder = match output {
        Output::Stdout => return Ok(()),
        Output::File(path) | Output::Folder(path) if path.as_os_str().is_empty() => {
            return Err("a file, a folder, or - is expected".to_owned());
        }
        // A dangling symbolic link exists too.
        Output::File(path) if path.symlink_metadata().is_ok() => {
            return Err(format!("{} is there already", path.display()));
        }
        Output::File(path) => path.parent().unwrap_or(path),
        Output::Folder(path) => path,
    };
    // A missing folder is created in its nearest existing parent.
    let existing = match output {
        Output::Folder(_) => {
            folder.ancestors().find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("."))
        }
        _ => folder,
    };
    let existing = if existing.as_os_str().is_empty() { Path::new(".") } else { existing };
    if existing.symlink_metadata().is_ok() && !existing.is_dir() {
        return Err(format!("{} is no folder, and a folder is expected", existing.display()));
    }
    let probe = existing.join(format!(".cdc-export-{}.part", std::process::id()));
    File::create_new(&probe)
        .and_then(|_| fs::remove_file(&probe))
        .map_err(|why| format!("{}: {why}", existing.display()))
}

/// Parses the argument. A name is a folder if it has no extension, ends with a slash, or names an existing folder.
pub(super) fn output(text: &str) -> Result<Output, Infallible> {
    if text == "-" {
        return Ok(Output::Stdout);
    }
    // With the slash at its end, the path of an existing file would look missing.
    let path: PathBuf = Path::new(text).components().collect();
    let is_folder = path.is_dir() || text.ends_with('/') || path.extension().is_none() && !path.exists();
    Ok(if is_folder && !text.is_empty() { Output::Folder(path) } else { Output::File(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_extension_is_a_file() {
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
