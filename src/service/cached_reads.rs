//! The results of the last reads of tables. A call whose read takes long, or finds a lock, is answered with an earlier
//! result and its time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::timeout;

use crate::service::Error;

/// The time that a call waits for a read if there is an earlier result.
const PATIENCE: Duration = Duration::from_millis(200);

/// The age at which a result is forgotten. A call then waits for a new read.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The number of keys at which all results are forgotten. Callers choose keys, by the pages that they ask for.
const MAX_KEYS: usize = 1_000;

/// The result of a read, and the time when the read began.
#[derive(Clone, Debug)]
pub struct CachedRead<V> {
    pub value: V,
    pub as_of: DateTime<Utc>,
}

impl<V> CachedRead<V> {
    fn age(&self) -> Duration {
        // After the clock was set back, an earlier result counts as old.
        (Utc::now() - self.as_of).to_std().unwrap_or(Duration::MAX)
    }
}

/// A read that is going on. All who wait for it get its result.
type RunningRead<V> = Shared<BoxFuture<'static, Result<CachedRead<V>, Arc<Error>>>>;

/// The last result for each key. One read at a time is going on for each.
#[derive(Debug)]
pub(crate) struct CachedReads<K, V: Clone>(Arc<Mutex<HashMap<K, CacheEntry<V>>>>);

#[derive(Debug)]
struct CacheEntry<V: Clone> {
    last: Option<CachedRead<V>>,
    /// The read that is going on, and the time when it began.
    running: Option<(DateTime<Utc>, RunningRead<V>)>,
}

impl<K, V: Clone> Clone for CachedReads<K, V> {
    fn clone(&self) -> CachedReads<K, V> {
        CachedReads(Arc::clone(&self.0))
    }
}

impl<K, V: Clone> Default for CachedReads<K, V> {
    fn default() -> CachedReads<K, V> {
        CachedReads(Arc::default())
    }
}

impl<K, V> CachedReads<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Returns the result for `key` from the last `fresh`. Otherwise reads again, in a task that goes on if the caller
    /// doesn't wait for its end.
    ///
    /// If the read takes long, or the table is locked, returns the last result, unless that is from before
    /// `changed_at` or a minute old.
    pub(crate) async fn get(
        &self,
        key: K,
        fresh: Duration,
        changed_at: Option<DateTime<Utc>>,
        read: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> Result<CachedRead<V>, Arc<Error>> {
        let too_old = {
            let entries = self.entries();
            let running = entries.get(&key).and_then(|entry| entry.running.as_ref());
            running.filter(|(began, _)| changed_at.is_some_and(|at| *began <= at)).map(|(_, read)| read.clone())
        };
        // A read that began before the change may not see it.
        if let Some(too_old) = too_old {
            let _ = too_old.await;
        }
        let (last, running) = {
            let mut entries = self.entries();
            let is_full = entries.len() >= MAX_KEYS;
            let is_kept = |last: &CachedRead<V>| !is_full && last.age() < MAX_AGE;
            entries.retain(|_, entry| entry.running.is_some() || entry.last.as_ref().is_some_and(is_kept));
            let entry = entries.entry(key.clone()).or_insert(CacheEntry { last: None, running: None });
            let is_usable = |last: &&CachedRead<V>| last.age() < MAX_AGE && changed_at.is_none_or(|at| at < last.as_of);
            let last = entry.last.as_ref().filter(is_usable).cloned();
            if let Some(last) = last.as_ref().filter(|last| last.age() < fresh) {
                return Ok(last.clone());
            }
            let (_, running) = entry.running.get_or_insert_with(|| self.begin(key, read));
            (last, running.clone())
        };
        let Some(last) = last else { return running.await };
        match timeout(failpoint::time("service.patience", PATIENCE), running).await {
            Ok(Err(error)) if matches!(&*error, Error::Table(Some(cdc_capture::Error::LockConflict { .. }))) => {
                Ok(last)
            }
            Ok(read) => read,
            Err(_) => Ok(last),
        }
    }

    /// Begins a read. Its end is recorded even if nobody waits for it.
    fn begin(
        &self,
        key: K,
        read: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> (DateTime<Utc>, RunningRead<V>) {
        let cache = self.clone();
        let as_of = Utc::now();
        let task = tokio::spawn(async move {
            let done = read.await.map(|value| CachedRead { value, as_of }).map_err(Arc::new);
            if let Some(entry) = cache.entries().get_mut(&key) {
                entry.running = None;
                entry.last = done.as_ref().ok().cloned().or(entry.last.take());
            }
            done
        });
        let running = async move { task.await.unwrap_or_else(|_| Err(Arc::new(Error::Table(None)))) };
        (as_of, running.boxed().shared())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<K, CacheEntry<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn a_read_of_a_tenth_of_a_second_is_waited_for() {
        let cache = CachedReads::<&str, u32>::default();
        assert_eq!(cache.get("a", Duration::ZERO, None, async { Ok(1) }).await.unwrap().value, 1);
        let read = async {
            sleep(Duration::from_millis(100)).await;
            Ok(2)
        };
        assert_eq!(cache.get("a", Duration::ZERO, None, read).await.unwrap().value, 2);
    }

    #[tokio::test]
    async fn a_long_read_is_answered_with_the_last_result() {
        let cache = CachedReads::<&str, u32>::default();
        let quick = |value| async move { Ok(value) };
        assert_eq!(cache.get("a", Duration::ZERO, None, quick(1)).await.unwrap().value, 1);
        let (end, ended) = oneshot::channel();
        let long = async { ended.await.map_err(|_| Error::Table(None)) };
        assert_eq!(cache.get("a", Duration::ZERO, None, long).await.unwrap().value, 1, "it goes on");
        assert_eq!(cache.get("a", Duration::from_secs(5), None, quick(9)).await.unwrap().value, 1, "fresh enough");
        // A caller that needs the present state waits for the read that began before, and then for one of its own.
        let later = tokio::spawn({
            let cache = cache.clone();
            async move { cache.get("a", Duration::ZERO, Some(Utc::now()), quick(2)).await.unwrap().value }
        });
        tokio::task::yield_now().await;
        end.send(7).unwrap();
        assert_eq!(later.await.unwrap(), 2);
        assert_eq!(cache.get("b", Duration::ZERO, None, quick(3)).await.unwrap().value, 3);
        let failed = cache.get("a", Duration::ZERO, None, async { Err(Error::Table(None)) }).await;
        assert!(failed.is_err(), "a failure is reported");
        assert_eq!(cache.get("a", Duration::from_secs(5), None, quick(9)).await.unwrap().value, 2, "and not kept");
    }
}
