//! The export that a caller says it loaded last.

use crate::job::JobId;

/// The last export that a caller loaded. It is compared with the consumer's lane: a caller that is out of step would
/// lose the exports in between, or go on from an export that a restored database doesn't know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// The caller has loaded none.
    Nothing,
    /// The caller has loaded this export.
    Export {
        /// Its id.
        job: JobId,
        /// The SHA-256 of the loaded file in lower-case hexadecimal, if the caller sent it.
        sha256: Option<String>,
    },
}

impl After {
    /// Returns true if a text is a SHA-256 in lower-case hexadecimal.
    pub fn is_sha256(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }
}
