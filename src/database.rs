//! A database's identity: which database a job, a file or a marker belongs to.

use std::fmt;
use std::str::FromStr;

/// A database's identity, the same for all who connect to it: its cluster's identifier and its own number there. A copy
/// has another one, but that which is made of the cluster's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseId(String);

/// Why a text is no database's identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a database's identity is 16 hexadecimal digits, `-` and a number")]
pub struct BadDatabaseId;

impl DatabaseId {
    /// The identity as SQL stores it. It may stand in a file's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseId {
    type Err = BadDatabaseId;

    fn from_str(text: &str) -> Result<DatabaseId, BadDatabaseId> {
        let (cluster, number) = text.split_once('-').ok_or(BadDatabaseId)?;
        let is_cluster = cluster.len() == 16 && cluster.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let is_number = (1..=10).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        if is_cluster && is_number { Ok(DatabaseId(text.to_owned())) } else { Err(BadDatabaseId) }
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_leads_nowhere() {
        for bad in ["", "-", "../../../../../../-1", "00000000000000FF-1", "00000000000000ff-", "00000000000000ff-1/2"]
        {
            assert_eq!(bad.parse::<DatabaseId>(), Err(BadDatabaseId), "{bad}");
        }
    }
}
