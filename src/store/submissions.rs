//! The submissions of this process that are under way.

use std::sync::atomic::{AtomicU32, Ordering};

/// The number of submissions of this process, or of one of its keys, whose transactions have not ended.
///
/// A submission that counts the open jobs does not see the jobs of these transactions, so it adds those that came
/// before it. So a process alone respects the limits on open jobs. Several processes together may exceed them by the
/// jobs that they create at the same time.
#[derive(Debug, Default)]
pub(super) struct Submissions(AtomicU32);

/// A submission whose transaction has not ended.
#[derive(Debug)]
pub(super) struct OpenSubmission<'s> {
    all: &'s Submissions,
    /// The number of those that came before it.
    pub(super) ahead: u32,
}

impl Submissions {
    pub(super) fn enter(&self) -> OpenSubmission<'_> {
        OpenSubmission { all: self, ahead: self.0.fetch_add(1, Ordering::SeqCst) }
    }
}

impl Drop for OpenSubmission<'_> {
    fn drop(&mut self) {
        self.all.0.fetch_sub(1, Ordering::SeqCst);
    }
}
