//! The export after which a caller goes on.

use crate::JobId;

/// The last export that a caller loaded.
///
/// The service compares it with the lane. Without this check, a caller could miss exports, or continue from
/// an export that a restored database does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    Nothing,
    Export {
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
