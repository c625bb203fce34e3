//! What receivers were told of ended exports, and telling them again.

use uuid::Uuid;

use crate::event::{Delivery, DeliveryFilter};
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};

impl Service {
    /// Deliveries that a filter lets through, newest first.
    pub async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> Result<Vec<Delivery>, Error> {
        with_timeout(self.store.deliveries(filter, limit)).await
    }

    /// Makes a delivery due again, whatever became of it.
    ///
    /// # Errors
    /// If there is no such delivery, or its receiver is in the catalog no more: nobody would tell it.
    pub async fn redeliver(&self, id: Uuid) -> Result<Delivery, Error> {
        let delivery = with_timeout(self.store.delivery(id)).await?.ok_or(Error::NoDelivery)?;
        if !self.catalog.listeners().any(|listener| listener.name == delivery.endpoint) {
            return Err(Error::NoEndpoint(delivery.endpoint));
        }
        with_timeout(self.store.redeliver(id)).await?.ok_or(Error::NoDelivery)
    }
}
