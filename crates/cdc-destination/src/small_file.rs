//! Small files: the texts of the service beside the export files.

use uuid::Uuid;

/// A short text of the service as it was read: a manifest, a lane's marker, an upload's note or the destination's id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SmallFile {
    /// `None` if something else has the name, the text is longer than expected, or the service has no right to read it.
    pub(super) text: Option<Vec<u8>>,
    /// The tag and the version by which a bucket replaces this object alone.
    pub(super) e_tag: Option<String>,
    pub(super) version: Option<String>,
}

impl SmallFile {
    pub(super) fn has(&self, text: &str) -> bool {
        self.text.as_deref() == Some(text.as_bytes())
    }

    /// Parses the id of a destination.
    pub(super) fn id(&self) -> Option<Uuid> {
        str::from_utf8(self.text.as_deref()?).ok()?.trim().parse().ok()
    }
}
