//! The identity of a database. Jobs, files and markers name the database that they belong to.

use std::fmt;
use std::str::FromStr;

/// The identity of a database: the system identifier of its cluster and its oid.
///
/// Every connection to the database reads the same identity. A logical copy has another identity. A physical copy of
/// the cluster's files has the same one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseId(String);

/// The error of a text that is not the identity of a database.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a database's identity is 16 hexadecimal digits, `-` and a number")]
pub struct BadDatabaseId;

impl DatabaseId {
    /// Returns the identity in the form that SQL stores. It is safe in the name of a file.
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
    fn text_with_a_path_is_rejected() {
        for bad in ["", "-", "../../../../../../-1", "00000000000000FF-1", "00000000000000ff-", "00000000000000ff-1/2"]
        {
            assert_eq!(bad.parse::<DatabaseId>(), Err(BadDatabaseId), "{bad}");
        }
    }
}
