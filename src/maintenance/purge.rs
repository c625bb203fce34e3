//! Purges the change log.

use crate::maintenance::{Error, Maintenance, Task};
use crate::source::purge::PURGE_ROWS;

pub(super) struct Purge {
    maintenance: Maintenance,
}

impl Purge {
    pub(super) fn new(maintenance: &Maintenance) -> Purge {
        Purge { maintenance: maintenance.clone() }
    }
}

impl Task for Purge {
    const NAME: &'static str = "purge";

    async fn round(&mut self) -> Result<(), Error> {
        let Purge { maintenance } = self;
        while maintenance.source.purge(&maintenance.settings.log_caps).await? >= PURGE_ROWS {}
        Ok(())
    }
}
