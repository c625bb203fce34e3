//! Keys at the door: looked up once in a while, remembered in between.
//!
//! What is remembered is 2 seconds old at most, so that a revoked key is refused soon, by every process. If the
//! database can't be asked, nobody is let in on an older memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::failpoint;
use crate::key::{Grant, Prefix, PresentedKey, StoredKey};
use crate::service::Error;
use crate::service::deadline::with_timeout;
use crate::store::Store;

/// How long what was looked up is believed.
const BELIEVED: Duration = Duration::from_secs(2);
/// How often a key is looked at again whose request takes its time.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Keys that are remembered, and as many prefixes that are nobody's.
const MOST: usize = 1_000;
/// Look-ups at a time: few, so that they leave the API its connections.
const LOOKUPS: usize = 2;

/// Which keys there are, as far as that was looked up.
#[derive(Debug)]
pub(crate) struct Keyring {
    store: Store,
    memory: Mutex<Memory>,
    /// Those who guess stand in a line of their own: keys that were good a moment ago don't wait for them.
    turns_of_known: Semaphore,
    turns_of_others: Semaphore,
}

#[derive(Debug, Default)]
struct Memory {
    found: Remembered<StoredKey>,
    missed: Remembered<()>,
}

/// A bounded map of what was looked up, and when.
#[derive(Debug)]
struct Remembered<T>(HashMap<Prefix, (Instant, T)>);

impl<T> Default for Remembered<T> {
    fn default() -> Remembered<T> {
        Remembered(HashMap::new())
    }
}

fn believed_for() -> Duration {
    failpoint::time("keys.believed", BELIEVED)
}

impl<T> Remembered<T> {
    fn fresh(&self, prefix: &Prefix) -> Option<&T> {
        self.0.get(prefix).filter(|(asked, _)| asked.elapsed() < believed_for()).map(|(_, what)| what)
    }

    fn insert(&mut self, prefix: Prefix, asked: Instant, what: T) {
        if self.0.len() >= MOST && !self.0.contains_key(&prefix) {
            self.0.retain(|_, (asked, _)| asked.elapsed() < believed_for());
            // Still too many: what was forgotten is looked up again.
            if self.0.len() >= MOST {
                self.0.clear();
            }
        }
        self.0.insert(prefix, (asked, what));
    }
}

impl Keyring {
    pub(crate) fn new(store: Store) -> Keyring {
        let [turns_of_known, turns_of_others] = [LOOKUPS; 2].map(Semaphore::new);
        Keyring { store, memory: Mutex::default(), turns_of_known, turns_of_others }
    }

    /// Returns true if this key was good when it was last looked up, however long ago. That tells a known key from a
    /// guess, but admits nobody.
    pub(crate) fn knows(&self, key: &PresentedKey) -> bool {
        self.remembered(|memory| memory.found.0.get(key.prefix()).is_some_and(|(_, stored)| key.is(stored)))
    }

    /// Returns what a key permits; [`Error::NoKey`] if there is no such key, or it was revoked or has expired some
    /// seconds ago.
    pub(crate) async fn grant(self: &Arc<Keyring>, key: &PresentedKey) -> Result<Arc<Grant>, Error> {
        let stored = match self.believed(key.prefix()) {
            Some(stored) => stored,
            None => self.look_up(key).await?,
        };
        stored.filter(|stored| key.is(stored)).map(|stored| stored.grant).ok_or(Error::NoKey)
    }

    /// Returns some seconds after the key was revoked or has expired. If the database can't be asked, the key counts as
    /// good: the call began with a good one.
    pub(crate) async fn gone(self: &Arc<Keyring>, key: &PresentedKey) {
        loop {
            tokio::time::sleep(failpoint::time("keys.looked_at", LOOK_AGAIN)).await;
            if matches!(self.grant(key).await, Err(Error::NoKey)) {
                return;
            }
        }
    }

    /// What is known of a prefix; `None`: nothing that is new enough.
    fn believed(&self, prefix: &Prefix) -> Option<Option<StoredKey>> {
        self.remembered(|memory| match memory.found.fresh(prefix) {
            Some(stored) => Some(Some(stored.clone())),
            None => memory.missed.fresh(prefix).map(|()| None),
        })
    }

    /// In a task of its own: whoever asks may be polled by nobody any more, as the body of an answer that its client
    /// doesn't read, and would keep the turn, and a connection to the database, from all others.
    async fn look_up(self: &Arc<Keyring>, key: &PresentedKey) -> Result<Option<StoredKey>, Error> {
        let (ring, key) = (Arc::clone(self), key.clone());
        let asked = AbortOnDropHandle::new(tokio::spawn(async move { ring.ask(&key).await }));
        match asked.await {
            Ok(stored) => stored,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Nobody else aborts it: the process ends.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn ask(&self, key: &PresentedKey) -> Result<Option<StoredKey>, Error> {
        let turns = if self.knows(key) { &self.turns_of_known } else { &self.turns_of_others };
        let looked_up = with_timeout(async {
            let _turn = turns.acquire().await.expect("nobody closes the semaphore");
            // Whoever had the turn before may have asked for the same.
            if let Some(stored) = self.believed(key.prefix()) {
                return Ok(stored);
            }
            // From before it is asked: an answer may be old when it comes.
            let asked = Instant::now();
            let stored = self.store.usable_key(key.prefix()).await?;
            self.remember(key.prefix(), asked, stored.clone());
            Ok(stored)
        });
        let stored = looked_up.await?;
        if stored.as_ref().is_some_and(|stored| stored.is_use_due && key.is(stored)) {
            // Only for people to read.
            if let Err(error) = with_timeout(self.store.note_use(key.prefix())).await {
                tracing::debug!(event = "key_use_not_noted", key = %key.prefix(), error = %error);
            }
        }
        Ok(stored)
    }

    fn remember(&self, prefix: &Prefix, asked: Instant, stored: Option<StoredKey>) {
        self.remembered(|memory| match stored {
            Some(stored) => {
                memory.missed.0.remove(prefix);
                memory.found.insert(prefix.clone(), asked, stored);
            }
            None => {
                memory.found.0.remove(prefix);
                memory.missed.insert(prefix.clone(), asked, ());
            }
        });
    }

    fn remembered<T>(&self, look: impl FnOnce(&mut Memory) -> T) -> T {
        look(&mut self.memory.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut remembered = Remembered::default();
        for n in 0..5 * MOST {
            remembered.insert(Prefix::stored(n.to_string()), Instant::now(), ());
            assert!(remembered.0.len() <= MOST);
        }
        let last = Prefix::stored((5 * MOST - 1).to_string());
        assert!(remembered.fresh(&last).is_some());
    }

    #[test]
    fn what_is_remembered_is_believed_for_two_seconds() {
        let (mut remembered, prefix) = (Remembered::default(), Prefix::stored("1".to_owned()));
        remembered.insert(prefix.clone(), Instant::now(), ());
        assert!(remembered.fresh(&prefix).is_some());
        remembered.insert(prefix.clone(), Instant::now() - Duration::from_secs(2), ());
        assert!(remembered.fresh(&prefix).is_none());
    }
}
