//! Where spans go, and which of them.

use std::fmt;

/// Which traces are recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Which part of the traces that begin here, from 0 to 1.
    pub part: f64,
    /// Whether of a trace that began elsewhere its caller decides.
    pub follows_caller: bool,
}

/// A collector, and what it is told.
#[derive(Clone)]
pub struct Settings {
    /// Where spans are posted to.
    pub endpoint: String,
    /// The headers of a post, which may hold a key.
    pub headers: Vec<(String, String)>,
    /// What the service is called.
    pub service_name: String,
    /// What else is said of this process.
    pub attributes: Vec<(String, String)>,
    /// Which traces are recorded.
    pub sampler: Sampler,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
