//! Requests for exports out of a queue: one is acknowledged when its job is committed, or when it lies, with the problem, where refused ones
//! go. Until then it is the broker's, which delivers it again; its id keeps it from making a second export.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::amqp::address::Address;
use crate::amqp::connection::{PERSISTENT, Unpublished, channel_to, connect, publish, within};
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
/// How long the broker may take to answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long requests have to be done with after a stop. Those that aren't are delivered again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

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
    address: Address,
    submit: Submit,
    complaints: Arc<Complaints>,
}

impl Requests {
    pub(super) fn new(name: String, intake: Intake, address: Address, submit: Submit) -> Requests {
        metrics::init_amqp_requests(&name);
        Requests { name: name.into(), intake: Arc::new(intake), address, submit, complaints: Arc::default() }
    }

    /// Takes requests until `shutdown`.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            if let Err(why) = self.take_all(&shutdown).await {
                self.complain(why);
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
        let (connection, channel, refused, mut messages) = opened?;
        tracing::info!(event = "queue_opened", endpoint = &*self.name, queue = self.intake.queue);
        let mut in_hand = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.next() => {
                    let message = message.ok_or("the queue is gone")?.map_err(|error| chain(&error))?;
                    let (requests, refused, shutdown) = (self.clone(), refused.clone(), shutdown.clone());
                    in_hand.spawn(async move { requests.take(message, &refused, &shutdown).await });
                }
                Some(done) = in_hand.join_next() => done.map_err(|panicked| chain(&panicked))??,
            }
        }
        let tag = messages.tag();
        let _ = within(STOP_TIMEOUT, "cancel", channel.basic_cancel(tag, BasicCancelOptions::default())).await;
        let _ = tokio::time::timeout(STOP_TIMEOUT, in_hand.join_all()).await;
        let _ = within(STOP_TIMEOUT, "close", connection.close(200, "it stops".into())).await;
        Ok(())
    }

    async fn open(&self) -> Result<(Connection, Channel, Channel, lapin::Consumer), String> {
        let connection = connect(&self.address).await?;
        let refused = channel_to(&connection, &self.intake.dead_letter_exchange).await?;
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
        Ok((connection, channel, refused, messages))
    }

    /// Makes an export of a message, or lays it where refused ones go.
    ///
    /// # Errors
    /// If the connection is lost. The broker delivers the message again.
    async fn take(&self, delivery: Delivery, refused: &Channel, shutdown: &CancellationToken) -> Result<(), String> {
        let message = message_of(&delivery);
        let mut pause = PAUSES.0;
        loop {
            let outcome = (self.submit)(Arc::clone(&self.intake), message.clone()).await;
            failpoint!("amqp.submitted", Ok(()));
            let why = match &outcome {
                Outcome::Accepted => return self.done(&delivery, "accepted").await,
                Outcome::Refused(problem) => match self.lay_aside(&delivery, refused, problem).await {
                    Ok(()) => return self.done(&delivery, "refused").await,
                    Err(Unpublished::Refused(why)) => format!("a refused request is kept in its queue: {why}"),
                    Err(Unpublished::Unknown(why)) => return Err(why),
                },
                Outcome::Deferred(problem) => {
                    metrics::amqp_request(&self.name, "deferred");
                    format!("a request waits: {problem}")
                }
            };
            self.complain(why);
            if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return Ok(());
            }
            pause = (2 * pause).min(PAUSES.1);
        }
    }

    /// Publishes a message with the problem to where refused ones go.
    async fn lay_aside(&self, delivery: &Delivery, refused: &Channel, problem: &Value) -> Result<(), Unpublished> {
        let exchange = &self.intake.dead_letter_exchange;
        let properties = with_problem(&delivery.properties, problem);
        publish(refused, exchange, delivery.routing_key.as_str(), &delivery.data, properties).await?;
        let message = delivery.properties.message_id().as_ref().map(|id| id.as_str());
        tracing::warn!(event = "request_refused", endpoint = &*self.name, message, %problem);
        Ok(())
    }

    async fn done(&self, delivery: &Delivery, outcome: &str) -> Result<(), String> {
        metrics::amqp_request(&self.name, outcome);
        within(CALL_TIMEOUT, "a request can't be acknowledged", delivery.ack(BasicAckOptions::default())).await?;
        Ok(())
    }

    fn complain(&self, error: String) {
        if let Some(times) = self.complaints.due(error.clone()) {
            tracing::warn!(event = "queue_failed", endpoint = &*self.name, queue = self.intake.queue, error, times);
        }
    }
}

/// What a message says.
fn message_of(delivery: &Delivery) -> Message {
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let consumers = headers.into_iter().flatten().filter(|(name, _)| name.as_str().eq_ignore_ascii_case(CONSUMER));
    Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
        consumers: consumers.map(|(_, value)| text_of(value)).collect(),
        content_type: properties.content_type().as_ref().map(|of| of.as_str().to_owned()),
        body: delivery.data.clone(),
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

/// A message's properties, with the problem among its headers.
fn with_problem(of: &BasicProperties, problem: &Value) -> BasicProperties {
    let mut headers = FieldTable::default();
    for (name, value) in of.headers().iter().flat_map(FieldTable::inner) {
        // As a broker does that dead-letters a message.
        if !COPIES.contains(&name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    headers.insert(PROBLEM.into(), AMQPValue::LongString(problem.to_string().into()));
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
