//! Consumes requests for exports from a queue.
//!
//! A request is acknowledged when its job is committed, or when it is published to the dead letter exchange with the
//! problem. Until then the broker may deliver it again. Its message id is the job's idempotency key, so no second
//! export is made.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Consumer};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::broker::{Intake, Message, Outcome};
use crate::duration::{self, Backoff};
use crate::failpoint;
use crate::receiver::Submit;
use crate::receiver::amqp::address::BrokerAddress;
use crate::receiver::amqp::backlog::{MAX_CONCURRENT, RequestBacklog};
use crate::receiver::amqp::connection::{BrokerConnection, CALL_TIMEOUT, within};
use crate::receiver::amqp::exchange::ExchangePublisher;
use crate::receiver::amqp::message_limits::MessageLimits;
use crate::receiver::amqp::refused;
use crate::telemetry::log_throttle::LogThrottle;
use crate::telemetry::{chain, metrics};

/// Pause after the connection was lost.
const POLL: Duration = Duration::from_secs(1);
/// Longest pause before another attempt at a deferred request.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Largest fraction by which a pause is shortened or lengthened. Without it, all requests that wait for one place would
/// retry at once.
const SPREAD: f64 = 0.5;
/// Maximum number of attempts at a request that the service fails at. The request is refused then, since later ones may
/// succeed.
const MAX_ATTEMPTS: u32 = 5;
/// Time that running requests have after a stop. The broker delivers unfinished ones again.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum size of a message's body in bytes: RabbitMQ's largest default of `max_message_size`. The connection ends at
/// a larger message, which is not laid aside.
const MAX_BODY: usize = 128 << 20;

/// Header that names the consumer, in upper or lower case.
const CONSUMER: &str = "x-consumer-id";
/// Header with the message's place in a trace.
const TRACE: &str = "traceparent";
/// Argument of a consumer that every queue accepts and a stream refuses.
const PRIORITY: &str = "x-priority";

/// Consumes the requests of one queue.
#[derive(Clone)]
pub(super) struct RequestConsumer {
    name: Arc<str>,
    intake: Arc<Intake>,
    address: BrokerAddress,
    /// The dead letter exchange. The lock lets one task at a time open its connection.
    refused: Arc<tokio::sync::Mutex<ExchangePublisher>>,
    submit: Submit,
    throttle: Arc<LogThrottle>,
}

impl RequestConsumer {
    pub(super) fn new(name: &str, intake: Arc<Intake>, address: &BrokerAddress, submit: Submit) -> RequestConsumer {
        metrics::init_amqp_requests(name);
        let refused = ExchangePublisher::new(&intake.dead_letter_exchange, address);
        RequestConsumer {
            name: name.into(),
            intake,
            address: address.clone(),
            refused: Arc::new(tokio::sync::Mutex::new(refused)),
            submit,
            throttle: Arc::default(),
        }
    }

    /// Consumes requests until `shutdown`. It reconnects after an error, and continues after a panic.
    pub(super) async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            match AssertUnwindSafe(self.consume_until(&shutdown)).catch_unwind().await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => self.warn_throttled(why),
                Err(_) => tracing::error!(event = "queue_panicked", endpoint = &*self.name),
            }
            let _ = shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await;
        }
    }

    /// Consumes requests over one connection until `shutdown`.
    ///
    /// # Errors
    /// If the connection is lost, or can't be made.
    async fn consume_until(&self, shutdown: &CancellationToken) -> Result<(), String> {
        let Some(opened) = shutdown.run_until_cancelled(self.open()).await else { return Ok(()) };
        let (connection, channel, first) = opened?;
        tracing::info!(event = "queue_opened", endpoint = &*self.name, queue = self.intake.queue);
        let (mut messages, backlog) = (SelectAll::from_iter([first]), RequestBacklog::new(Arc::clone(&self.name)));
        let mut running = JoinSet::new();
        loop {
            let prefetch = messages.len() * usize::from(MAX_CONCURRENT);
            tokio::select! {
                () = shutdown.cancelled() => break,
                message = messages.next() => {
                    let message = message.ok_or("the queue is gone")?.map_err(|error| chain(&error))?;
                    let (requests, backlog, shutdown) = (self.clone(), Arc::clone(&backlog), shutdown.clone());
                    let limits = Arc::clone(&connection.limits);
                    running.spawn(async move { requests.take(message, &backlog, &limits, &shutdown).await });
                }
                Some(done) = running.join_next() => done.map_err(|panicked| chain(&panicked))??,
                // The prefetch of a consumer can't be changed, so another consumer is added.
                () = backlog.exceeds_prefetch(prefetch) => messages.push(self.consume(&channel, &connection.limits).await?),
            }
        }
        let ended = async {
            for consumer in &messages {
                let _ = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default()).await;
            }
            while running.join_next().await.is_some() {}
            let _ = connection.lapin.close(200, "it stops".into()).await;
        };
        let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        Ok(())
    }

    async fn open(&self) -> Result<(BrokerConnection, Channel, Consumer), String> {
        // Checked first: without the dead letter exchange, a refused request would have nowhere to go.
        self.refused.lock().await.open().await?;
        let connection = BrokerConnection::open(&self.address).await?;
        let channel = within(CALL_TIMEOUT, "a channel", async {
            let channel = connection.lapin.create_channel().await?;
            channel.basic_qos(MAX_CONCURRENT, BasicQosOptions::default()).await?;
            Ok(channel)
        })
        .await?;
        connection.limits.permit_body(MAX_BODY);
        let messages = self.consume(&channel, &connection.limits).await?;
        Ok((connection, channel, messages))
    }

    /// Adds a consumer, which raises the prefetch by [`MAX_CONCURRENT`].
    async fn consume(&self, channel: &Channel, limits: &MessageLimits) -> Result<Consumer, String> {
        limits.permit(MAX_CONCURRENT.into());
        let queue = self.intake.queue.as_str();
        let options = BasicConsumeOptions::default();
        // 0 is the default priority. A stream refuses the argument, which is the only way to recognize a stream before
        // its first message.
        let mut arguments = FieldTable::default();
        arguments.insert(PRIORITY.into(), AMQPValue::LongInt(0));
        let consumer = channel.basic_consume(queue.into(), "".into(), options, arguments);
        within(CALL_TIMEOUT, &format!("the queue {queue}"), consumer).await.map_err(|why| {
            let is_stream = why.contains(PRIORITY);
            if is_stream { format!("it is a stream, which keeps what is acknowledged: {why}") } else { why }
        })
    }

    /// Submits a request, or publishes it to the dead letter exchange.
    ///
    /// # Errors
    /// If the connection is lost. The broker delivers the message again.
    async fn take(
        &self,
        mut delivery: Delivery,
        backlog: &Arc<RequestBacklog>,
        limits: &MessageLimits,
        shutdown: &CancellationToken,
    ) -> Result<(), String> {
        let message = take_message(&mut delivery);
        let (mut backoff, mut entry) = (Backoff::new(Duration::from_secs(1), LONGEST_PAUSE), None);
        for attempt in 1.. {
            let Some(permit) = shutdown.run_until_cancelled(backlog.permit()).await else { return Ok(()) };
            let outcome = (self.submit)(Arc::clone(&self.intake), message.clone()).await;
            failpoint!("amqp.submitted", Ok(()));
            drop(permit);
            let why = match outcome {
                Outcome::Accepted => return self.acknowledge(&delivery, limits, "accepted").await,
                Outcome::Failed(problem) if attempt < MAX_ATTEMPTS => self.deferred(&problem),
                Outcome::Deferred(problem) => self.deferred(&problem),
                Outcome::Refused(_) if attempt == 1 && refused::was_refused(&delivery.properties) => {
                    backoff = Backoff::new(LONGEST_PAUSE, LONGEST_PAUSE);
                    let exchange = &self.intake.dead_letter_exchange;
                    format!(
                        "a refused request came back to its queue, and waits: does the exchange {exchange} lead there?"
                    )
                }
                Outcome::Refused(problem) | Outcome::Failed(problem) => {
                    match self.dead_letter(&delivery, &message, problem).await {
                        Ok(()) => return self.acknowledge(&delivery, limits, "refused").await,
                        Err(why) => format!("a refused request is kept in its queue: {why}"),
                    }
                }
            };
            self.warn_throttled(why);
            entry.get_or_insert_with(|| backlog.add(message.body.len()));
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

    /// Publishes a refused message to the dead letter exchange, with the problem.
    async fn dead_letter(&self, delivery: &Delivery, message: &Message, problem: Value) -> Result<(), String> {
        let problem = refused::shortened(problem);
        let publisher = self.refused.lock().await;
        publisher.open().await?;
        let properties = refused::with_problem(&delivery.properties, &problem, publisher.frame_bytes());
        publisher.publish(delivery.routing_key.as_str(), &message.body, properties).await?;
        // A message that came back to its queue is logged by `take`.
        if !refused::was_refused(&delivery.properties) {
            tracing::warn!(event = "request_refused", endpoint = &*self.name, messageId = message.id, problem);
        }
        Ok(())
    }

    async fn acknowledge(&self, delivery: &Delivery, limits: &MessageLimits, outcome: &str) -> Result<(), String> {
        // The broker may deliver another message as soon as it has the acknowledgement.
        limits.permit(1);
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

/// Converts a delivery to a message. The body is moved, since it may be large.
fn take_message(delivery: &mut Delivery) -> Message {
    let body = Bytes::from(std::mem::take(&mut delivery.data));
    let properties = &delivery.properties;
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let named = |wanted: &'static str| {
        headers.into_iter().flatten().filter(move |(name, _)| name.as_str().eq_ignore_ascii_case(wanted))
    };
    Message {
        id: properties.message_id().as_ref().map(|id| id.as_str().to_owned()),
        consumers: named(CONSUMER).map(|(_, value)| bytes_of(value)).collect(),
        traceparent: named(TRACE).map(|(_, value)| bytes_of(value)).next(),
        content_type: properties.content_type().as_ref().map(|of| of.as_str().to_owned()),
        body,
    }
}

/// Returns the bytes of a header's value. A value that is no text becomes empty, which is no consumer's id.
fn bytes_of(value: &AMQPValue) -> Vec<u8> {
    match value {
        AMQPValue::LongString(text) => text.as_bytes().to_vec(),
        AMQPValue::ShortString(text) => text.as_str().as_bytes().to_vec(),
        AMQPValue::ByteArray(bytes) => bytes.as_slice().to_vec(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::job::Bounds;
    use crate::receiver::amqp::test_broker::{Call, TestBroker, content, method, text};

    /// Returns the frames of this number of deliveries.
    fn deliveries(call: &Call, number: usize) -> Vec<u8> {
        let arguments = [&text(b"tag")[..], &[0, 0, 0, 0, 0, 0, 0, 1, 0], &text(b""), &text(b"key")].concat();
        [method(call.channel, 60, 60, &arguments), content(call.channel, b"{}")].concat().repeat(number)
    }

    fn consumer(broker: &TestBroker, submit: Submit) -> RequestConsumer {
        let bounds = Bounds { consumers: None, datasets: None };
        let (queue, dead_letter_exchange) = ("queue".to_owned(), "refused".to_owned());
        let intake = Intake { name: "rabbit".to_owned(), queue, dead_letter_exchange, bounds };
        RequestConsumer::new("rabbit", Arc::new(intake), &broker.address, submit)
    }

    #[tokio::test]
    async fn a_broker_that_exceeds_the_prefetch_loses_its_connection() {
        let mut broker = TestBroker::start(|call| match call.method {
            (60, 20) => [call.answer(), deliveries(call, usize::from(MAX_CONCURRENT) + 1)].concat(),
            _ => call.answer(),
        })
        .await;
        let requests = consumer(&broker, Arc::new(|_, _| std::future::pending().boxed()));
        let running = tokio::spawn(requests.run(CancellationToken::new()));
        broker.is_left().await;
        running.abort();
    }

    #[tokio::test]
    async fn each_acknowledgement_permits_another_message() {
        let mut broker = TestBroker::start(|call| match call.method {
            (60, 20) => [call.answer(), deliveries(call, MAX_CONCURRENT.into())].concat(),
            (60, 80) => deliveries(call, 1),
            _ => call.answer(),
        })
        .await;
        let (submits, mut submitted) = mpsc::channel(200);
        let submit = move |_, _| {
            let _ = submits.try_send(());
            std::future::ready(Outcome::Accepted).boxed()
        };
        let running = tokio::spawn(consumer(&broker, Arc::new(submit)).run(CancellationToken::new()));
        tokio::select! {
            () = broker.is_left() => panic!("the connection was lost"),
            () = async { for _ in 0..100 { submitted.recv().await.unwrap(); } } => {}
        }
        running.abort();
    }
}
