//! The same trouble is logged once a minute with how often it came, not each time that it is met.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The troubles of a loop, or of several loops that meet the same ones.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<HashMap<String, Complaint>>);

#[derive(Debug)]
struct Complaint {
    said: Instant,
    met: Instant,
    unsaid: u64,
}

impl Complaints {
    /// How often this was met since it was last logged, if it is to be logged now: at its first time, and then once a minute.
    pub fn due(&self, complaint: String) -> Option<u64> {
        self.due_at(complaint, Instant::now())
    }

    fn due_at(&self, complaint: String, now: Instant) -> Option<u64> {
        // The map is whole after every line, so a panic under the lock spoils nothing.
        let mut complaints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What came again and was not logged yet is counted with the next time, if that is soon.
        complaints.retain(|_, it| now < it.met + 2 * COMPLAIN_EVERY);
        let Some(known) = complaints.get_mut(&complaint) else {
            complaints.insert(complaint, Complaint { said: now, met: now, unsaid: 0 });
            return Some(1);
        };
        (known.met, known.unsaid) = (now, known.unsaid + 1);
        if now < known.said + COMPLAIN_EVERY {
            return None;
        }
        known.said = now;
        Some(std::mem::take(&mut known.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_trouble_is_told_once_a_minute_with_how_often_it_came() {
        let (complaints, start) = (Complaints::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let told = ["a", "b", "a", "b"].map(|what| complaints.due_at(what.to_owned(), start));
        assert_eq!(told, [Some(1), Some(1), None, None]);
        let told: Vec<_> = (1..=180).filter_map(|second| complaints.due_at("a".to_owned(), after(second))).collect();
        assert_eq!(told, [61, 60, 60]);
        assert_eq!(complaints.due_at("b".to_owned(), after(181)), Some(1), "what was long gone is new");
    }
}
