//! Settings of tracing: the collector and the sampling.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// The recorded fraction of the traces that start in this process, from 0 to 1.
    pub part: f64,
    /// True if the caller decides for traces that started elsewhere.
    pub follows_caller: bool,
}

/// A collector, and the attributes sent to it.
#[derive(Clone)]
pub struct Settings {
    pub endpoint: String,
    /// The headers of a post, which may contain a key.
    pub headers: Vec<(String, String)>,
    pub service_name: String,
    pub attributes: Vec<(String, String)>,
    pub sampler: Sampler,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
