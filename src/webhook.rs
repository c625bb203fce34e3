//! Tells receivers over HTTP how exports ended: an event is posted until its receiver takes it, or for two days.
//!
//! At least once, and in no order: who dies between a receiver's answer and its record leaves the event to be posted again, under the same
//! id. Each receiver has a task of its own, so that one that is slow holds nobody else up. What is to be told, and how far that has come, is in
//! `store::deliveries`. Every process that runs exports tells; which of them, the database decides.

mod address;
mod post;
mod retry;
pub mod signature;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::database::DatabaseId;
use crate::event::{self, Webhook};
use crate::failpoint;
use crate::job::Job;
use crate::store::deliveries::{Taken, Try, TryOutcome};
use crate::store::{self, Store};
use crate::telemetry::complaints::Complaints;
use crate::telemetry::{chain, metrics};
use crate::webhook::post::Poster;
use crate::webhook::signature::Secrets;

/// How many events a process posts to a receiver at a time.
const AT_ONCE: usize = 8;
/// How long an event is this process's, which is more than a post and its record take.
const LEASE: Duration = Duration::from_secs(60);
/// How long a receiver's task waits to be woken before it looks by itself, and how long it rests after the database failed.
const POLL: Duration = Duration::from_secs(1);
/// How long a statement may take without an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A receiver with its secrets.
#[derive(Clone, Debug)]
pub struct Receiver {
    /// The receiver.
    pub webhook: Webhook,
    /// What its events are signed with.
    pub secrets: Secrets,
}

/// What tells the receivers.
#[derive(Clone, Debug)]
pub struct Webhooks {
    store: Store,
    receivers: Vec<Receiver>,
    shown: fn(Job) -> Value,
}

impl Webhooks {
    /// Tells these receivers what `store` has for them. `shown` is an export as the API shows it.
    pub fn new(store: Store, receivers: Vec<Receiver>, shown: fn(Job) -> Value) -> Webhooks {
        for receiver in &receivers {
            metrics::init_deliveries(&receiver.webhook.listener.name);
        }
        Webhooks { store, receivers, shown }
    }

    /// Tells until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        for receiver in self.receivers {
            let teller = Teller {
                name: receiver.webhook.listener.name.clone(),
                store: self.store.clone(),
                poster: Arc::new(Poster::new(receiver)),
                shown: self.shown,
                complaints: Arc::default(),
            };
            tasks.spawn(teller.restarted(shutdown.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// Tells one receiver.
#[derive(Clone)]
struct Teller {
    name: String,
    store: Store,
    poster: Arc<Poster>,
    shown: fn(Job) -> Value,
    complaints: Arc<Complaints>,
}

/// Whether a receiver goes on.
#[derive(PartialEq, Eq)]
enum GoesOn {
    Yes,
    /// It wants no event any more.
    No,
}

impl Teller {
    /// Tells until `shutdown`, also after a defect.
    async fn restarted(self, shutdown: CancellationToken) {
        while AssertUnwindSafe(self.clone().run(shutdown.clone())).catch_unwind().await.is_err() {
            tracing::error!(event = "webhook_panicked", endpoint = self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    async fn run(self, shutdown: CancellationToken) {
        let mut endings = self.store.endings();
        let mut posts = JoinSet::new();
        let mut database = None;
        // One that is gone says so at the first post, and the other events wait.
        let mut at_once = 1;
        loop {
            if posts.len() < at_once {
                match self.take(&mut database, at_once - posts.len()).await {
                    Ok((database, taken)) => {
                        for taken in taken {
                            let (teller, database) = (self.clone(), database.clone());
                            posts.spawn(async move { teller.tell(taken, &database).await });
                        }
                    }
                    Err(error) => self.complain(&error),
                }
            }
            tokio::select! {
                // What is under way is posted again when its lease has passed, unless it was recorded.
                () = shutdown.cancelled() => return,
                Some(done) = posts.join_next() => match done {
                    Ok(GoesOn::No) => {
                        // What is under way is recorded.
                        while posts.join_next().await.is_some() {}
                        tracing::warn!(event = "webhook_disabled", endpoint = self.name, "the receiver answered 410: it gets no event before this process starts again");
                        return;
                    }
                    Ok(GoesOn::Yes) => at_once = AT_ONCE,
                    Err(panicked) => self.complain(&panicked),
                },
                _ = endings.next(), if posts.len() < at_once => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    async fn take(
        &self,
        database: &mut Option<DatabaseId>,
        most: usize,
    ) -> Result<(DatabaseId, Vec<Taken>), store::Error> {
        let of = match database {
            Some(database) => database.clone(),
            None => database.insert(store::with_timeout(CALL_TIMEOUT, self.store.database()).await?).clone(),
        };
        let taken = store::with_timeout(CALL_TIMEOUT, self.store.take_deliveries(&self.name, most, LEASE)).await?;
        Ok((of, taken))
    }

    /// Posts an event, and records what became of it.
    async fn tell(&self, Taken { delivery, job }: Taken, database: &DatabaseId) -> GoesOn {
        let id = delivery.id.to_string();
        let event = json!({
            "specversion": "1.0",
            "id": id,
            "source": format!("/cdc-export/{database}"),
            "type": format!("cdc-export.{}.v1", event::event_name(delivery.event)),
            "subject": subject(&job),
            "time": delivery.created_at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
            "datacontenttype": "application/json",
            "data": (self.shown)(job),
        });
        let poster = Arc::clone(&self.poster);
        let answer = spawn_blocking(move || poster.post(&id, &event.to_string())).await;
        failpoint!("webhook.answered", GoesOn::Yes);
        let (status, error) = match answer {
            Ok(Ok(status)) => (Some(status), (!(200..300).contains(&status)).then(|| format!("it answered {status}"))),
            Ok(Err(why)) => (None, Some(why)),
            Err(panicked) => (None, Some(chain(&panicked))),
        };
        let outcome = match error {
            None => TryOutcome::Delivered,
            Some(why) if status == Some(410) => TryOutcome::Dead(why),
            Some(why) => match retry::after(delivery.attempt) {
                Some(pause) => TryOutcome::Again(pause, why),
                None => TryOutcome::Dead(why),
            },
        };
        let (word, why) = match &outcome {
            TryOutcome::Delivered => ("delivered", None),
            TryOutcome::Again(_, why) => ("failed", Some(why)),
            TryOutcome::Dead(why) => ("dead", Some(why)),
        };
        metrics::delivery_tried(&self.name, word);
        if let Some(error) = why {
            tracing::warn!(
                event = "delivery_failed", endpoint = self.name, deliveryId = %delivery.id, jobId = %delivery.job,
                attempt = delivery.attempt, isDead = word == "dead", error
            );
        }
        let tried = Try { status, outcome };
        if let Err(error) = store::with_timeout(CALL_TIMEOUT, self.store.tried(&delivery, &tried)).await {
            self.complain(&error);
        }
        if status == Some(410) { GoesOn::No } else { GoesOn::Yes }
    }

    fn complain(&self, error: &(dyn std::error::Error + 'static)) {
        let error = chain(error);
        if let Some(times) = self.complaints.due(error.clone()) {
            tracing::warn!(event = "webhook_failed", endpoint = self.name, error, times);
        }
    }
}

/// What an event is about: the dataset, and the consumer if there is one.
fn subject(job: &Job) -> String {
    match &job.consumer {
        Some(consumer) => format!("{}/{consumer}", job.dataset),
        None => job.dataset.clone(),
    }
}
