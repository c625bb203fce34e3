//! The same trouble is logged once a minute, not each time that it is met.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What was logged in the last minute.
#[derive(Debug, Default)]
pub struct Complaints(HashMap<String, Instant>);

impl Complaints {
    /// Whether this is to be logged now: it was not in the last minute.
    pub fn is_new(&mut self, complaint: String) -> bool {
        self.0.retain(|_, said| said.elapsed() < COMPLAIN_EVERY);
        match self.0.entry(complaint) {
            Entry::Occupied(_) => false,
            Entry::Vacant(new) => {
                new.insert(Instant::now());
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once() {
        let mut complaints = Complaints::default();
        let told = ["a", "b", "a", "b"].map(|what| complaints.is_new(what.to_owned()));
        assert_eq!(told, [true, true, false, false]);
    }
}
