//! The operator's file, and the secrets that it names.

use std::path::Path;

use crate::config::Error;
use crate::config::variables::{Variables, bad};
use crate::dataset::catalog::{Catalog, Mistakes};
use crate::webhook::Receiver;
use crate::webhook::signature::Secrets;

impl Error {
    /// What is wrong with the catalog in this file.
    pub fn catalog(file: &Path, mistakes: Mistakes) -> Error {
        Error::Catalog { file: file.display().to_string(), mistakes }
    }

    /// Receivers of the catalog's file can't be told anything.
    pub fn no_secrets(file: &Path, missing: &[String]) -> Error {
        bad("DATASETS", format!("{}: {}", file.display(), missing.join("; ")))
    }

    /// The catalog's file can't be read.
    pub fn unreadable_catalog(file: &Path, why: &std::io::Error) -> Error {
        let help = match why.kind() {
            std::io::ErrorKind::NotFound if file.is_relative() => {
                "; a path that begins with / is the same in every folder"
            }
            _ => "",
        };
        let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        bad("DATASETS", format!("{}: {why}{help}", file.display()))
    }
}

/// The catalog in this file.
pub(super) fn read_catalog(file: &Path) -> Result<Catalog, Error> {
    let text = std::fs::read_to_string(file).map_err(|why| Error::unreadable_catalog(file, &why))?;
    Catalog::from_toml(&text).map_err(|mistakes| Error::catalog(file, mistakes))
}

/// The receivers of a catalog's events whose secrets are in the environment, and what is wrong with those of the others.
pub(super) fn receivers(vars: &Variables, catalog: &Catalog) -> (Vec<Receiver>, Vec<String>) {
    let (mut receivers, mut missing) = (Vec::new(), Vec::new());
    for webhook in catalog.webhooks() {
        let (name, variable) = (&webhook.listener.name, &webhook.secret_env);
        match vars.get(variable).map(str::parse::<Secrets>) {
            Some(Ok(secrets)) => receivers.push(Receiver { webhook: webhook.clone(), secrets }),
            Some(Err(why)) => missing.push(format!("webhook {name}: {variable}: {why}")),
            None => missing.push(format!("webhook {name}: the variable {variable}, which has its secret, is unset")),
        }
    }
    (receivers, missing)
}
