//! Tells receivers how exports ended: an event is told until its receiver takes it, or for 42 hours.
//!
//! At least once, and in no order: who dies between a receiver's answer and its record leaves the event to be told again, under the same
//! id. Each receiver has a task of its own, so that one that is slow holds nobody else up. What is to be told, and how far that has come, is in
//! `store::deliveries`. Every process that runs exports tells; which of them, the database decides. How an event gets to a receiver is its
//! [`Way`]: `webhook` has one, and `amqp`.

mod retry;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::DatabaseId;
use crate::event;
use crate::failpoint;
use crate::job::{Job, Status};
use crate::store::deliveries::{Taken, Try, TryOutcome};
use crate::store::{self, Store};
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::spans::{Kind, Span};
use crate::telemetry::{chain, metrics};
use crate::trace::TraceParent;

/// How many events a process tells a receiver at a time.
const AT_ONCE: usize = 8;
/// The time for which an event is this process's: longer than a way and a record take.
const LEASE: Duration = Duration::from_secs(60);
/// The time after which a receiver's task looks by itself if nobody wakes it, and for which it rests after the database failed.
const POLL: Duration = Duration::from_secs(1);
/// The longest time that a statement may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a receiver has to answer after a stop. One that hasn't is told again by another process, or at the next start.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest time that the records of the last answers may take.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// An event as a receiver gets it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its id: the same at each try.
    pub id: Uuid,
    /// The export's final status.
    pub end: Status,
    /// The export's dataset.
    pub dataset: String,
    /// The export's consumer; `None`: an ad-hoc one.
    pub consumer: Option<String>,
    /// Its type, as a CloudEvent has it.
    pub kind: String,
    /// The CloudEvent, as JSON.
    pub body: String,
    /// The place of the delivery, or of the export, in a trace.
    pub trace: Option<TraceParent>,
}

/// The answer of a receiver to an event.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It has it. The answer's status, where the way has one.
    Taken(Option<u16>),
    /// It has not, or nobody knows. The answer's status, if there was an answer with one, and what was wrong.
    Failed(Option<u16>, String),
    /// It wants no event any more. The answer's status.
    Gone(u16),
}

/// The way of events to one receiver.
pub trait Way: Send + Sync + 'static {
    /// Makes the way passable, so that no event loses a try where no event could get through.
    ///
    /// # Errors
    /// The reason why it isn't passable now.
    fn open(&self) -> impl Future<Output = Result<(), String>> + Send {
        async { Ok(()) }
    }

    /// Tells the receiver of an event, within half of a minute.
    fn tell(&self, event: Event) -> impl Future<Output = Answer> + Send;
}

/// Tells one receiver.
pub struct Teller<W> {
    name: String,
    store: Store,
    way: W,
    shown: fn(Job) -> Value,
    throttle: LogThrottle,
}

impl<W: Way> Teller<W> {
    /// Tells the receiver of this name, by `way`, what `store` has for it. `shown` is an export as the API shows it.
    pub fn new(name: &str, store: Store, way: W, shown: fn(Job) -> Value) -> Teller<W> {
        metrics::init_deliveries(name);
        Teller { name: name.to_owned(), store, way, shown, throttle: LogThrottle::default() }
    }

    /// Tells until `shutdown`, also after a defect.
    pub async fn run(self, shutdown: CancellationToken) {
        let teller = Arc::new(self);
        while AssertUnwindSafe(teller.tell_all(&shutdown)).catch_unwind().await.is_err() {
            tracing::error!(event = "deliveries_panicked", endpoint = teller.name);
            tokio::time::sleep(POLL).await;
        }
    }

    async fn tell_all(self: &Arc<Self>, shutdown: &CancellationToken) {
        let given_up = CancellationToken::new();
        let mut told = JoinSet::new();
        self.tell_until(shutdown, &mut told, &given_up).await;
        let recorded = async { while told.join_next().await.is_some() {} };
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

    /// Tells until `shutdown`. What is under way then is in `told`, and `given_up` ends it.
    async fn tell_until(
        self: &Arc<Self>,
        shutdown: &CancellationToken,
        told: &mut JoinSet<(bool, Answer)>,
        given_up: &CancellationToken,
    ) {
        let mut endings = self.store.endings();
        let mut database = None;
        // As long as it doesn't take events, it is asked by one: the others wait, and lose no try.
        let mut at_once = 1;
        // Then only what somebody asks for again gets to it, and tells whether it is there again.
        let mut gone = false;
        loop {
            let mut rests = false;
            if told.len() < at_once {
                let Some(open) = shutdown.run_until_cancelled(self.way.open()).await else { return };
                let taken = match open {
                    Ok(()) => self.take(&mut database, at_once - told.len(), gone).await.map_err(|error| chain(&error)),
                    Err(why) => Err(why),
                };
                match taken {
                    Ok((database, taken)) => {
                        for taken in taken {
                            let (teller, database, given_up) = (Arc::clone(self), database.clone(), given_up.clone());
                            told.spawn(async move { (gone, teller.tell(taken, &database, &given_up).await) });
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
                Some(done) = told.join_next() => match done {
                    Ok((_, Answer::Gone(_))) => {
                        tracing::warn!(event = "receiver_gone", endpoint = self.name, "it gets no event before one is asked for again, or this process starts again");
                        (gone, at_once) = (true, 1);
                    }
                    // What was under way when another one heard that it is gone says nothing new.
                    Ok((asked, _)) if asked != gone => {}
                    Ok((_, Answer::Taken(_))) => (gone, at_once) = (false, AT_ONCE),
                    // It is not gone, or says so to the next one.
                    Ok((_, Answer::Failed(..))) => (gone, at_once) = (false, 1),
                    Err(panicked) => self.warn_throttled(chain(&panicked)),
                },
                _ = endings.next(), if !rests && told.len() < at_once => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    async fn take(
        &self,
        database: &mut Option<DatabaseId>,
        most: usize,
        asked_for: bool,
    ) -> Result<(DatabaseId, Vec<Taken>), store::Error> {
        let of = match database {
            Some(database) => database.clone(),
            None => database.insert(store::with_timeout(CALL_TIMEOUT, self.store.database()).await?).clone(),
        };
        let taken = self.store.take_deliveries(&self.name, most, LEASE, asked_for);
        let taken = store::with_timeout(CALL_TIMEOUT, taken).await?;
        Ok((of, taken))
    }

    /// Tells of an event, and records what became of it: at the latest when it is given up.
    async fn tell(
        &self,
        Taken { delivery, job }: Taken,
        database: &DatabaseId,
        given_up: &CancellationToken,
    ) -> Answer {
        let kind = format!("cdc-export.{}.v1", event::event_name(delivery.event));
        let (dataset, consumer) = (job.dataset.clone(), job.consumer.as_ref().map(ToString::to_string));
        let place = job.trace;
        let span = Span::start("deliver", Kind::Producer, place.as_ref());
        span.set("cdc_export.endpoint", self.name.clone());
        span.set("cdc_export.job.id", job.id.to_string());
        let attempt = delivery.attempt + 1;
        span.set("cdc_export.attempt", i64::from(attempt));
        let body = json!({
            "specversion": "1.0",
            "id": delivery.id.to_string(),
            "source": format!("/cdc-export/{database}"),
            "type": kind,
            "subject": subject(&job),
            "time": delivery.created_at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
            "datacontenttype": "application/json",
            "data": (self.shown)(job),
        });
        let body = body.to_string();
        let trace = span.place().or(place);
        let event = Event { id: delivery.id, end: delivery.event, dataset, consumer, kind, body, trace };
        let answer = given_up.run_until_cancelled(self.way.tell(event)).await;
        let answer =
            answer.unwrap_or_else(|| Answer::Failed(None, "the process ended before there was an answer".into()));
        failpoint!("delivery.answered", Answer::Failed(None, "delivery.answered".to_owned()));
        let (status, outcome) = match &answer {
            Answer::Taken(status) => (*status, TryOutcome::Delivered),
            Answer::Gone(status) => {
                let why = format!("it answered {status}, and gets no event before one is asked for again");
                (Some(*status), TryOutcome::Dead(why))
            }
            Answer::Failed(status, why) => {
                let outcome = match retry::after(attempt) {
                    Some(pause) => TryOutcome::Again(pause, why.clone()),
                    None => TryOutcome::Dead(why.clone()),
                };
                (*status, outcome)
            }
        };
        let (word, why) = match &outcome {
            TryOutcome::Delivered => ("delivered", None),
            TryOutcome::Again(_, why) => ("failed", Some(why)),
            TryOutcome::Dead(why) => ("dead", Some(why)),
        };
        let why = why.cloned();
        if let Some(why) = &why {
            span.fail(why.clone());
        }
        drop(span);
        let tried = Try { status, outcome };
        match store::with_timeout(CALL_TIMEOUT, self.store.tried(&delivery, &tried)).await {
            Ok(true) => metrics::delivery_tried(&self.name, word),
            // Somebody else has it by now, or it was asked for again.
            Ok(false) => {}
            Err(error) => self.warn_throttled(chain(&error)),
        }
        if let Some(error) = why {
            tracing::warn!(
                event = "delivery_failed", endpoint = self.name, deliveryId = %delivery.id, jobId = %delivery.job,
                attempt, isDead = word == "dead", error
            );
        }
        answer
    }

    fn warn_throttled(&self, error: String) {
        if let Some(times) = self.throttle.should_log(error.clone()) {
            tracing::warn!(event = "deliveries_failed", endpoint = self.name, error, times);
        }
    }
}

/// The subject of an event: the dataset, and the consumer if there is one.
fn subject(job: &Job) -> String {
    match &job.consumer {
        Some(consumer) => format!("{}/{consumer}", job.dataset),
        None => job.dataset.clone(),
    }
}
