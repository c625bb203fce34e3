//! A consumer's line of jobs for one dataset.

use crate::job::ConsumerId;

/// Which line. Its jobs are worked one after another; those that are published have numbers.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    /// Whose.
    pub consumer: &'a ConsumerId,
    /// Of which dataset.
    pub dataset: &'a str,
}
