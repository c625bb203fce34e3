//! A refused request as it is laid aside: with the problem among its headers, and without what would harm it where it lies.

use std::collections::BTreeMap;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

use crate::amqp::PERSISTENT;

/// The header of a refused message that says why.
const PROBLEM: &str = "cdc-export-problem";
/// Headers by which a broker sends a message to further queues.
const COPIES: [&str; 2] = ["CC", "BCC"];
/// The most bytes of a problem in a header.
const PROBLEM_BYTES: usize = 8 << 10;
/// The most bytes that a frame has beside the headers: its own, and those of seven other properties with 255 bytes each.
const OTHER_BYTES: usize = 2 << 10;

/// Whether a message was laid aside before.
pub(super) fn was_refused(properties: &BasicProperties) -> bool {
    properties.headers().as_ref().is_some_and(|headers| headers.contains_key(PROBLEM))
}

/// A problem as a header has it: without the jobs of `out_of_step`, which may be many, and without the end of what is too long.
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

/// A message's properties, with the problem among its headers. All of them go into one frame of `frame_bytes`.
pub(super) fn with_problem(of: &BasicProperties, problem: &str, frame_bytes: usize) -> BasicProperties {
    let headers = headers_with_problem(of, problem, frame_bytes.saturating_sub(OTHER_BYTES));
    // Without what would take it from the queue of refused ones in time, and without the name of who published it, which a broker holds
    // against who publishes now.
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

/// The problem, and of the other headers as many as have room, the smallest first: a trace's id is small, and so is a consumer's.
fn headers_with_problem(of: &BasicProperties, problem: &str, most_bytes: usize) -> FieldTable {
    // As a broker does that dead-letters a message. The problem is a new one.
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

/// How many bytes an entry of a table takes in a frame.
fn entry_bytes(name: &str, value: &AMQPValue) -> usize {
    1 + name.len() + 1 + value_bytes(value)
}

/// How many bytes a value takes in a frame, after the letter that tells its type.
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
