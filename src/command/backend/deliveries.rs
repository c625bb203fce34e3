//! What receivers were told, and telling them again.

use crate::event::DeliveryFilter;
use crate::http;
use hyper::http::HeaderMap;
use serde_json::Value;
use uuid::Uuid;

use crate::command::backend::{Backend, Items, path_of};

impl Backend {
    /// The newest deliveries that a filter lets through, as the API shows them, `limit` at most, and whether there are more.
    pub(crate) async fn deliveries(&self, filter: &DeliveryFilter, limit: u32) -> anyhow::Result<(Vec<Value>, bool)> {
        match self {
            Backend::Local(service) => {
                let mut found = service.deliveries(filter, limit + 1).await?;
                let has_more = found.len() > limit as usize;
                found.truncate(limit as usize);
                Ok((found.into_iter().map(http::delivery_as_json).collect(), has_more))
            }
            Backend::Remote(client) => {
                let query = [("status", filter.status.map(|it| it.as_str())), ("endpoint", filter.endpoint.as_deref())];
                let path = format!("{}&limit={limit}", path_of("/deliveries", &query));
                let page: Items = client.get(&path).await?;
                Ok((page.items, page.next_cursor.is_some()))
            }
        }
    }

    /// Has a receiver told of an event again.
    pub(crate) async fn redeliver(&self, id: Uuid) -> anyhow::Result<()> {
        match self {
            Backend::Local(service) => Ok(service.redeliver(id).await.map(drop)?),
            Backend::Remote(client) => {
                let path = format!("/deliveries/{id}/redeliver");
                client.post::<Value>(&path, &HeaderMap::new(), None).await?;
                Ok(())
            }
        }
    }
}
