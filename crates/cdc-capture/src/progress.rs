//! The progress of a running export.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The progress of a running export. The pipeline updates it, and the heartbeat reads it.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Counters>);

/// The progress of a running export at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// The percentage, 0 to 99. Only completed jobs have 100.
    pub percent: u8,
    pub rows: u64,
    pub bytes: u64,
    /// The number of rows that were expected, if they were counted.
    pub expected: Option<u64>,
}

#[derive(Debug, Default)]
struct Counters {
    percent: AtomicU8,
    rows: AtomicU64,
    bytes: AtomicU64,
    /// 0: they were not counted.
    expected: AtomicU64,
    /// About how many rows there are. 0: unknown.
    estimated: AtomicU64,
}

impl Progress {
    /// Records that `done` of `all` units are read. The percentage never decreases and stays below 100.
    pub fn reach(&self, done: u64, all: u64) {
        let percent = done.saturating_mul(100) / all.max(1);
        self.0.percent.fetch_max(percent.min(99) as u8, Ordering::Relaxed);
    }

    /// Records how many rows are expected. From then on, the rows written are the percentage.
    pub fn expect(&self, rows: u64) {
        self.0.expected.store(rows, Ordering::Relaxed);
        self.reach(self.0.rows.load(Ordering::Relaxed), rows);
    }

    /// Records about how many rows there are; 0 if that is unknown. From then on, the rows written are the percentage.
    pub fn estimate(&self, rows: u64) {
        self.0.estimated.store(rows, Ordering::Relaxed);
    }

    /// Records the number of rows and bytes written so far.
    pub fn written(&self, rows: u64, bytes: u64) {
        self.0.rows.store(rows, Ordering::Relaxed);
        self.0.bytes.store(bytes, Ordering::Relaxed);
        let estimated = self.0.estimated.load(Ordering::Relaxed);
        if let Some(all) = self.expected().or(Some(estimated).filter(|rows| *rows > 0)) {
            self.reach(rows, all);
        }
    }

    fn expected(&self) -> Option<u64> {
        Some(self.0.expected.load(Ordering::Relaxed)).filter(|rows| *rows > 0)
    }

    pub fn read(&self) -> Reached {
        Reached {
            percent: self.0.percent.load(Ordering::Relaxed),
            rows: self.0.rows.load(Ordering::Relaxed),
            bytes: self.0.bytes.load(Ordering::Relaxed),
            expected: self.expected(),
        }
    }
}

/// The dataset that an attempt reads now, and the progress of its export. The attempt moves on, and the heartbeat reads
/// it.
#[derive(Clone, Debug)]
pub struct CurrentExport(Arc<Mutex<(String, Progress)>>);

impl CurrentExport {
    pub fn new(dataset: &str) -> CurrentExport {
        CurrentExport(Arc::new(Mutex::new((dataset.to_owned(), Progress::default()))))
    }

    /// Moves on to another dataset, and returns the progress of its export.
    pub fn begin(&self, dataset: &str) -> Progress {
        let progress = Progress::default();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (dataset.to_owned(), progress.clone());
        progress
    }

    pub fn read(&self) -> (String, Reached) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (current.0.clone(), current.1.read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_written_are_the_percentage_of_those_counted_or_estimated() {
        let progress = Progress::default();
        progress.written(50, 1);
        progress.estimate(200);
        assert_eq!(progress.read().percent, 0);
        progress.written(100, 1);
        assert_eq!((progress.read().percent, progress.read().expected), (50, None));
        progress.expect(160);
        assert_eq!((progress.read().percent, progress.read().expected), (62, Some(160)));
        progress.written(120, 1);
        assert_eq!(progress.read().percent, 75);
    }

    #[test]
    fn progress_never_decreases_and_stays_below_100() {
        let progress = Progress::default();
        progress.reach(50, 100);
        progress.reach(10, 100);
        assert_eq!(progress.read().percent, 50);
        progress.reach(100, 100);
        progress.reach(0, 0);
        assert_eq!(progress.read().percent, 99);
    }
}
