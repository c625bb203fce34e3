//! Pauses between the attempts to deliver an event.

use std::time::Duration;

/// Pauses after the first attempt, the second, and so on, in seconds: nine attempts over 42 hours.
const PAUSES: [u64; 8] = [5, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 24 * 3600];

/// Largest fraction by which a pause is shortened or lengthened.
const JITTER: f64 = 0.2;

/// Returns the pause after an attempt, counted from 1. `None`: no further attempt follows.
pub(super) fn pause_after(attempt: u32) -> Option<Duration> {
    let pause = *PAUSES.get(attempt.max(1) as usize - 1)?;
    Some(http_client::pause::spread(Duration::from_secs(pause), JITTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_end_after_nine_attempts() {
        for (attempt, seconds) in (1..).zip(PAUSES) {
            let pause = pause_after(attempt).unwrap().as_secs_f64();
            assert!((0.8..=1.2).contains(&(pause / seconds as f64)), "{attempt} {pause}");
        }
        assert!((1..100).any(|_| pause_after(1) != pause_after(1)), "they differ");
        assert_eq!(pause_after(9), None);
    }
}
