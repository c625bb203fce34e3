//! Pauses between retries.

use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};

/// Adds jitter to a pause: shortens or lengthens it by up to the fraction `part`. So callers that failed at the same
/// time retry at different times.
pub fn spread(pause: Duration, part: f64) -> Duration {
    let mut random = [0; 4];
    // If the system has no random bytes, the pause is unchanged.
    let at = SystemRandom::new()
        .fill(&mut random)
        .map_or(0.5, |()| f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX));
    pause.mul_f64(1.0 - part + 2.0 * part * at)
}

/// Exponential backoff: each pause is twice as long as the previous one, up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest }
    }

    /// Returns the pause before the next retry, and doubles the following one.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (2 * pause).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
