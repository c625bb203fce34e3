//! The audit lines of the log: who changed or downloaded something, and which requests with a valid key were refused.
//!
//! The log has the events of this module at every `LOG_LEVEL`.

use std::sync::OnceLock;

use crate::job::{Export, Job};
use crate::key::Prefix;
use cdc_manifest::{ConsumerId, JobId};

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
        /// Something was read. Only refusals of this action are logged.
        Read = "read",
    }
}

/// The outcome of a request that was not refused. The outcome of a refusal is the code of its problem.
const DONE: &str = "done";

/// The sender of a request, and the names in the request.
#[derive(Debug, Default)]
pub struct Origin {
    /// The prefix of the key; or `schedule:NAME` or `cli:USER`. `None` if a call needed no key.
    key: Option<String>,
    request_id: Option<String>,
    pub consumer: OnceLock<ConsumerId>,
    pub dataset: OnceLock<String>,
    pub job: OnceLock<JobId>,
}

impl Origin {
    /// Returns the origin of a call of the API. `key` is `None` if the call needed no key.
    pub fn call(key: Option<&Prefix>, request_id: Option<String>) -> Origin {
        let key = key.map(|prefix| prefix.as_str().to_owned());
        Origin { key, request_id, ..Origin::default() }
    }

    pub fn schedule(name: &str) -> Origin {
        Origin { key: Some(format!("schedule:{name}")), ..Origin::default() }
    }

    pub fn command(user: &str) -> Origin {
        Origin { key: Some(format!("cli:{user}")), ..Origin::default() }
    }

    /// Sets the names of a job that the request named. A job of several datasets has no dataset of its own.
    pub fn learn_names(&self, job: &Job) {
        let _ = self.job.set(job.id());
        if let Some(consumer) = job.consumer() {
            let _ = self.consumer.set(consumer.clone());
        }
        if let [only] = job.exports.as_slice() {
            let _ = self.dataset.set(only.dataset.clone());
        }
    }

    /// Logs a change of an export. Must be called after its commit.
    pub fn log_job(&self, action: Action, export: &Export) {
        self.log_done(action, export.consumer.as_ref(), Some(&export.dataset), Some(export.job));
    }

    /// Logs a change, or a download that begins. For a change, it must be called after the commit.
    pub fn log_done(&self, action: Action, consumer: Option<&ConsumerId>, dataset: Option<&str>, job: Option<JobId>) {
        self.log(action, (consumer, dataset, job), DONE);
    }

    /// Logs that the request was refused with this code, and the names that the service had read until then.
    pub fn log_refusal(&self, action: Action, code: &str) {
        let dataset = self.dataset.get().map(String::as_str);
        self.log(action, (self.consumer.get(), dataset, self.job.get().copied()), code);
    }

    fn log(
        &self,
        action: Action,
        (consumer, dataset, job): (Option<&ConsumerId>, Option<&str>, Option<JobId>),
        outcome: &str,
    ) {
        tracing::info!(
            event = "audit",
            key = self.key,
            consumer = consumer.map(ConsumerId::as_str),
            dataset,
            jobId = job.map(tracing::field::display),
            action = action.as_str(),
            outcome,
            requestId = self.request_id,
        );
    }
}
