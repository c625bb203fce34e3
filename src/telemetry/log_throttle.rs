//! Throttle of repeated log lines: the same problem is logged at most once a minute, with the number of its
//! occurrences.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The minimum interval between two log lines of the same problem.
const PERIOD: Duration = Duration::from_secs(60);
/// Begin of the times in the text of a certificate that is not valid now.
const CERTIFICATE_TIME: &str = "verification time ";

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

    fn should_log_at(&self, mut problem: String, now: Instant) -> Option<u64> {
        // The text of an expired certificate has the current time, so it differs each second.
        if let Some(time) = problem.find(CERTIFICATE_TIME) {
            problem.truncate(time);
        }
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
    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

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

    fn certificate_error(error: impl Fn(UnixTime) -> CertificateError, second: u64) -> String {
        let at = UnixTime::since_unix_epoch(Duration::from_secs(second));
        format!("amqps://a can't be connected to: {}", rustls::Error::InvalidCertificate(error(at)))
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_is_one_problem() {
        let limit = UnixTime::since_unix_epoch(Duration::from_secs(1_000));
        let (throttle, start) = (LogThrottle::default(), Instant::now());
        let expired = |time| CertificateError::ExpiredContext { time, not_after: limit };
        let early = |time| CertificateError::NotValidYetContext { time, not_before: limit };
        let texts = [
            certificate_error(expired, 2_000),
            certificate_error(expired, 2_001),
            certificate_error(early, 1),
            certificate_error(early, 2),
        ];
        assert_eq!(texts.map(|text| throttle.should_log_at(text, start)), [Some(1), None, Some(1), None]);
    }
}
