//! A file at a destination before and after it is published, and the identity by which it is recognized.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A staged file, with the identity that recognizes it under its final name.
#[derive(Clone, Debug)]
pub struct StagedFile {
    /// The id of the destination that stores the file.
    pub destination: Uuid,
    /// The hidden name of the file at the destination.
    pub name: String,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    pub identity: FileIdentity,
}

/// The identity of a file. A renamed file keeps its identity; a rewritten or copied file has another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    pub bytes: u64,
    /// The location at the destination, which does not depend on the file's name.
    pub location: FileLocation,
}

/// The location of a file at a destination.
///
/// It is recorded as JSON. The numbers are strings there, because a JSON reader may round numbers above 2^53.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FileLocation {
    #[serde(rename_all = "camelCase")]
    Folder {
        #[serde(with = "text")]
        inode: u64,
        /// The time of the last modification, in nanoseconds since 1970.
        #[serde(with = "text")]
        modified_ns: i64,
    },
    /// A multipart upload to a bucket. The object is not visible until the upload is completed.
    Upload {
        key: String,
        /// The object store's id of the upload. Empty if the object store needs none.
        upload: String,
        /// The object store's ids of the parts, in order.
        parts: Vec<String>,
    },
    Object {
        key: String,
        /// The ETag of the object. `None` if the object store returned none.
        etag: Option<String>,
    },
}

/// Serializes a number as a string of decimal digits.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>, N: FromStr<Err: Display>>(
        deserializer: D,
    ) -> Result<N, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn location_keeps_numbers_above_2_to_the_53_in_json() {
        let location = FileLocation::Folder { inode: u64::MAX, modified_ns: i64::MIN };
        let json = r#"{"folder":{"inode":"18446744073709551615","modifiedNs":"-9223372036854775808"}}"#;
        assert_eq!(serde_json::to_string(&location).unwrap(), json);
        assert_eq!(serde_json::from_str::<FileLocation>(json).unwrap(), location);
        assert!(serde_json::from_str::<FileLocation>(r#"{"folder":{"inode":"-1","modifiedNs":"0"}}"#).is_err());
    }
}
