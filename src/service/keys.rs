//! Verification of keys: looks keys up in the database and caches the results.
//!
//! Cached results are at most two seconds old, so every process soon refuses a revoked key. If the database is
//! unavailable, expired results are used for the metrics only.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::key::{Grant, Prefix, PresentedKey, StoredKey};
use crate::service::Error;
use crate::service::deadline::with_timeout;
use crate::service::scrape::ReadCache;
use crate::store::{self, Store};

const CACHE_TIME: Duration = Duration::from_secs(2);
/// Interval at which the key of a long request is verified again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(2);
/// Number of keys above which old lookups are removed. At most as many prefixes without a key are cached.
const MAX_CACHED: usize = 1_000;
/// Interval between two reads of all usable keys, for keys that this process hasn't seen.
const LOAD_INTERVAL: Duration = Duration::from_secs(1);
/// Time limit of such a read. The lookup that follows has the rest of the call's time.
const LOAD_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum number of concurrent lookups. It is small, so that enough connections remain for the API.
const MAX_LOOKUPS: usize = 2;

#[derive(Debug)]
pub(crate) struct Keyring {
    store: Store,
    cache: Mutex<KeyCache>,
    /// The last read of all usable keys.
    loaded: ReadCache<()>,
    /// Lookups of unknown keys have separate permits, so that attempts to guess keys do not delay known keys.
    known_permits: Semaphore,
    unknown_permits: Semaphore,
}

#[derive(Debug, Default)]
struct KeyCache {
    found: LookupCache<StoredKey>,
    missing: LookupCache<()>,
}

/// A map of lookup results and their times, limited in size.
#[derive(Debug)]
struct LookupCache<T>(HashMap<Prefix, (Instant, T)>);

impl<T> Default for LookupCache<T> {
    fn default() -> LookupCache<T> {
        LookupCache(HashMap::new())
    }
}

fn cache_time() -> Duration {
    failpoint::time("keys.believed", CACHE_TIME)
}

impl<T> LookupCache<T> {
    fn fresh(&self, prefix: &Prefix) -> Option<&T> {
        self.0.get(prefix).filter(|(queried_at, _)| queried_at.elapsed() < cache_time()).map(|(_, result)| result)
    }

    fn insert(&mut self, prefix: Prefix, queried_at: Instant, result: T) {
        if self.0.len() >= MAX_CACHED && !self.0.contains_key(&prefix) {
            self.0.retain(|_, (queried_at, _)| queried_at.elapsed() < cache_time());
            // If the map is still full, remove all entries; they will be looked up again.
            if self.0.len() >= MAX_CACHED {
                self.0.clear();
            }
        }
        self.0.insert(prefix, (queried_at, result));
    }
}

impl Keyring {
    pub(crate) fn new(store: Store) -> Keyring {
        let [known_permits, unknown_permits] = [MAX_LOOKUPS; 2].map(Semaphore::new);
        Keyring { store, cache: Mutex::default(), loaded: ReadCache::default(), known_permits, unknown_permits }
    }

    /// Returns true if the key exists or existed. This distinguishes a key from a guess, but does not grant access.
    ///
    /// Reads all usable keys for that, once a second at most. If the database does not answer, a key that this process
    /// hasn't seen before counts as a guess.
    pub(crate) async fn is_known(&self, key: &PresentedKey) -> bool {
        if !self.knows(key) {
            let Ok(()) = self.loaded.get_or_read(LOAD_INTERVAL, self.load()).await;
        }
        self.knows(key)
    }

    async fn load(&self) -> Result<(), Infallible> {
        let keys = store::with_timeout(LOAD_TIMEOUT, self.store.usable_keys(None)).await.unwrap_or_default();
        // The first use of a key looks it up all the same, and records the use.
        if let Some(long_ago) = Instant::now().checked_sub(cache_time()) {
            self.with_cache(|cache| {
                for key in keys {
                    cache.found.0.entry(key.grant.prefix.clone()).or_insert((long_ago, key));
                }
            });
        }
        Ok(())
    }

    /// Returns true if a lookup of this key has succeeded, however long ago.
    fn knows(&self, key: &PresentedKey) -> bool {
        self.with_cache(|cache| cache.found.0.get(key.prefix()).is_some_and(|(_, stored)| key.is(stored)))
    }

    /// Returns the grant of a key. Returns [`Error::NoKey`] if the key does not exist, was revoked or has expired. A
    /// revocation takes effect within seconds.
    pub(crate) async fn grant(self: &Arc<Keyring>, key: &PresentedKey) -> Result<Arc<Grant>, Error> {
        let stored = match self.cached(key.prefix()) {
            Some(stored) => stored,
            None => self.look_up(key).await?,
        };
        stored.filter(|stored| key.is(stored)).map(|stored| stored.grant).ok_or(Error::NoKey)
    }

    /// Returns what [`grant`](Keyring::grant) returns. If the database is unavailable, returns the key's last grant in
    /// this process, however old: monitoring has to see such a database.
    pub(crate) async fn grant_for_monitoring(self: &Arc<Keyring>, key: &PresentedKey) -> Result<Arc<Grant>, Error> {
        let granted = self.grant(key).await;
        let last = self.with_cache(|cache| cache.found.0.get(key.prefix()).map(|(_, stored)| stored.clone()));
        match (granted, last) {
            (Err(Error::DatabaseUnavailable(_)), Some(stored)) if key.is(&stored) => Ok(stored.grant),
            (granted, _) => granted,
        }
    }

    /// Waits until the key is revoked or expires, and returns a few seconds later.
    ///
    /// If the database is unavailable, the key remains valid, because it was valid at the start of the request.
    pub(crate) async fn revoked(self: &Arc<Keyring>, key: &PresentedKey) {
        loop {
            tokio::time::sleep(failpoint::time("keys.looked_at", RECHECK_INTERVAL)).await;
            if matches!(self.grant(key).await, Err(Error::NoKey)) {
                return;
            }
        }
    }

    /// Returns the cached lookup of a prefix. Returns `None` if there is none or it is too old.
    fn cached(&self, prefix: &Prefix) -> Option<Option<StoredKey>> {
        self.with_cache(|cache| match cache.found.fresh(prefix) {
            Some(stored) => Some(Some(stored.clone())),
            None => cache.missing.fresh(prefix).map(|()| None),
        })
    }

    /// Looks a key up in a separate task.
    ///
    /// The caller's future may no longer be polled, for example as the body of a response that its client does not
    /// read. It would then hold the permit and a database connection indefinitely.
    async fn look_up(self: &Arc<Keyring>, key: &PresentedKey) -> Result<Option<StoredKey>, Error> {
        let (ring, key) = (Arc::clone(self), key.clone());
        let lookup = AbortOnDropHandle::new(tokio::spawn(async move { ring.query(&key).await }));
        match lookup.await {
            Ok(stored) => stored,
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The task is aborted only when the process exits.
                Err(_) => std::future::pending().await,
            },
        }
    }

    async fn query(&self, key: &PresentedKey) -> Result<Option<StoredKey>, Error> {
        let permits = if self.knows(key) { &self.known_permits } else { &self.unknown_permits };
        let looked_up = with_timeout(async {
            let _permit = permits.acquire().await.expect("the semaphore is never closed");
            // The previous holder of the permit may have looked up the same key.
            if let Some(stored) = self.cached(key.prefix()) {
                return Ok(stored);
            }
            // The time before the query, because the result may be old when it arrives.
            let queried_at = Instant::now();
            let stored = self.store.usable_keys(Some(key.prefix())).await?.pop();
            self.store_result(key.prefix(), queried_at, stored.clone());
            Ok(stored)
        });
        let stored = looked_up.await?;
        if stored.as_ref().is_some_and(|stored| stored.is_use_due && key.is(stored)) {
            // Operators see the time of the last use. Nothing else depends on it, so an error is not returned.
            if let Err(error) = with_timeout(self.store.note_use(key.prefix())).await {
                tracing::debug!(event = "key_use_not_noted", key = %key.prefix(), error = %error);
            }
        }
        Ok(stored)
    }

    fn store_result(&self, prefix: &Prefix, queried_at: Instant, stored: Option<StoredKey>) {
        self.with_cache(|cache| match stored {
            Some(stored) => {
                cache.missing.0.remove(prefix);
                cache.found.insert(prefix.clone(), queried_at, stored);
            }
            None => {
                cache.found.0.remove(prefix);
                cache.missing.insert(prefix.clone(), queried_at, ());
            }
        });
    }

    fn with_cache<T>(&self, access: impl FnOnce(&mut KeyCache) -> T) -> T {
        access(&mut self.cache.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_size_is_limited() {
        let mut cache = LookupCache::default();
        for n in 0..5 * MAX_CACHED {
            cache.insert(Prefix::stored(n.to_string()), Instant::now(), ());
            assert!(cache.0.len() <= MAX_CACHED);
        }
        let last = Prefix::stored((5 * MAX_CACHED - 1).to_string());
        assert!(cache.fresh(&last).is_some());
    }
}
