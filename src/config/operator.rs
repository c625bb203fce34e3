//! Reads the operator's file, and the variables that it names for secrets.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::catalog::Catalog;
use crate::catalog::mistake::Mistakes;
use crate::config::variables::{Variables, invalid, is_setting};
use crate::config::{Config, Error};
use crate::receiver::{Receivers, SecretVariables};

impl Error {
    pub fn catalog(file: &Path, mistakes: Mistakes) -> Error {
        Error::Catalog { file: file.display().to_string(), mistakes }
    }

    pub fn no_secrets(file: &Path, missing: &[String]) -> Error {
        invalid("DATASETS", format!("{}: {}", file.display(), missing.join("; ")))
    }

    pub fn unreadable_catalog(file: &Path, why: &std::io::Error) -> Error {
        let help = match why.kind() {
            std::io::ErrorKind::NotFound => "; `cdc-export datasets add` makes a file there",
            _ => "",
        };
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        invalid("DATASETS", format!("{}: {why}{help}", file.display()))
    }
}

/// The longest file, in bytes. It has room for some ten thousand datasets.
const MAX_BYTES: u64 = 4 << 20;

/// Reads the text of this file. Doesn't wait for the other end of a pipe.
///
/// # Errors
/// If it can't be read, is no regular file, or is too long.
pub fn read_text(file: &Path) -> Result<String, Error> {
    let read = || {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(file)?;
        if !opened.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let mut text = String::new();
        opened.take(MAX_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("it has more than {MAX_BYTES} bytes")));
        }
        Ok(text)
    };
    read().map_err(|why| Error::unreadable_catalog(file, &why))
}

/// Reads the catalog and the receivers in the text of this file.
///
/// # Errors
/// With all faults of the text.
pub fn read_catalog(file: &Path, text: &str) -> Result<(Catalog, Receivers), Error> {
    Receivers::read(text, is_setting).map_err(|mistakes| Error::catalog(file, mistakes))
}

/// Returns the fault of a catalog that masks columns by `hmac`, if there is no secret for that.
pub fn missing_mask_secret(catalog: &Catalog, has_secret: bool) -> Option<String> {
    let why = || "MASK_SECRET: it is unset, and a mask is `hmac`: set it to a secret that stays the same".to_owned();
    (catalog.masks_by_hmac() && !has_secret).then(why)
}

/// Reads the secrets of these receivers from the environment. Returns the faults of the missing and invalid ones.
pub(super) fn read_secrets(vars: &Variables, receivers: &mut Receivers) -> Vec<String> {
    receivers.read_secrets(&SecretVariables(&|name| vars.get(name).map(str::to_owned)))
}

impl Config {
    /// Returns the faults of all secrets. A process that runs exports needs them: it delivers events.
    pub fn missing_secrets(&self) -> Vec<String> {
        self.missing_receiver_secrets.iter().cloned().chain(self.missing_mask_secret()).collect()
    }

    /// Returns the fault of the secret of masks. Every process needs it.
    pub fn missing_mask_secret(&self) -> Option<String> {
        missing_mask_secret(&self.catalog.get(), self.worker.mask_secret.is_some())
    }
}
