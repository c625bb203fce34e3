//! The audit log: who changed or read something, and which requests with a valid key were refused.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use crate::job::{ConsumerId, JobId};
use crate::key::Prefix;

pg_rows::words! {
    /// The effect of a request, or the intended one.
    Action, "an action" {
        /// An export was requested.
        Export = "export",
        /// A failed or cancelled export was requested again.
        Retry = "retry",
        /// An export was cancelled, or its worker was asked to stop.
        Cancel = "cancel",
        /// A consumer acknowledged an export.
        Acknowledge = "ack",
        /// A download began, or the address of a file was handed out.
        Download = "download",
        /// The files of an export were removed.
        RemoveFile = "remove_file",
        /// A committed export was given up, because its file is lost.
        GiveUp = "give_up",
        /// A watermark was deleted.
        DeleteWatermark = "delete_watermark",
        /// A consumer was removed.
        RemoveConsumer = "remove_consumer",
        /// The redelivery of an event was requested.
        Redeliver = "redeliver",
        /// A user of the demo table was deleted.
        DeleteUser = "delete_user",
        /// Something was read. Only refusals of this action are recorded.
        Read = "read",
    }
}

/// The outcome of a request that was not refused. The outcome of a refusal is the code of its problem.
pub const DONE: &str = "done";

/// The sender of a request, and the names in the request.
#[derive(Debug, Default)]
pub struct Origin {
    actor: Option<String>,
    remote: Option<IpAddr>,
    request_id: Option<String>,
    /// The consumer that the request named.
    pub consumer: OnceLock<ConsumerId>,
    /// The dataset that the request named.
    pub dataset: OnceLock<String>,
    /// The job that the request named.
    pub job: OnceLock<JobId>,
}

impl Origin {
    /// Returns the origin of a call of the API. `key` is `None` if the call needed no key.
    pub fn call(key: Option<&Prefix>, remote: IpAddr, request_id: Option<String>) -> Origin {
        let actor = key.map(|prefix| prefix.as_str().to_owned());
        Origin { actor, remote: Some(remote), request_id, ..Origin::default() }
    }

    /// Returns the origin of the exports of a schedule.
    pub fn schedule(name: &str) -> Arc<Origin> {
        Origin::without_key(format_args!("schedule:{name}"))
    }

    /// Returns the origin of a command that a user of this machine runs.
    pub fn command(user: &str) -> Arc<Origin> {
        Origin::without_key(format_args!("cli:{user}"))
    }

    fn without_key(actor: fmt::Arguments<'_>) -> Arc<Origin> {
        Arc::new(Origin { actor: Some(actor.to_string()), ..Origin::default() })
    }

    /// Returns the sender as the parameter of `cdc_export.audit`: an object of `key`, `remote` and `requestId`.
    pub fn to_json(&self) -> Value {
        json!({ "key": self.actor, "remote": self.remote, "requestId": self.request_id })
    }
}

/// A row of the audit log.
#[derive(Clone, Debug)]
pub struct AuditEntry {
    /// The row's number. It grows with time.
    pub id: i64,
    /// The time of the first of these requests.
    pub at: DateTime<Utc>,
    /// The id of the first of these requests.
    pub request_id: Option<String>,
    /// The prefix of the key; or `schedule:NAME` or `cli:USER`. `None` if a call needed no key.
    pub key: Option<String>,
    /// The address of the peer. `None` if the request did not come over HTTP.
    pub remote: Option<String>,
    /// The effect of the request, or the intended one.
    pub action: Action,
    /// The consumer.
    pub consumer: Option<String>,
    /// The dataset.
    pub dataset: Option<String>,
    /// The export.
    pub job: Option<JobId>,
    /// [`DONE`], or the code of the refusal.
    pub outcome: String,
    /// The number of equal requests of the same key within a minute. Only downloads and refusals are counted in this
    /// way.
    pub count: i64,
}

/// The filter of the audit log. A field with `None` does not restrict the list.
#[derive(Clone, Debug, Default)]
pub struct AuditFilter {
    /// Selects requests with this key, or of this schedule or user.
    pub key: Option<String>,
    /// Selects requests for this consumer.
    pub consumer: Option<ConsumerId>,
    /// Selects requests for this dataset.
    pub dataset: Option<String>,
    /// Selects requests with this action.
    pub action: Option<Action>,
    /// Selects requests at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Selects requests before this time.
    pub to: Option<DateTime<Utc>>,
    /// Selects rows before the one with this number.
    pub before: Option<i64>,
}
