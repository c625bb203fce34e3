//! Mistakes in the operator's file, and the errors of a name that is no dataset's.

use std::fmt::{self, Display};

use cdc_dataset::USERS;

/// A fault of the operator's file, found by reading the file or by comparing a dataset with its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    line: Option<usize>,
    why: String,
}

impl Mistake {
    pub(super) fn without_line(why: impl Display) -> Mistake {
        // A name or a message of the parser may have several lines. Each fault is printed on one.
        Mistake { line: None, why: why.to_string().replace('\n', " ") }
    }

    /// Its line in the file. `None`: it is a fault of the file as a whole.
    pub(super) fn line(&self) -> Option<usize> {
        self.line
    }

    /// A fault at this byte of the file's text.
    pub(super) fn at(text: &str, byte: usize, why: impl Display) -> Mistake {
        let line = 1 + text[..byte].matches('\n').count();
        Mistake { line: Some(line), ..Mistake::without_line(why) }
    }
}

/// All faults of the operator's file. Displayed as a line of text for each, with its line in the file.
#[derive(Debug)]
pub struct Mistakes(pub(super) Vec<Mistake>);

impl Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, Mistake { line, why }) in self.0.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            match line {
                Some(line) => write!(f, "{end}line {line}: {why}")?,
                None => write!(f, "{end}{why}")?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no dataset `{name:.100}`{near}{}", listed(.near, .names))]
pub struct UnknownDataset {
    pub name: String,
    /// The end of a sentence that suggests a similar name. Empty if no name is similar.
    pub near: String,
    pub names: String,
}

/// The end of a message that lists the names of datasets. Empty if a caller may see none.
fn listed(near: &str, names: &str) -> String {
    let begin = if near.is_empty() { "; there" } else { " There" };
    if names.is_empty() { String::new() } else { format!("{begin} are: {names}") }
}

/// A call names no dataset, and none is implied. Has the names of all datasets that the caller may see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", if .0.is_empty() { NO_DATASET.to_owned() } else {
    format!("there are several datasets, and none is called {USERS}: name one of {}", .0)
})]
pub struct SeveralDatasets(pub String);

/// The message for a caller that names no dataset and may see none.
const NO_DATASET: &str = "none of the service's datasets is open to this key";
