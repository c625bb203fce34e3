//! The results of the last looks at tables. A call whose look takes long, or finds a lock, is answered with an earlier
//! result and its time.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::time::timeout;

use crate::failpoint;
use crate::service::Error;
use crate::source;

/// The time that a call waits for a look if there is an earlier one.
const PATIENCE: Duration = Duration::from_millis(200);

/// The age at which a result is forgotten. A call then waits for a new look.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The number of keys at which all results are forgotten. Callers choose keys, by the pages that they ask for.
const MAX_KEYS: usize = 1_000;

/// Something that was seen, and the time when the look began.
#[derive(Clone, Debug)]
pub struct Looked<V> {
    pub value: V,
    pub as_of: DateTime<Utc>,
}

impl<V> Looked<V> {
    fn age(&self) -> Duration {
        // After the clock was set back, what was seen counts as old.
        (Utc::now() - self.as_of).to_std().unwrap_or(Duration::MAX)
    }
}

/// A look that is going on. All who wait for it get its result.
type Look<V> = Shared<BoxFuture<'static, Result<Looked<V>, Arc<Error>>>>;

/// The last result for each key. One look at a time is going on for each.
#[derive(Debug)]
pub(crate) struct LastSeen<K, V: Clone>(Arc<Mutex<HashMap<K, Sight<V>>>>);

#[derive(Debug)]
struct Sight<V: Clone> {
    last: Option<Looked<V>>,
    /// The look that is going on, and the time when it began.
    look: Option<(DateTime<Utc>, Look<V>)>,
}

impl<K, V: Clone> Clone for LastSeen<K, V> {
    fn clone(&self) -> LastSeen<K, V> {
        LastSeen(Arc::clone(&self.0))
    }
}

impl<K, V: Clone> Default for LastSeen<K, V> {
    fn default() -> LastSeen<K, V> {
        LastSeen(Arc::default())
    }
}

impl<K, V> LastSeen<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Returns what was seen of `key` in the last `fresh`. Otherwise looks again, in a task that goes on if the caller
    /// doesn't wait for its end.
    ///
    /// If the look takes long, or the table is locked, returns what was last seen, unless that is from before
    /// `changed_at` or a minute old.
    pub(crate) async fn get(
        &self,
        key: K,
        fresh: Duration,
        changed_at: Option<DateTime<Utc>>,
        look: impl Future<Output = Result<V, Error>> + Send + 'static,
    ) -> Result<Looked<V>, Arc<Error>> {
        let too_old = {
            let sights = self.sights();
            let running = sights.get(&key).and_then(|sight| sight.look.as_ref());
            running.filter(|(began, _)| changed_at.is_some_and(|at| *began <= at)).map(|(_, look)| look.clone())
        };
        // It may not see the change.
        if let Some(too_old) = too_old {
            let _ = too_old.await;
        }
        let (last, look) = {
            let mut sights = self.sights();
            let is_full = sights.len() >= MAX_KEYS;
            let is_kept = |last: &Looked<V>| !is_full && last.age() < MAX_AGE;
            sights.retain(|_, sight| sight.look.is_some() || sight.last.as_ref().is_some_and(is_kept));
            let sight = sights.entry(key.clone()).or_insert(Sight { last: None, look: None });
            let is_usable = |last: &&Looked<V>| last.age() < MAX_AGE && changed_at.is_none_or(|at| at < last.as_of);
            let last = sight.last.as_ref().filter(is_usable).cloned();
            if let Some(last) = last.as_ref().filter(|last| last.age() < fresh) {
                return Ok(last.clone());
            }
            let (_, look) = sight.look.get_or_insert_with(|| self.begin(key, look));
            (last, look.clone())
        };
        match last {
            None => look.await,
            Some(last) => match timeout(failpoint::time("service.patience", PATIENCE), look).await {
                Ok(Err(error)) if matches!(&*error, Error::Table(Some(source::Error::LockConflict { .. }))) => Ok(last),
                Ok(looked) => looked,
                Err(_) => Ok(last),
            },
        }
    }

    /// Begins a look. Its end is recorded even if nobody waits for it.
    fn begin(&self, key: K, look: impl Future<Output = Result<V, Error>> + Send + 'static) -> (DateTime<Utc>, Look<V>) {
        let seen = self.clone();
        let as_of = Utc::now();
        let task = tokio::spawn(async move {
            let looked = look.await.map(|value| Looked { value, as_of }).map_err(Arc::new);
            if let Some(sight) = seen.sights().get_mut(&key) {
                sight.look = None;
                sight.last = looked.as_ref().ok().cloned().or(sight.last.take());
            }
            looked
        });
        let look = async move { task.await.unwrap_or_else(|_| Err(Arc::new(Error::Table(None)))) };
        (as_of, look.boxed().shared())
    }

    fn sights(&self) -> MutexGuard<'_, HashMap<K, Sight<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test]
    async fn a_look_of_a_tenth_of_a_second_is_waited_for() {
        let seen = LastSeen::<&str, u32>::default();
        assert_eq!(seen.get("a", Duration::ZERO, None, async { Ok(1) }).await.unwrap().value, 1);
        let look = async {
            sleep(Duration::from_millis(100)).await;
            Ok(2)
        };
        assert_eq!(seen.get("a", Duration::ZERO, None, look).await.unwrap().value, 2);
    }

    #[tokio::test]
    async fn a_long_look_is_answered_with_the_one_before() {
        let seen = LastSeen::<&str, u32>::default();
        let quick = |value| async move { Ok(value) };
        assert_eq!(seen.get("a", Duration::ZERO, None, quick(1)).await.unwrap().value, 1);
        let (end, ended) = oneshot::channel();
        let long = async { ended.await.map_err(|_| Error::Table(None)) };
        assert_eq!(seen.get("a", Duration::ZERO, None, long).await.unwrap().value, 1, "it goes on");
        assert_eq!(seen.get("a", Duration::from_secs(5), None, quick(9)).await.unwrap().value, 1, "fresh enough");
        // A caller that needs the present state waits for the look that began before, and then for one of its own.
        let later = tokio::spawn({
            let seen = seen.clone();
            async move { seen.get("a", Duration::ZERO, Some(Utc::now()), quick(2)).await.unwrap().value }
        });
        tokio::task::yield_now().await;
        end.send(7).unwrap();
        assert_eq!(later.await.unwrap(), 2);
        assert_eq!(seen.get("b", Duration::ZERO, None, quick(3)).await.unwrap().value, 3);
        let failed = seen.get("a", Duration::ZERO, None, async { Err(Error::Table(None)) }).await;
        assert!(failed.is_err(), "a failure is told");
        assert_eq!(seen.get("a", Duration::from_secs(5), None, quick(9)).await.unwrap().value, 2, "and not kept");
    }
}
