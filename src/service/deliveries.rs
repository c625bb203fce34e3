//! Deliveries of events to receivers, and requests to deliver an event again.

use uuid::Uuid;

use crate::audit::Action;
use crate::event::{Delivery, DeliveryFilter};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};

impl Service {
    /// Lists the deliveries that match a filter, newest first.
    pub async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Delivery>, Error> {
        with_timeout(self.store.deliveries(filter, limit)).await
    }

    /// Makes a delivery due now, in any status.
    ///
    /// # Errors
    /// If the delivery is not in the database, or its receiver is no longer in the catalog.
    pub async fn redeliver(&self, id: Uuid) -> Result<Delivery, Error> {
        let delivery = with_timeout(self.store.delivery(id)).await?.ok_or(Error::NoDelivery)?;
        if !self.catalog.listeners().iter().any(|listener| listener.name == delivery.endpoint) {
            return Err(Error::NoEndpoint(delivery.endpoint));
        }
        let delivery = with_timeout(self.store.redeliver(id)).await?.ok_or(Error::NoDelivery)?;
        self.origin.log_done(Action::Redeliver, None, None, Some(delivery.job));
        Ok(delivery)
    }
}
