//! Takes the jobs of vanished workers from them.

use crate::maintenance::{Error, Maintenance, Task};
use crate::store::transitions::Transition;
use crate::telemetry::metrics;

pub(super) struct Reap {
    maintenance: Maintenance,
}

impl Reap {
    pub(super) fn new(maintenance: &Maintenance) -> Reap {
        Reap { maintenance: maintenance.clone() }
    }
}

impl Task for Reap {
    const NAME: &'static str = "reap";

    async fn round(&mut self) -> Result<(), Error> {
        let Reap { maintenance } = self;
        maintenance.with_timeout(maintenance.store.make_good_a_clock_set_back(maintenance.settings.lease)).await?;
        maintenance.with_timeout(maintenance.store.make_good_a_clock_set_back_for_deliveries()).await?;
        for Transition { job, .. } in maintenance.with_timeout(maintenance.store.reap()).await? {
            tracing::warn!(event = "export_taken_over", jobId = %job.id, status = %job.status);
            metrics::lease_taken_over();
            maintenance.swept.notify_one();
        }
        Ok(())
    }
}
