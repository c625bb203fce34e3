//! Delivers the events of ended jobs: each event is sent until its receiver accepts it, for 42 hours at most.
//!
//! Delivery is at least once and in no order. If a process dies after a receiver's answer and before the record of it,
//! the event is sent again under the same id. Each receiver has a [`Dispatcher`] of its own, so a slow receiver delays
//! no other receiver. Every process that runs exports has dispatchers; the rows of `store::deliveries` decide which of
//! them sends an event.
//!
//! Knows no protocol: a [`Transport`] carries an event to its receiver, and `receiver` has the transports.

mod retry;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::event::{Delivery, EventType, Listener};
use crate::job::json::{AnyJobJson, rfc3339};
use crate::job::{Job, Status};
use crate::store::deliveries::{Attempt, AttemptOutcome, ClaimedDelivery};
use crate::store::{self, Store};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::metrics;
use crate::telemetry::spans::{Kind, Span};
use crate::trace::TraceParent;
use cdc_destination::DatabaseId;
use failpoint::failpoint;
use pg_session::failure::chain;

/// Maximum number of events that a process sends to one receiver at the same time.
const MAX_CONCURRENT: usize = 8;
/// Time for which a claimed event belongs to this process: longer than a delivery and its record take.
const LEASE: Duration = Duration::from_secs(60);
/// Interval at which a dispatcher looks for events if nothing wakes it, and its pause after the database failed.
const POLL: Duration = Duration::from_secs(1);
/// Timeout of a statement.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that a receiver has to answer after a stop. Without an answer, another process or the next start sends the
/// event again.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// Timeout of the records of the last answers.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// The word in place of a dataset in the subject and the routing key of the event of a job of several datasets. No
/// dataset has this name.
const SEVERAL_DATASETS: &str = "_datasets";
/// The same of a test event.
const DATASET_OF_TESTS: &str = "_test";

#[derive(Clone, Debug)]
pub struct Event {
    /// The event's id, the same in each attempt.
    pub id: Uuid,
    pub event: EventType,
    /// The job's dataset, or [`SEVERAL_DATASETS`].
    pub dataset: String,
    /// The consumer. `None`: an ad-hoc export.
    pub consumer: Option<String>,
    pub kind: String,
    pub body: String,
    /// The place of the delivery, or of the export, in a trace.
    pub trace: Option<TraceParent>,
}

impl Event {
    /// Returns an event that says nothing, to try a receiver. Its type is `cdc-export.test.v1`.
    pub fn test() -> Event {
        let (id, kind) = (Uuid::now_v7(), "cdc-export.test.v1".to_owned());
        let event = EventType { end: Status::Completed };
        let body = json!({
            "specversion": "1.0",
            "id": id.to_string(),
            "source": "/cdc-export/test",
            "type": kind,
            "subject": DATASET_OF_TESTS,
            "time": rfc3339(Utc::now()),
            "datacontenttype": "application/json",
            "data": {},
        });
        let dataset = DATASET_OF_TESTS.to_owned();
        Event { id, event, dataset, consumer: None, kind, body: body.to_string(), trace: None }
    }
}

#[derive(Clone, Debug)]
pub enum DeliveryResult {
    /// The receiver has accepted the event. The status of its answer, if the protocol has one.
    Delivered(Option<u16>),
    /// The receiver has not accepted the event, or it is not known. The status of its answer, if there is one, and the
    /// reason.
    Failed(Option<u16>, String),
    /// The receiver refuses all further events. The status of its answer.
    Gone(u16),
}

/// Carries events to one receiver.
///
/// A transport sends each event once and returns the receiver's answer. The [`Dispatcher`] decides about further
/// attempts.
pub trait Transport: Send + Sync {
    /// Connects to the receiver, before an event is claimed. So no event loses an attempt while the receiver is
    /// unreachable.
    ///
    /// # Errors
    /// With the reason why events can't be sent now.
    fn open(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Sends an event, and returns the receiver's answer within 30 seconds.
    fn deliver(&self, event: Event) -> BoxFuture<'_, DeliveryResult>;
}

pub async fn run(transports: Vec<(Listener, Box<dyn Transport>)>, store: Store, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    for (listener, transport) in transports {
        let dispatcher = Dispatcher::new(listener, store.clone(), transport);
        tasks.spawn(dispatcher.run(shutdown.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

struct Dispatcher {
    listener: Listener,
    store: Store,
    transport: Box<dyn Transport>,
    throttle: LogThrottle,
}

impl Dispatcher {
    fn new(listener: Listener, store: Store, transport: Box<dyn Transport>) -> Dispatcher {
        metrics::init_deliveries(&listener.name);
        Dispatcher { listener, store, transport, throttle: LogThrottle::default() }
    }

    /// Delivers events until `shutdown`. A panic is logged, and delivery goes on.
    async fn run(self, shutdown: CancellationToken) {
        let dispatcher = Arc::new(self);
        while AssertUnwindSafe(dispatcher.deliver_all(&shutdown)).catch_unwind().await.is_err() {
            tracing::error!(event = "deliveries_panicked", endpoint = dispatcher.listener.name);
            tokio::time::sleep(POLL).await;
        }
    }

    async fn deliver_all(self: &Arc<Self>, shutdown: &CancellationToken) {
        let given_up = CancellationToken::new();
        let mut running = JoinSet::new();
        self.deliver_until(shutdown, &mut running, &given_up).await;
        let recorded = async { while running.join_next().await.is_some() {} };
        let stopped = async {
            shutdown.cancelled().await;
            tokio::time::sleep(STOP_TIMEOUT).await;
        };
        tokio::pin!(recorded);
        tokio::select! {
            () = &mut recorded => return,
            () = stopped => given_up.cancel(),
        }
        let _ = tokio::time::timeout(RECORD_TIMEOUT, recorded).await;
    }

    /// Starts deliveries until `shutdown`. Deliveries that are unfinished then are in `running`, and `given_up` ends
    /// them.
    async fn deliver_until(
        self: &Arc<Self>,
        shutdown: &CancellationToken,
        running: &mut JoinSet<(bool, DeliveryResult)>,
        given_up: &CancellationToken,
    ) {
        let mut endings = self.store.endings();
        let mut database = None;
        // Until the receiver accepts an event, it gets one at a time: the other events wait, and lose no attempt.
        let mut max_concurrent = 1;
        // A receiver that is gone gets only manually requested events. Their answers show whether it is back.
        let mut is_gone = false;
        loop {
            let mut rests = false;
            if running.len() < max_concurrent {
                let Some(open) = shutdown.run_until_cancelled(self.transport.open()).await else { return };
                let free = max_concurrent - running.len();
                let claimed = match open {
                    Ok(()) => self.claim(&mut database, free, is_gone).await.map_err(|error| chain(&error)),
                    Err(why) => Err(why),
                };
                match claimed {
                    Ok((database, claimed)) => {
                        for delivery in claimed {
                            let (dispatcher, database, given_up) =
                                (Arc::clone(self), database.clone(), given_up.clone());
                            running.spawn(async move {
                                (is_gone, dispatcher.deliver(delivery, &database, &given_up).await)
                            });
                        }
                    }
                    Err(why) => {
                        self.warn_throttled(why);
                        rests = true;
                    }
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(done) = running.join_next() => match done {
                    Ok((_, DeliveryResult::Gone(_))) => {
                        tracing::warn!(
                            event = "receiver_gone",
                            endpoint = self.listener.name,
                            "it gets no further events until a delivery is requested again or this process restarts"
                        );
                        (is_gone, max_concurrent) = (true, 1);
                    }
                    // A delivery that started before the receiver was found gone, or back, says nothing new.
                    Ok((was_gone, _)) if was_gone != is_gone => {}
                    Ok((_, DeliveryResult::Delivered(_))) => (is_gone, max_concurrent) = (false, MAX_CONCURRENT),
                    // The receiver is not gone: otherwise its next answer says so.
                    Ok((_, DeliveryResult::Failed(..))) => (is_gone, max_concurrent) = (false, 1),
                    Err(panicked) => self.warn_throttled(chain(&panicked)),
                },
                _ = endings.next(), if !rests && running.len() < max_concurrent => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    async fn claim(
        &self,
        database: &mut Option<DatabaseId>,
        limit: usize,
        only_manual: bool,
    ) -> Result<(DatabaseId, Vec<ClaimedDelivery>), store::Error> {
        let id = match database {
            Some(database) => database.clone(),
            None => database.insert(store::with_timeout(CALL_TIMEOUT, self.store.database()).await?).clone(),
        };
        let claim = self.store.claim_deliveries(&self.listener.name, limit, LEASE, only_manual);
        let claimed = store::with_timeout(CALL_TIMEOUT, claim).await?;
        Ok((id, claimed))
    }

    /// Makes one attempt at a delivery, and records its outcome. `given_up` ends the attempt.
    async fn deliver(
        &self,
        ClaimedDelivery { delivery, job }: ClaimedDelivery,
        database: &DatabaseId,
        given_up: &CancellationToken,
    ) -> DeliveryResult {
        let place = job.first().trace;
        let span = Span::start("deliver", Kind::Producer, place.as_ref());
        span.set("cdc_export.endpoint", self.listener.name.clone());
        span.set("cdc_export.job.id", delivery.job.to_string());
        let number = delivery.attempt + 1;
        span.set("cdc_export.attempt", i64::from(number));
        let event = self.event(&delivery, job, database, span.place().or(place));
        let result = given_up.run_until_cancelled(self.transport.deliver(event)).await;
        let result = result
            .unwrap_or_else(|| DeliveryResult::Failed(None, "the process ended before there was an answer".to_owned()));
        failpoint!("delivery.answered", DeliveryResult::Failed(None, "delivery.answered".to_owned()));
        let (status, outcome) = match &result {
            DeliveryResult::Delivered(status) => (*status, AttemptOutcome::Delivered),
            DeliveryResult::Gone(status) => {
                let why = format!("it answered {status}, and gets no event before one is asked for again");
                (Some(*status), AttemptOutcome::Dead(why))
            }
            DeliveryResult::Failed(status, why) => {
                let outcome = match retry::pause_after(number) {
                    Some(pause) => AttemptOutcome::Retry(pause, why.clone()),
                    None => AttemptOutcome::Dead(why.clone()),
                };
                (*status, outcome)
            }
        };
        let (word, why) = match &outcome {
            AttemptOutcome::Delivered => ("delivered", None),
            AttemptOutcome::Retry(_, why) => ("failed", Some(why.clone())),
            AttemptOutcome::Dead(why) => ("dead", Some(why.clone())),
        };
        if let Some(why) = &why {
            span.fail(why.clone());
        }
        drop(span);
        let attempt = Attempt { status, outcome };
        match store::with_timeout(CALL_TIMEOUT, self.store.record_attempt(&delivery, &attempt)).await {
            Ok(true) => metrics::delivery_tried(&self.listener.name, word),
            // Another process has claimed the delivery since, or a redelivery was requested.
            Ok(false) => {}
            Err(error) => self.warn_throttled(chain(&error)),
        }
        if let Some(error) = why {
            tracing::warn!(
                event = "delivery_failed", endpoint = self.listener.name, deliveryId = %delivery.id,
                jobId = %delivery.job, attempt = number, isDead = word == "dead", error
            );
        }
        result
    }

    fn event(&self, delivery: &Delivery, job: Job, database: &DatabaseId, trace: Option<TraceParent>) -> Event {
        let kind = format!("cdc-export.{}.v1", delivery.event.name());
        let consumer = job.consumer().map(ToString::to_string);
        let dataset = match &job.datasets {
            None => job.first().dataset.clone(),
            Some(_) => SEVERAL_DATASETS.to_owned(),
        };
        let subject = consumer.as_ref().map_or_else(|| dataset.clone(), |consumer| format!("{dataset}/{consumer}"));
        // Retention may have removed the exports that the receiver may see, of a job whose event is delivered again.
        let job = job.within(|dataset| self.listener.may_see(dataset));
        let body = json!({
            "specversion": "1.0",
            "id": delivery.id.to_string(),
            "source": format!("/cdc-export/{database}"),
            "type": kind,
            "subject": subject,
            "time": rfc3339(delivery.created_at),
            "datacontenttype": "application/json",
            "data": job.map(AnyJobJson::from),
        });
        Event { id: delivery.id, event: delivery.event, dataset, consumer, kind, body: body.to_string(), trace }
    }

    fn warn_throttled(&self, error: String) {
        if let Some(times) = self.throttle.should_log(error.clone()) {
            tracing::warn!(event = "deliveries_failed", endpoint = self.listener.name, error, times);
        }
    }
}
