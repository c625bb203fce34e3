//! The destinations that processes use. The name of a session tells the destination of its process, so that an idle
//! process writes nothing.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::store::{Error, Store};

/// The time after which any process may run the jobs of a destination that no process uses.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

impl Store {
    /// Records that a process uses this destination. Writes nothing if one has done so within `age`, and this one has
    /// claimed no job since the last call.
    pub async fn record_destination(&self, destination: Uuid, age: Duration) -> Result<(), Error> {
        let age = if self.has_claimed.swap(false, Ordering::Relaxed) { Duration::ZERO } else { age };
        let statement = sqlx::query(
            "-- store.destinations.record
             insert into cdc_export.destinations (id, seen_at)
             select $1, clock_timestamp()
             -- A time in the future is from before the clock was set back.
             where not exists (
               select from cdc_export.destinations d
               where d.id = $1
                 and d.seen_at between clock_timestamp() - make_interval(secs => $2) and clock_timestamp())
             on conflict (id) do update set seen_at = excluded.seen_at",
        )
        .bind(destination)
        .bind(age.as_secs_f64());
        self.execute(statement).await.map(drop)
    }

    /// Forgets the destinations that no process has used for a day.
    pub async fn forget_destinations(&self, now: DateTime<Utc>) -> Result<(), Error> {
        let statement = sqlx::query(
            "-- store.destinations.forget
             delete from cdc_export.destinations where seen_at < $1 - interval '1 day'",
        );
        self.execute(statement.bind(now)).await.map(drop)
    }

    /// Returns the destinations that no process has used for a minute, as far as this process has looked.
    pub(super) fn abandoned(&self) -> Vec<Uuid> {
        let after = failpoint::time("store.abandoned", ABANDONED_AFTER);
        let unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        unused.iter().filter(|(_, since)| since.elapsed() >= after).map(|(id, _)| *id).collect()
    }

    pub(super) fn set_unused(&self, now: &[Uuid]) {
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let since = |id: &Uuid| (*id, unused.get(id).copied().unwrap_or_else(Instant::now));
        *unused = now.iter().map(since).collect::<HashMap<_, _>>();
    }
}
