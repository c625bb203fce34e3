//! Brokers that speak AMQP 0-9-1, such as RabbitMQ: the events of ended exports are published to an exchange, and requests for exports
//! come from a queue.
//!
//! Declares nothing: exchanges, queues and bindings are the operator's, and a name that isn't there is told until it is. What publishes has
//! a connection of its own, an [`outlet`], since a broker that is short of memory or disk stops reading from those that publish.

pub mod address;
mod connection;
mod intake;
mod legible;
mod outlet;
mod publish;
mod refused;
mod runtime;
mod waiting;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::amqp::address::Address;
use crate::amqp::intake::Requests;
pub use crate::amqp::intake::Submit;
use crate::amqp::publish::Publishes;
use crate::broker::Broker;
use crate::delivery::Teller;
use crate::job::Job;
use crate::store::Store;

/// The delivery mode of a message that is kept on disk.
const PERSISTENT: u8 = 2;

/// A broker with its address.
#[derive(Clone, Debug)]
pub struct AddressedBroker {
    /// The broker.
    pub broker: Broker,
    /// Where it is.
    pub address: Address,
}

/// Publishes what `store` has for these brokers, until `shutdown`. `shown` is an export as the API shows it.
pub async fn tell(brokers: Vec<AddressedBroker>, store: Store, shown: fn(Job) -> Value, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    for AddressedBroker { broker, address } in brokers {
        if let Some(publication) = broker.publication {
            let teller = Teller::new(&broker.name, store.clone(), Publishes::new(publication, &address), shown);
            tasks.spawn(teller.run(shutdown.clone()));
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Takes requests from the queues of these brokers, until `shutdown`.
pub async fn take_requests(brokers: Vec<AddressedBroker>, submit: Submit, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    for AddressedBroker { broker, address } in brokers {
        if let Some(intake) = broker.intake {
            let requests = Requests::new(broker.name, intake, &address, submit.clone());
            tasks.spawn(requests.run(shutdown.clone()));
        }
    }
    while tasks.join_next().await.is_some() {}
}
