//! The members that blocks of receivers share: which events a receiver gets, and the variable that has its secret.

use crate::catalog::block::{Block, Names};
use crate::catalog::mistake::UnknownDataset;
use crate::event::{EventType, Listener};
use crate::job::Status;
use cdc_dataset::hint;
use cdc_manifest::{ConsumerId, is_dataset_name};

/// Names outside of a block that its members may or may not be.
pub struct KnownNames<'a> {
    /// The names of the file's datasets.
    pub(super) datasets: &'a Names,
    /// True if patterns of the file may make further datasets.
    pub(super) has_patterns: bool,
    /// Returns true if a variable of the environment is one of the service's own.
    pub(super) is_setting: &'a dyn Fn(&str) -> bool,
}

impl KnownNames<'_> {
    /// Takes the name of a dataset of the file, or one that a pattern may make.
    pub(super) fn dataset(&self, name: &str) -> Result<String, UnknownDataset> {
        if self.datasets.iter().any(|dataset| dataset == name) || self.has_patterns && is_dataset_name(name) {
            return Ok(name.to_owned());
        }
        let names = self.datasets.iter().collect::<Vec<_>>().join(", ");
        Err(UnknownDataset { name: name.to_owned(), near: hint(name, self.datasets.iter()), names })
    }

    /// Takes the name of a variable that has a secret. No message quotes a text that may be the secret itself.
    pub fn secret_variable(&self, name: &str, secret: &str) -> Result<String, String> {
        let is_begun = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !is_begun || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(format!("the name of a variable is expected, not {secret}"));
        }
        if (self.is_setting)(name) {
            return Err(format!("{name} is a setting of the service: a variable of its own is expected"));
        }
        Ok(name.to_owned())
    }
}

/// Reads which events a receiver gets. Without a list it gets those of all jobs that weren't skipped.
pub fn listener(block: &mut Block<'_, '_>, known: &KnownNames<'_>) -> Listener {
    let event = |name: &str| {
        let names = || EventType::all().map(EventType::name).collect::<Vec<_>>().join(", ");
        EventType::named(name).ok_or_else(|| format!("`{name}` is none of {}", names()))
    };
    let usual = || EventType::all().filter(|event| event.end != Status::Skipped).collect();
    Listener {
        name: block.name.clone(),
        events: block.list("events", event).unwrap_or_else(usual),
        datasets: block.list("datasets", |name| known.dataset(name)),
        consumers: block.list("consumers", str::parse::<ConsumerId>),
    }
}
