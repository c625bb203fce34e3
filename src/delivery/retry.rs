//! When a receiver is told of an event again that it didn't take.

use std::time::Duration;

use crate::duration;

/// The pauses after the first try, the second, and so on: nine tries over 42 hours, in seconds.
const PAUSES: [u64; 8] = [5, 30, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 24 * 3600];

/// How much shorter or longer a pause may be.
const JITTER: f64 = 0.2;

/// How long to wait after so many tries, counted from 1; `None`: there is none to follow.
pub(super) fn after(tries: u32) -> Option<Duration> {
    let pause = *PAUSES.get(tries.max(1) as usize - 1)?;
    Some(duration::spread(Duration::from_secs(pause), JITTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_end() {
        for (tries, about) in (1..).zip(PAUSES) {
            let pause = after(tries).unwrap().as_secs_f64();
            assert!((0.8..=1.2).contains(&(pause / about as f64)), "{tries} {pause}");
        }
        assert!((1..100).any(|_| after(1) != after(1)), "they differ");
        assert_eq!(after(9), None);
    }
}
