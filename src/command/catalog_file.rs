//! Appends a block to the file of `DATASETS`, whose comments and order stay.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::config;
use crate::receiver::Receivers;

/// Refuses a file that has a dataset of this name already, or can't be read.
pub(super) fn check(file: &Path, name: &str) -> anyhow::Result<()> {
    let text = read(file)?;
    let is_there = Receivers::read(&text, |_| false).is_ok_and(|(catalog, _)| catalog.get(name).is_some());
    ensure!(!is_there, "{} has a dataset `{name}` already: nothing was added", file.display());
    Ok(())
}

/// Appends a block. The file is written whole beside the old one, and then takes its place; one that isn't there is
/// made.
///
/// # Errors
/// If the file is wrong, before or with the block, or can't be replaced. It stays as it was then.
pub(super) fn append(file: &Path, block: &str) -> anyhow::Result<()> {
    let before = read(file)?;
    let gap = match before.as_str() {
        "" => "",
        text if text.ends_with("\n\n") => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let after = format!("{before}{gap}{block}");
    Receivers::read(&after, |_| false).map_err(|mistakes| config::Error::catalog(file, mistakes))?;
    replace(file, &before, &after).with_context(|| format!("{} can't be written", file.display()))
}

/// The file's text; empty where there is none. What can't be replaced by another file is refused before it is read.
fn read(file: &Path) -> anyhow::Result<String> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => return Ok(String::new()),
        metadata => metadata.map_err(|why| config::Error::unreadable_catalog(file, &why))?,
    };
    let shown = file.display();
    ensure!(metadata.is_file(), "{shown} is no file that a block can be added to");
    ensure!(metadata.nlink() == 1, "{shown} has another name, which would keep the old text: add the block by hand");
    Ok(fs::read_to_string(file).map_err(|why| config::Error::unreadable_catalog(file, &why))?)
}

fn replace(file: &Path, before: &str, after: &str) -> io::Result<()> {
    // A link stays, and what it leads to is replaced.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let aside: PathBuf = file.with_added_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let written = write(&aside, &file, after).and_then(|()| {
        let now = fs::read_to_string(&file).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error),
        });
        if now? != before {
            return Err(io::Error::other("somebody changed it meanwhile: try again"));
        }
        fs::rename(&aside, &file)
    });
    if written.is_err() {
        // The error that counts is the first one.
        let _ = fs::remove_file(&aside);
    }
    written
}

/// Writes the new text, with the old file's owner and mode.
fn write(aside: &Path, file: &Path, text: &str) -> io::Result<()> {
    let mut new = File::create_new(aside)?;
    if let Ok(old) = fs::metadata(file) {
        let own = new.metadata()?;
        if (old.uid(), old.gid()) != (own.uid(), own.gid()) {
            std::os::unix::fs::fchown(&new, Some(old.uid()), Some(old.gid()))?;
        }
        new.set_permissions(old.permissions())?;
    }
    new.write_all(text.as_bytes())?;
    new.sync_all()
}
