//! Receivers over HTTP: each event is posted, signed as Standard Webhooks has it. `delivery` has what and when.

mod address;
mod post;
pub mod signature;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::delivery::{Answer, Event, Teller, Way};
use crate::event::Webhook;
use crate::job::Job;
use crate::store::Store;
use crate::webhook::post::Poster;
use crate::webhook::signature::Secrets;

/// A receiver with its secrets.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// The receiver.
    pub webhook: Webhook,
    /// What its events are signed with.
    pub secrets: Secrets,
}

/// Tells these receivers what `store` has for them, until `shutdown`. `shown` is an export as the API shows it.
pub async fn tell(receivers: Vec<Receiver>, store: Store, shown: fn(Job) -> Value, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    for receiver in receivers {
        let name = receiver.webhook.listener.name.clone();
        let teller = Teller::new(&name, store.clone(), Poster::new(receiver), shown);
        tasks.spawn(teller.run(shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

impl Way for Poster {
    async fn open(&self) -> Result<(), String> {
        self.client().map(drop)
    }

    async fn tell(&self, event: Event) -> Answer {
        match self.post(&event.id.to_string(), event.body, event.trace).await {
            Ok(status @ 200..300) => Answer::Taken(Some(status)),
            Ok(410) => Answer::Gone(410),
            Ok(status) => Answer::Failed(Some(status), format!("it answered {status}")),
            Err(why) => Answer::Failed(None, why),
        }
    }
}
