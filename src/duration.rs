//! Parses durations as an operator writes them: `90s`, `5m`, `1h 30m`, `7d`. Adds jitter to pauses.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Adds jitter to a pause: it gets shorter or longer by up to `part` of itself. So callers that failed together retry
/// apart.
pub fn spread(pause: Duration, part: f64) -> Duration {
    let mut random = [0; 4];
    // Without randomness the pause is exact.
    let at = SystemRandom::new()
        .fill(&mut random)
        .map_or(0.5, |()| f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX));
    pause.mul_f64(1.0 - part + 2.0 * part * at)
}

/// Pauses between tries, each twice as long as the one before, up to a longest one.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// Pauses that begin with `first`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest }
    }

    /// Returns the pause before the next try, and doubles the one that follows it.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (2 * pause).min(self.longest);
        pause
    }
}

/// Parses a duration. Returns `None` also for months written as `M`, since whoever writes `M` mostly means minutes.
pub fn parse(text: &str) -> Option<Duration> {
    if text.split(|letter: char| !letter.is_ascii_alphabetic()).any(|unit| unit == "M") {
        return None;
    }
    humantime::parse_duration(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_no_month() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h 30m", 5400), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "5M", "1h 30M", "30M1s", "x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        assert_eq!([(); 5].map(|()| backoff.next_pause().as_secs()), [1, 2, 4, 5, 5]);
    }

    #[test]
    fn pauses_differ_within_bounds() {
        let pauses: Vec<_> = (0..100).map(|_| spread(Duration::from_secs(10), 0.5).as_secs_f64()).collect();
        assert!(pauses.iter().all(|pause| (5.0..=15.0).contains(pause)), "{pauses:?}");
        assert!(pauses.iter().any(|&pause| pause < 9.0) && pauses.iter().any(|&pause| pause > 11.0), "{pauses:?}");
    }
}
