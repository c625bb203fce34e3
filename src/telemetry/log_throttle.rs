//! Throttle of repeated log lines: the same problem is logged at most once a minute, with the number of its
//! occurrences.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum interval between two log lines of the same problem.
const PERIOD: Duration = Duration::from_secs(60);

/// The recent problems of one loop, or of several loops that share them.
#[derive(Debug, Default)]
pub struct LogThrottle(Mutex<HashMap<String, Recent>>);

#[derive(Debug)]
struct Recent {
    logged: Instant,
    occurred: Instant,
    unlogged: u64,
}

impl LogThrottle {
    /// Counts a problem, and returns its occurrences since it was last logged if it should be logged now.
    ///
    /// A problem is logged at its first occurrence, and then at most once a minute.
    pub fn should_log(&self, problem: String) -> Option<u64> {
        self.should_log_at(problem, Instant::now())
    }

    fn should_log_at(&self, problem: String, now: Instant) -> Option<u64> {
        // Each statement leaves the map consistent, so a panic under the lock does no harm.
        let mut problems = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A problem is kept for two periods, so that its unlogged occurrences are counted at its next log line.
        problems.retain(|_, recent| now < recent.occurred + 2 * PERIOD);
        let Some(recent) = problems.get_mut(&problem) else {
            problems.insert(problem, Recent { logged: now, occurred: now, unlogged: 0 });
            return Some(1);
        };
        (recent.occurred, recent.unlogged) = (now, recent.unlogged + 1);
        if now < recent.logged + PERIOD {
            return None;
        }
        recent.logged = now;
        Some(std::mem::take(&mut recent.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_problem_is_logged_once_a_minute_with_its_count() {
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let logged = ["a", "b", "a", "b"].map(|problem| throttle.should_log_at(problem.to_owned(), start));
        assert_eq!(logged, [Some(1), Some(1), None, None]);
        let logged: Vec<_> =
            (1..=180).filter_map(|second| throttle.should_log_at("a".to_owned(), after(second))).collect();
        assert_eq!(logged, [61, 60, 60]);
        assert_eq!(throttle.should_log_at("b".to_owned(), after(181)), Some(1), "a problem from long ago is new");
    }
}
