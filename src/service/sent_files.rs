//! Learns which files were sent whole, so that retention may remove them earlier.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::job::JobId;
use crate::service::Service;
use crate::service::deadline::with_timeout;
use crate::telemetry::chain;

/// The limit on files of which this process remembers that a part was sent.
const MAX_PARTLY_SENT: usize = 10_000;

/// The files that were sent in part: for each, the number of bytes that were sent from its beginning.
#[derive(Debug, Default)]
pub(crate) struct SentFiles(Mutex<HashMap<(JobId, u32), u64>>);

impl SentFiles {
    /// Records that bytes of a file of `size` bytes were sent. Returns true if the whole file has been sent now, at
    /// once or in consecutive ranges.
    fn add(&self, file: (JobId, u32), from: u64, to: u64, size: u64) -> bool {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = files.get(&file).copied().unwrap_or(0);
        let sent = if from <= before { before.max(to) } else { before };
        if sent >= size {
            files.remove(&file);
            return true;
        }
        if files.len() >= MAX_PARTLY_SENT {
            files.clear();
        }
        files.insert(file, sent);
        false
    }
}

/// A range of a file that is being sent. When it is dropped, the service learns how much of it was sent.
#[derive(Debug)]
pub struct Sending {
    service: Service,
    file: (JobId, u32),
    from: u64,
    sent: u64,
    size: u64,
}

impl Sending {
    /// Counts bytes that were sent.
    pub fn add(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Sending { service, file: (job, part), from, sent, size } = self;
        if service.sent_files.add((*job, *part), *from, *from + *sent, *size) {
            let (service, job, part) = (service.clone(), *job, *part);
            tokio::spawn(async move { service.record_fetched(job, Some(part)).await });
        }
    }
}

impl Service {
    /// Begins to send a range of a file of `size` bytes.
    pub fn sending(&self, job: JobId, part: Option<u32>, from: u64, size: u64) -> Sending {
        Sending { service: self.clone(), file: (job, part.unwrap_or(1)), from, sent: 0, size }
    }

    /// Records that a file of a job was sent whole, or its URL was handed out. Retention may remove the file earlier
    /// then. The file is the client's, even if it can't be recorded.
    pub async fn record_fetched(&self, job: JobId, part: Option<u32>) {
        if let Err(error) = with_timeout(self.store.fetched(job, part.unwrap_or(1))).await {
            tracing::warn!(event = "fetch_not_recorded", jobId = %job, error = chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_sent_once_its_ranges_reach_its_end_without_a_gap() {
        let (files, file) = (SentFiles::default(), (JobId::random(), 1));
        assert!(!files.add(file, 0, 40, 100), "the connection ended");
        assert!(!files.add(file, 50, 100, 100), "there is a gap");
        assert!(!files.add(file, 30, 60, 100));
        assert!(!files.add((file.0, 2), 60, 100, 100), "of another part");
        assert!(files.add(file, 60, 100, 100));
        assert!(!files.add(file, 60, 100, 100), "what was sent before is forgotten");
        assert!(files.add(file, 0, 100, 100));
    }
}
