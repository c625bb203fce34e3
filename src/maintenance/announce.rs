//! Records again and again that a process with this destination lives, also while reading the whole folder takes long.

use crate::maintenance::{Error, Maintenance, Task};
use crate::sink::Destination;

pub(super) struct Announce {
    maintenance: Maintenance,
    destination: Destination,
}

impl Announce {
    pub(super) fn new(maintenance: &Maintenance) -> Announce {
        Announce { maintenance: maintenance.clone(), destination: maintenance.destination() }
    }
}

impl Task for Announce {
    const NAME: &'static str = "announce";

    async fn round(&mut self) -> Result<(), Error> {
        let Announce { maintenance, destination } = self;
        let id = destination.id().await?;
        // Tells the cause where the write below would only time out.
        maintenance.with_timeout(maintenance.store.ping()).await?;
        maintenance.with_timeout(maintenance.store.record_destination(id)).await?;
        Ok(())
    }
}
