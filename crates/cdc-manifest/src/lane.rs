//! A lane: the exports of one consumer for one dataset, in order.

use crate::ConsumerId;

/// The exports of one consumer for one dataset. They run one after another, and the published ones are numbered.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    pub consumer: &'a ConsumerId,
    pub dataset: &'a str,
}
