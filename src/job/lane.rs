//! A consumer's line of jobs for one dataset.

use crate::job::ConsumerId;

/// A consumer's jobs for one dataset run one after another; the published ones have numbers.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    /// The consumer.
    pub consumer: &'a ConsumerId,
    /// The dataset's name.
    pub dataset: &'a str,
}
