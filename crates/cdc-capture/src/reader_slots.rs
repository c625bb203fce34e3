//! Connections beside the leader's and the reader's: a full export takes what is free of them as further readers, and
//! never waits.

use std::sync::Arc;

use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::session::Session;

/// The connections that all exports of a process share.
#[derive(Clone, Debug)]
pub(crate) struct ReaderSlots {
    options: PgConnectOptions,
    free: Arc<Semaphore>,
}

/// The right to one connection. Dropped, it is free again.
#[derive(Debug)]
pub(crate) struct ReaderSlot {
    options: PgConnectOptions,
    _permit: OwnedSemaphorePermit,
}

impl ReaderSlots {
    pub(crate) fn new(options: PgConnectOptions, connections: usize) -> ReaderSlots {
        ReaderSlots { options, free: Arc::new(Semaphore::new(connections)) }
    }

    /// As many as are free now, `most` of them at most.
    pub(crate) fn take(&self, most: usize) -> Vec<ReaderSlot> {
        let permits = std::iter::repeat_with(|| Arc::clone(&self.free).try_acquire_owned().ok()).take(most);
        permits.map_while(|permit| Some(ReaderSlot { options: self.options.clone(), _permit: permit? })).collect()
    }
}

impl ReaderSlot {
    pub(crate) async fn connect(&self, name: String) -> Result<(PgConnection, Session), sqlx::Error> {
        Session::connect(&self.options, name).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_takes_another_goes_without() {
        let spare = ReaderSlots::new(PgConnectOptions::new_without_pgpass(), 3);
        let two = spare.take(2);
        assert_eq!((two.len(), spare.take(2).len()), (2, 1));
        drop(two);
        assert_eq!(spare.take(9).len(), 3);
    }
}
