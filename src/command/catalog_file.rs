//! Appends a block to the file of `DATASETS`, and preserves the file's comments and order.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::catalog::Catalog;
use crate::config;
use crate::receiver::Receivers;

/// Appends a block, and returns the catalog of the new text. Writes the text to a temporary file in the same folder,
/// then renames it to `file`. Creates the file if it doesn't exist.
///
/// # Errors
/// If the file has the pattern, is invalid with or without the block, or can't be replaced. It is unchanged then.
pub(super) fn append(file: &Path, block: &str) -> anyhow::Result<Catalog> {
    let before = read(file)?;
    let is_there = |line: &&str| line.starts_with("match = ") && before.lines().any(|known| known == *line);
    if let Some(pattern) = block.lines().find(is_there) {
        bail!("nothing was added: {} has this pattern already: {pattern}", file.display());
    }
    let gap = match before.as_str() {
        "" => "",
        text if text.ends_with("\n\n") => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    let after = format!("{before}{gap}{block}");
    let (catalog, _) = Receivers::read(&after, |_| false)
        .map_err(|mistakes| config::Error::catalog(file, mistakes))
        .context("nothing was added")?;
    replace(file, &before, &after).with_context(|| format!("{} can't be written", file.display()))?;
    Ok(catalog)
}

/// Reads the text of the file. Returns an empty text if the file doesn't exist. Refuses a file that a rename can't
/// replace.
fn read(file: &Path) -> anyhow::Result<String> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => return Ok(String::new()),
        metadata => metadata.map_err(|why| config::Error::unreadable_catalog(file, &why))?,
    };
    let shown = file.display();
    ensure!(metadata.is_file(), "{shown} is no file: a block can't be added to it");
    ensure!(
        metadata.nlink() == 1,
        "{shown} has another name (a hard link), which would keep the old text: add the block by hand"
    );
    Ok(fs::read_to_string(file).map_err(|why| config::Error::unreadable_catalog(file, &why))?)
}

fn replace(file: &Path, before: &str, after: &str) -> io::Result<()> {
    // A symbolic link is kept, and its target is replaced.
    let file = fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let draft: PathBuf = file.with_added_extension(format!("{}.new", uuid::Uuid::new_v4().simple()));
    let written = write(&draft, &file, after).and_then(|()| {
        let now = fs::read_to_string(&file).or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(String::new()),
            _ => Err(error),
        });
        if now? != before {
            return Err(io::Error::other("another process changed the file at the same time: try again"));
        }
        fs::rename(&draft, &file)
    });
    if written.is_err() {
        // The first error is returned.
        let _ = fs::remove_file(&draft);
    }
    written
}

/// Writes the new text to a new file with the owner and mode of the old file.
fn write(draft: &Path, file: &Path, text: &str) -> io::Result<()> {
    let mut new = File::create_new(draft)?;
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
