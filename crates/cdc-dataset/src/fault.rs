//! Faults of a dataset: members that don't fit its table.

use std::fmt::{self, Display};

use crate::dataset::Dataset;

/// The member of a fault that is of a removed mask.
pub const MASK_REMOVED: &str = "mask_removed";

/// A member of a dataset that doesn't fit the dataset's table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{dataset}: {member}: {why}")]
pub struct Fault {
    pub dataset: String,
    pub member: &'static str,
    /// The entry, if the member is a list.
    pub item: Option<String>,
    pub why: String,
}

impl Fault {
    /// A fault of a member as a whole.
    pub fn of(dataset: &Dataset, member: &'static str, why: String) -> Fault {
        Fault { dataset: dataset.name.clone(), member, item: None, why }
    }

    /// Returns true if exports of the dataset have masked a column that is no masked column now.
    pub fn is_of_removed_mask(&self) -> bool {
        self.member == MASK_REMOVED
    }

    /// Returns true if the table lacks a column that the dataset masks.
    pub fn is_of_missing_mask(&self) -> bool {
        self.member == "mask" && self.item.is_some()
    }
}

/// All members of a dataset that don't fit its table. Displayed on one line.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.0.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
