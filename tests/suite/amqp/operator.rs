//! A service with a broker, and the deliveries that it lists.

use serde_json::Value;

use crate::amqp::broker::Broker;
use crate::catalog::Catalog;
use crate::harness::{Database, Service, Start, eventually};

/// An operator's file with the demo's table and a broker.
pub(crate) fn operator(block: &str) -> Catalog {
    Catalog::of(&format!(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\ncreated_at = \"created_at\"\nupdated_at = \"updated_at\"\n\
         deleted = \"is_deleted\"\n[[amqp]]\nname = \"rabbit\"\nurl_env = \"RABBIT_AMQP_URL\"\n{block}\n"
    ))
}

pub(crate) fn start(operator: &Catalog, database: &Database, broker: &Broker) -> Start {
    operator.start(database).with("RABBIT_AMQP_URL", broker.url())
}

pub(crate) const EXPORTS: &str = "exchange = \"exports\"\n";
/// Makes failed deliveries due, but none that is under way.
pub(crate) const DUE: &str = "update cdc_export.deliveries set run_at = clock_timestamp()
    where delivered_at is null and last_error is not null and run_at < 'infinity'";

pub(crate) async fn all_delivered(service: &Service, number: usize) -> Vec<Value> {
    eventually("they are delivered", || async {
        Some(service.deliveries("?status=delivered&limit=200").await).filter(|told| told.len() == number)
    })
    .await
}
