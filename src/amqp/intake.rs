//! Requests for exports out of a queue: one is acknowledged when its job is committed, or when it lies, with the problem, where refused ones
//! go. Until then it is the broker's, which delivers it again; its id keeps it from making a second export.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::amqp::PERSISTENT;
use crate::amqp::address::Address;
use crate::amqp::connection::{CALL_TIMEOUT, Connector, within};
use crate::amqp::outlet::Outlet;
use crate::broker::{Intake, Message, Outcome};
use crate::failpoint;
use crate::telemetry::complaints::Complaints;
use crate::telemetry::{chain, metrics};

/// How many requests a process has in its hands at a time.
const AT_ONCE: u16 = 8;
/// How long it rests after the connection was lost.
const POLL: Duration = Duration::from_secs(1);
/// The first pause before a request is tried again that can't be met now, and the longest: each is twice as long as the one before.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often a request is tried that the service fails at, before it is laid aside: the next may fare better.
const TRIES: u32 = 5;
/// How long requests have to be done with after a stop. Those that aren't are delivered again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// The most bytes of a problem in a header, and about the most of the other headers beside it: all of them have to go into one frame, which
/// has 128 KiB where nobody has set it.
const HEADER_BYTES: (usize, usize) = (8 << 10, 64 << 10);

/// The header of a message that names the consumer, in any case of letters.
const CONSUMER: &str = "x-consumer-id";
/// The header of a refused message that says why.
const PROBLEM: &str = "cdc-export-problem";
/// Headers by which a broker sends a message to further queues.
const COPIES: [&str; 2] = ["CC", "BCC"];

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
    complaints: Arc<Complaints>,
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
            complaints: Arc::default(),
        }
    }

    /// Takes requests until `shutdown`, whatever happens meanwhile.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match AssertUnwindSafe(self.take_all(&shutdown)).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => self.complain(why),
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
        let (connection, channel, mut messages) = opened?;
        tracing::info!(event = "queue_opened", endpoint = &*self.name, queue = self.intake.queue);
        let mut in_hand = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.next() => {
                    let message = message.ok_or("the queue is gone")?.map_err(|error| chain(&error))?;
                    let (requests, shutdown) = (self.clone(), shutdown.clone());
                    in_hand.spawn(async move { requests.take(message, &shutdown).await });
                }
                Some(done) = in_hand.join_next() => done.map_err(|panicked| chain(&panicked))??,
            }
        }
        let ended = async {
            let _ = channel.basic_cancel(messages.tag(), BasicCancelOptions::default()).await;
            while in_hand.join_next().await.is_some() {}
            let _ = connection.close(200, "it stops".into()).await;
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        Ok(())
    }

    async fn open(&self) -> Result<(Connection, Channel, lapin::Consumer), String> {
        // Before a request is refused that has nowhere to go.
        self.refused.lock().await.open().await?;
        let connection = self.connector.connect().await?;
        let queue = &self.intake.queue;
        let (channel, messages) = within(CALL_TIMEOUT, &format!("the queue {queue}"), async {
            let channel = connection.create_channel().await?;
            channel.basic_qos(AT_ONCE, BasicQosOptions::default()).await?;
            let options = BasicConsumeOptions::default();
            let messages =
                channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
            Ok((channel, messages))
        })
        .await?;
        Ok((connection, channel, messages))
    }

    /// Makes an export of a message, or lays it where refused ones go.
    ///
    /// # Errors
    /// If the connection is lost. The broker delivers the message again.
    async fn take(&self, mut delivery: Delivery, shutdown: &CancellationToken) -> Result<(), String> {
        let message = message_of(&mut delivery);
        let mut pause = PAUSES.0;
        for tries in 1.. {
            let outcome = (self.submit)(Arc::clone(&self.intake), message.clone()).await;
            failpoint!("amqp.submitted", Ok(()));
            let why = match outcome {
                Outcome::Accepted => return self.done(&delivery, "accepted").await,
                Outcome::Failed(problem) if tries < TRIES => self.deferred(&problem),
                Outcome::Deferred(problem) => self.deferred(&problem),
                Outcome::Refused(problem) | Outcome::Failed(problem) => {
                    match self.lay_aside(&delivery, &message, problem).await {
                        Ok(()) => return self.done(&delivery, "refused").await,
                        Err(why) => format!("a refused request is kept in its queue: {why}"),
                    }
                }
            };
            self.complain(why);
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (2 * pause).min(PAUSES.1);
        }
        Ok(())
    }

    fn deferred(&self, problem: &Value) -> String {
        metrics::amqp_request(&self.name, "deferred");
        format!("a request waits: {problem}")
    }

    /// Publishes a message with the problem to where refused ones go.
    async fn lay_aside(&self, delivery: &Delivery, message: &Message, problem: Value) -> Result<(), String> {
        let problem = shortened(problem);
        let properties = with_problem(&delivery.properties, &problem);
        let refused = self.refused.lock().await;
        refused.open().await?;
        refused.publish(delivery.routing_key.as_str(), &message.body, properties).await?;
        tracing::warn!(event = "request_refused", endpoint = &*self.name, messageId = message.id, problem);
        Ok(())
    }

    async fn done(&self, delivery: &Delivery, outcome: &str) -> Result<(), String> {
        within(CALL_TIMEOUT, "a request can't be acknowledged", delivery.ack(BasicAckOptions::default())).await?;
        metrics::amqp_request(&self.name, outcome);
        Ok(())
    }

    fn complain(&self, error: String) {
        if let Some(times) = self.complaints.due(error.clone()) {
            tracing::warn!(event = "queue_failed", endpoint = &*self.name, queue = self.intake.queue, error, times);
        }
    }
}

/// What a message says. Takes the body, which may be large.
fn message_of(delivery: &mut Delivery) -> Message {
    let body = Bytes::from(std::mem::take(&mut delivery.data));
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let consumers = headers.into_iter().flatten().filter(|(name, _)| name.as_str().eq_ignore_ascii_case(CONSUMER));
    Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
        consumers: consumers.map(|(_, value)| text_of(value)).collect(),
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

/// A problem as a header has it: without the jobs of `out_of_step`, which may be many, and without the end of what is too long.
fn shortened(mut problem: Value) -> String {
    if let Some(members) = problem.as_object_mut() {
        members.remove("jobs");
    }
    let text = problem.to_string();
    if text.len() <= HEADER_BYTES.0 {
        return text;
    }
    let detail = problem["detail"].as_str().unwrap_or_default();
    let detail: String = detail.chars().take(1_000).collect();
    let members = ["type", "title", "status", "code"].map(|name| (name.to_owned(), problem[name].clone()));
    let members = members.into_iter().chain([("detail".to_owned(), json!(detail))]);
    Value::Object(members.collect()).to_string()
}

/// A message's properties, with the problem among its headers.
fn with_problem(of: &BasicProperties, problem: &str) -> BasicProperties {
    let mut headers = FieldTable::default();
    // About their size, or more.
    if format!("{:?}", of.headers()).len() <= HEADER_BYTES.1 {
        for (name, value) in of.headers().iter().flat_map(FieldTable::inner) {
            // As a broker does that dead-letters a message.
            if !COPIES.contains(&name.as_str()) {
                headers.insert(name.clone(), value.clone());
            }
        }
    }
    headers.insert(PROBLEM.into(), AMQPValue::LongString(problem.into()));
    // Without what would take it from the queue of refused ones in time, and without the name of who published it, which a broker holds
    // against who publishes now.
    let mut properties = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    if let Some(value) = of.content_type() {
        properties = properties.with_content_type(value.clone());
    }
    if let Some(value) = of.content_encoding() {
        properties = properties.with_content_encoding(value.clone());
    }
    if let Some(value) = of.message_id() {
        properties = properties.with_message_id(value.clone());
    }
    if let Some(value) = of.correlation_id() {
        properties = properties.with_correlation_id(value.clone());
    }
    if let Some(value) = of.reply_to() {
        properties = properties.with_reply_to(value.clone());
    }
    if let Some(value) = of.app_id() {
        properties = properties.with_app_id(value.clone());
    }
    if let Some(value) = of.kind() {
        properties = properties.with_type(value.clone());
    }
    if let Some(value) = of.timestamp() {
        properties = properties.with_timestamp(*value);
    }
    properties
}
