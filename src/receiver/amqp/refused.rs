//! Properties of a refused request for the dead letter exchange: the problem is added, harmful properties are left out.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::receiver::amqp::PERSISTENT;

/// Header of a refused message with the problem.
const PROBLEM: &str = "cdc-export-problem";
/// Headers that make a broker copy a message to further queues.
const COPIES: [&str; 2] = ["CC", "BCC"];
/// Maximum size of a problem in a header, in bytes.
const PROBLEM_BYTES: usize = 8 << 10;
/// Maximum size of a frame without the headers, in bytes: its own fields, and seven other properties of 255 bytes each.
const OTHER_BYTES: usize = 2 << 10;

/// Returns true if a message was refused before.
pub(super) fn was_refused(properties: &BasicProperties) -> bool {
    properties.headers().as_ref().is_some_and(|headers| headers.contains_key(PROBLEM))
}

/// Formats a problem for a header: without the jobs of `out_of_step`, which may be many, and with a long detail cut
/// off.
pub(super) fn shortened(mut problem: Value) -> String {
    if let Some(members) = problem.as_object_mut() {
        members.remove("jobs");
    }
    let text = problem.to_string();
    if text.len() <= PROBLEM_BYTES {
        return text;
    }
    let detail = problem["detail"].as_str().unwrap_or_default();
    let detail: String = detail.chars().take(1_000).collect();
    let members = ["type", "title", "status", "code"].map(|name| (name.to_owned(), problem[name].clone()));
    let members = members.into_iter().chain([("detail".to_owned(), json!(detail))]);
    Value::Object(members.collect()).to_string()
}

/// Returns a message's properties with the problem among the headers. They fit into one frame of `frame_bytes`.
pub(super) fn with_problem(of: &BasicProperties, problem: &str, frame_bytes: usize) -> BasicProperties {
    let headers = headers_with_problem(of, problem, frame_bytes.saturating_sub(OTHER_BYTES));
    // Left out: `expiration`, which would remove the message from its queue, and `user_id`, which the broker compares
    // with the publishing user.
    let mut properties = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    if let Some(value) = of.content_type() {
        properties = properties.with_content_type(value.clone());
    }
    if let Some(value) = of.content_encoding() {
        properties = properties.with_content_encoding(value.clone());
    }
    if let Some(value) = of.priority() {
        properties = properties.with_priority(*value);
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

/// Returns the problem, and as many of the other headers as fit, the smallest first. Trace ids and consumer ids are
/// small.
fn headers_with_problem(of: &BasicProperties, problem: &str, most_bytes: usize) -> FieldTable {
    // A broker that dead-letters a message also removes these headers. The old problem is replaced.
    let is_kept = |name: &str| name != PROBLEM && !COPIES.contains(&name);
    let others = of.headers().iter().flat_map(FieldTable::inner).filter(|(name, _)| is_kept(name.as_str()));
    let mut others: Vec<_> = others.map(|(name, value)| (entry_bytes(name.as_str(), value), name, value)).collect();
    others.sort_by_key(|(bytes, ..)| *bytes);
    let problem = AMQPValue::LongString(problem.into());
    let mut used = 4 + entry_bytes(PROBLEM, &problem);
    let mut headers = BTreeMap::from([(PROBLEM.into(), problem)]);
    for (bytes, name, value) in others {
        used += bytes;
        if used > most_bytes {
            break;
        }
        headers.insert(name.clone(), value.clone());
    }
    headers.into()
}

/// Returns the size of a table's entry in a frame, in bytes.
fn entry_bytes(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + 1 + value_bytes(value)
}

/// Returns the size of a value in a frame without its type tag, in bytes.
fn value_bytes(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::Void => 0,
        AMQPValue::Boolean(_) | AMQPValue::ShortShortInt(_) | AMQPValue::ShortShortUInt(_) => 1,
        AMQPValue::ShortInt(_) | AMQPValue::ShortUInt(_) => 2,
        AMQPValue::LongInt(_) | AMQPValue::LongUInt(_) | AMQPValue::Float(_) => 4,
        AMQPValue::DecimalValue(_) => 5,
        AMQPValue::LongLongInt(_) | AMQPValue::Double(_) | AMQPValue::Timestamp(_) => 8,
        AMQPValue::ShortString(text) => 1 + text.as_str().len(),
        AMQPValue::LongString(text) => 4 + text.as_bytes().len(),
        AMQPValue::ByteArray(bytes) => 4 + bytes.len(),
        AMQPValue::FieldArray(values) => {
            4 + values.as_slice().iter().map(|value| 1 + value_bytes(value)).sum::<usize>()
        }
        AMQPValue::FieldTable(table) => {
            4 + table.inner().iter().map(|(name, value)| entry_bytes(name.as_str(), value)).sum::<usize>()
        }
    }
}
