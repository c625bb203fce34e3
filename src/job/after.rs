//! What the caller of an export had loaded before, by its own word.

use crate::job::JobId;

/// The last export that a caller loaded. Said with a request, it is held against the consumer's lane: a caller that is elsewhere than the
/// lane would lose what is in between, or take what a database forgot for what it knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// It has loaded none.
    Nothing,
    /// This one.
    Export {
        /// Which.
        job: JobId,
        /// The SHA-256 of the file that it loaded, in lower-case hexadecimal, where it says that.
        sha256: Option<String>,
    },
}

impl After {
    /// Whether a text is a SHA-256 in lower-case hexadecimal.
    pub fn is_sha256(text: &str) -> bool {
        text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }
}
