//! What is wrong with a dataset: what it says and can't be, or what its table is not.

use std::fmt;

use crate::dataset::USERS;

/// Something that a dataset says and that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{dataset}: {member}: {why}")]
pub struct Fault {
    /// The dataset's name.
    pub dataset: String,
    /// The member that says it.
    pub member: &'static str,
    /// Which of a list's entries.
    pub item: Option<String>,
    /// What is wrong, and what may be there.
    pub why: String,
}

/// What a dataset says and its table is not. On one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// There is no dataset of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDataset {
    /// The end of a sentence that asks whether another one is meant; empty where none is near.
    pub near: String,
    /// The names of all.
    pub names: String,
}

impl std::error::Error for UnknownDataset {}

impl fmt::Display for UnknownDataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnknownDataset { near, names } = self;
        let all = if near.is_empty() { "; there are" } else { " There are" };
        write!(f, "there is no dataset of this name{near}{all}: {names}")
    }
}

/// A call named no dataset, and none is implied. It has the names of all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are several datasets, and none is called {USERS}: name one of {0}")]
pub struct SeveralDatasets(pub String);
