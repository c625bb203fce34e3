//! Limits the share of one key, so that no key takes all connections of a pool or all places of the queue.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::key::Prefix;
use crate::store::Store;
use crate::store::submissions::Submissions;

/// The shares of all keys that were used. An operator created each key, so their number needs no limit.
pub(super) type KeyShares = Mutex<HashMap<Prefix, Arc<KeyShare>>>;

#[derive(Debug)]
pub(super) struct KeyShare {
    pub(super) prefix: Prefix,
    connections: Arc<Semaphore>,
    pub(super) submissions: Submissions,
    /// The last turn of a consumer's first job.
    last_first_turn: Mutex<DateTime<Utc>>,
}

impl KeyShare {
    /// Waits until the key may use one more connection of the pool.
    pub(super) async fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).acquire_owned().await.ok()
    }

    /// Returns the turn of a consumer's first job: `earliest`, or one step behind the last one.
    pub(super) fn first_turn(&self, earliest: DateTime<Utc>, step: TimeDelta) -> DateTime<Utc> {
        let mut last = self.last_first_turn.lock().unwrap_or_else(PoisonError::into_inner);
        *last = earliest.max(*last + step);
        *last
    }
}

impl Store {
    /// The key uses at most three quarters of the pool's connections at a time, and at least one.
    pub fn of_key(&self, key: &Prefix) -> Store {
        let connections = self.pool.inner().options().get_max_connections() as usize * 3 / 4;
        let mut shares = self.key_shares.lock().unwrap_or_else(PoisonError::into_inner);
        let share = shares.entry(key.clone()).or_insert_with(|| {
            let connections = Arc::new(Semaphore::new(connections.max(1)));
            Arc::new(KeyShare {
                prefix: key.clone(),
                connections,
                submissions: Submissions::default(),
                last_first_turn: Mutex::default(),
            })
        });
        Store { key_share: Some(Arc::clone(share)), ..self.clone() }
    }
}
