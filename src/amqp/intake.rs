//! Requests for exports out of a queue: one is acknowledged when its job is committed, or when it lies, with the problem, where refused ones
//! go. Until then it is the broker's, which delivers it again; its id keeps it from making a second export.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::amqp::address::Address;
use crate::amqp::connection::{CALL_TIMEOUT, Connector, within};
use crate::amqp::outlet::Outlet;
use crate::amqp::refused;
use crate::amqp::waiting::{AT_ONCE, Waiting};
use crate::broker::{Intake, Message, Outcome};
use crate::duration::{self, Backoff};
use crate::failpoint;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::{chain, metrics};

/// How long it rests after the connection was lost.
const POLL: Duration = Duration::from_secs(1);
/// The longest pause before a request is tried again that can't be met now.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How much shorter or longer a pause may be: many that wait for one place would else come for it at one time, and one of them get it.
const SPREAD: f64 = 0.5;
/// How often a request is tried that the service fails at, before it is laid aside: the next may fare better.
const TRIES: u32 = 5;
/// How long requests have to be done with after a stop. Those that aren't are delivered again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The header of a message that names the consumer, in any case of letters.
const CONSUMER: &str = "x-consumer-id";
/// The header of a message that names its place in a trace.
const TRACE: &str = "traceparent";
/// The argument of a consumer that all queues know but streams.
const PRIORITY: &str = "x-priority";

/// Makes an export of a message.
pub type Submit = Arc<dyn Fn(Arc<Intake>, Message) -> BoxFuture<'static, Outcome> + Send + Sync>;

/// Takes the requests of one queue.
#[derive(Clone)]
pub(super) struct Requests {
    name: Arc<str>,
    intake: Arc<Intake>,
    connector: Arc<Connector>,
    /// Where refused ones go. One at a time opens it.
    refused: Arc<tokio::sync::Mutex<Outlet>>,
    submit: Submit,
    throttle: Arc<LogThrottle>,
}

impl Requests {
    pub(super) fn new(name: String, intake: Intake, address: &Address, submit: Submit) -> Requests {
        metrics::init_amqp_requests(&name);
        let refused = Outlet::new(&intake.dead_letter_exchange, address);
        Requests {
            name: name.into(),
            intake: Arc::new(intake),
            connector: Arc::new(Connector::new(address)),
            refused: Arc::new(tokio::sync::Mutex::new(refused)),
            submit,
            throttle: Arc::default(),
        }
    }

    /// Takes requests until `shutdown`, whatever happens meanwhile.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match AssertUnwindSafe(self.take_all(&shutdown)).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => self.warn_throttled(why),
                Err(_) => tracing::error!(event = "queue_panicked", endpoint = &*self.name),
            }
            let _ = shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await;
        }
    }

    /// Takes requests until `shutdown`.
    ///
    /// # Errors
    /// If the connection is lost, or can't be made.
    async fn take_all(&self, shutdown: &CancellationToken) -> Result<(), String> {
        let Some(opened) = shutdown.run_until_cancelled(self.open()).await else { return Ok(()) };
        let (connection, channel, first) = opened?;
        tracing::info!(event = "queue_opened", endpoint = &*self.name, queue = self.intake.queue);
        let (mut messages, waiting) = (SelectAll::from_iter([first]), Waiting::new(Arc::clone(&self.name)));
        let mut in_hand = JoinSet::new();
        loop {
            let places = messages.len() * usize::from(AT_ONCE);
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.next() => {
                    let message = message.ok_or("the queue is gone")?.map_err(|error| chain(&error))?;
                    let (requests, waiting, shutdown) = (self.clone(), Arc::clone(&waiting), shutdown.clone());
                    in_hand.spawn(async move { requests.take(message, &waiting, &shutdown).await });
                }
                Some(done) = in_hand.join_next() => done.map_err(|panicked| chain(&panicked))??,
                // A consumer's number of messages stays what it was at its begin.
                () = waiting.outgrows(places) => messages.push(self.consume(&channel).await?),
            }
        }
        let ended = async {
            for consumer in &messages {
                let _ = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
            }
            while in_hand.join_next().await.is_some() {}
            let _ = connection.close(200, "it stops".into()).await;
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        Ok(())
    }

    async fn open(&self) -> Result<(Connection, Channel, Consumer), String> {
        // Before a request is refused that has nowhere to go.
        self.refused.lock().await.open().await?;
        let connection = self.connector.connect().await?;
        let channel = within(CALL_TIMEOUT, "a channel", async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(AT_ONCE, BasicQosOptions::default()).await?;
            Ok(channel)
        })
        .await?;
        let messages = self.consume(&channel).await?;
        Ok((connection, channel, messages))
    }

    /// Begins to take messages, [`AT_ONCE`] more than before.
    async fn consume(&self, channel: &Channel) -> Result<Consumer, String> {
        let queue = self.intake.queue.as_str();
        let options = BasicConsumeOptions::default();
        // The priority that it has anyway. A stream knows none, and refuses it: nothing else tells one before it has brought a message.
        let mut arguments = FieldTable::default();
        arguments.insert(PRIORITY.into(), AMQPValue::LongInt(0));
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments);
        within(CALL_TIMEOUT, &format!("the queue {queue}"), consumer).await.map_err(|why| {
            let is_stream = why.contains(PRIORITY);
            if is_stream { format!("it is a stream, which keeps what is acknowledged: {why}") } else { why }
        })
    }

    /// Makes an export of a message, or lays it where refused ones go.
    ///
    /// # Errors
    /// If the connection is lost. The broker delivers the message again.
    async fn take(
        &self,
        mut delivery: Delivery,
        waiting: &Arc<Waiting>,
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        let message = message_of(&mut delivery);
        let (mut backoff, mut waits) = (Backoff::new(Duration::from_secs(1), LONGEST_PAUSE), None);
        for tries in 1.. {
            let Some(turn) = shutdown.run_until_cancelled(waiting.turn()).await else { return Ok(()) };
            let outcome = (self.submit)(Arc::clone(&self.intake), message.clone()).await;
            failpoint!("amqp.submitted", Ok(()));
            drop(turn);
            let why = match outcome {
                Outcome::Accepted => return self.done(&delivery, "accepted").await,
                Outcome::Failed(problem) if tries < TRIES => self.deferred(&problem),
                Outcome::Deferred(problem) => self.deferred(&problem),
                Outcome::Refused(_) if tries == 1 && refused::was_refused(&delivery.properties) => {
                    backoff = Backoff::new(LONGEST_PAUSE, LONGEST_PAUSE);
                    let exchange = &self.intake.dead_letter_exchange;
                    format!(
                        "a refused request came back to its queue, and waits: does the exchange {exchange} lead there?"
                    )
                }
                Outcome::Refused(problem) | Outcome::Failed(problem) => {
                    match self.lay_aside(&delivery, &message, problem).await {
                        Ok(()) => return self.done(&delivery, "refused").await,
                        Err(why) => format!("a refused request is kept in its queue: {why}"),
                    }
                }
            };
            self.warn_throttled(why);
            waits.get_or_insert_with(|| waiting.add(message.body.len()));
            let pause = duration::spread(backoff.next_pause(), SPREAD);
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn deferred(&self, problem: &Value) -> String {
        metrics::amqp_request(&self.name, "deferred");
        format!("a request waits: {problem}")
    }

    /// Publishes a message with the problem to where refused ones go.
    async fn lay_aside(&self, delivery: &Delivery, message: &Message, problem: Value) -> Result<(), String> {
        let problem = refused::shortened(problem);
        let outlet = self.refused.lock().await;
        outlet.open().await?;
        let properties = refused::with_problem(&delivery.properties, &problem, outlet.frame_bytes());
        outlet.publish(delivery.routing_key.as_str(), &message.body, properties).await?;
        // One that goes round is complained of in another way.
        if !refused::was_refused(&delivery.properties) {
            tracing::warn!(event = "request_refused", endpoint = &*self.name, messageId = message.id, problem);
        }
        Ok(())
    }

    async fn done(&self, delivery: &Delivery, outcome: &str) -> Result<(), String> {
        within(CALL_TIMEOUT, "a request can't be acknowledged", delivery.ack(BasicAckOptions::default())).await?;
        metrics::amqp_request(&self.name, outcome);
        Ok(())
    }

    fn warn_throttled(&self, error: String) {
        if let Some(times) = self.throttle.should_log(error.clone()) {
            tracing::warn!(event = "queue_failed", endpoint = &*self.name, queue = self.intake.queue, error, times);
        }
    }
}

/// What a message says. Takes the body, which may be large.
fn message_of(delivery: &mut Delivery) -> Message {
    let body = Bytes::from(std::mem::take(&mut delivery.data));
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let named = |wanted: &'static str| {
        headers.into_iter().flatten().filter(move |(name, _)| name.as_str().eq_ignore_ascii_case(wanted))
    };
    Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
        consumers: named(CONSUMER).map(|(_, value)| text_of(value)).collect(),
        traceparent: named(TRACE).map(|(_, value)| text_of(value)).next(),
        content_type: properties.content_type().as_ref().map(|of| of.as_str().to_owned()),
        body,
    }
}

/// A header's text. What is no text is none that a consumer's id can be.
fn text_of(value: &AMQPValue) -> Vec<u8> {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().to_vec(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes().to_vec(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().to_vec(),
        _ => Vec::new(),
    }
}
