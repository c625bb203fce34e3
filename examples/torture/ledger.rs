//! The clients' record: every job that the service promised, and every answer about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde_json::{Value, json};

use crate::lanes;
use crate::report::Report;

/// A job that a client got a 202 for.
#[derive(Clone, Debug)]
pub(crate) struct Promise {
    pub(crate) lane: &'static str,
    /// The batch that it is a member of.
    pub(crate) batch: Option<String>,
    /// The job as it was when somebody first saw it ended, and when that answer came.
    pub(crate) ended: Option<(Value, Instant)>,
    /// A cancel was answered with 202.
    pub(crate) cancel_accepted: bool,
    /// The service doesn't know it any more, as an export that was skipped, with another one after it.
    pub(crate) gone: bool,
    /// Somebody asked to remove its file; whether that was done is not known if the answer was lost.
    pub(crate) removal_asked: bool,
}

impl Promise {
    pub(crate) fn is_open(&self) -> bool {
        self.ended.is_none() && !self.gone
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) promises: BTreeMap<String, Promise>,
    /// The highest watermark that a client was told of, by lane. RFC 3339 in UTC with microseconds sorts as text.
    watermarks: BTreeMap<&'static str, String>,
    /// Lanes whose last job asked for a full export.
    full_wanted: BTreeSet<&'static str>,
}

/// The status of a job, which its clients see as completed if it was skipped.
pub(crate) fn status(job: &Value) -> &str {
    if job["skipped"] == true { "skipped" } else { job["status"].as_str().unwrap_or_default() }
}

pub(crate) fn is_terminal(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

impl Ledger {
    pub(crate) fn promised(&mut self, job: &str, lane: &'static str, batch: Option<&str>) {
        let batch = batch.map(str::to_owned);
        let promise = Promise { lane, batch, ended: None, cancel_accepted: false, gone: false, removal_asked: false };
        // The same job may be promised twice, by its key.
        self.promises.entry(job.to_owned()).or_insert(promise);
    }

    pub(crate) fn open(&self, lane: &str) -> usize {
        self.promises.values().filter(|promise| promise.lane == lane && promise.is_open()).count()
    }

    /// The open jobs of a consumer, a batch as one. Its turns come as they do to a consumer with one lane.
    pub(crate) fn open_of(&self, consumer: &str) -> usize {
        let is_its = |lane: &str| lanes::of_consumer(consumer).any(|its| its.name == lane);
        let open = self.promises.iter().filter(|(_, promise)| promise.is_open() && is_its(promise.lane));
        open.map(|(id, promise)| promise.batch.as_ref().unwrap_or(id)).collect::<BTreeSet<_>>().len()
    }

    /// The database was put back: it has these jobs, as the API shows them, with whether somebody cancelled them. What
    /// clients were told of others is no promise any more.
    pub(crate) fn put_back(&mut self, states: &HashMap<String, (String, bool)>) {
        self.promises.retain(|id, _| states.contains_key(id));
        for (id, promise) in &mut self.promises {
            let (now, cancelled) = &states[id];
            promise.cancel_accepted &= cancelled;
            promise.gone = false;
            promise.ended.take_if(|(job, _)| status(job) != now);
        }
        self.watermarks.clear();
    }

    /// Whether a lane's consumer was told to ask for a full export, and has had none since.
    pub(crate) fn wants_full(&self, lane: &str) -> bool {
        self.full_wanted.contains(lane)
    }

    pub(crate) fn ids(&self, of: impl Fn(&Promise) -> bool) -> Vec<String> {
        self.promises.iter().filter(|(_, promise)| of(promise)).map(|(id, _)| id.clone()).collect()
    }

    /// Takes in what an answer says of a job. Terminal is final: two answers that say "ended" say the same, and none
    /// that was asked for afterwards says less.
    pub(crate) fn told(&mut self, job: &Value, asked: Instant, report: &Report) {
        let Some(promise) = job["jobId"].as_str().and_then(|id| self.promises.get_mut(id)) else { return };
        match (&mut promise.ended, is_terminal(job)) {
            (None, true) => {
                if let Some(wrong) = wrong_with_skip(job) {
                    report.red("3", format!("{wrong}: {job}"));
                }
                promise.ended = Some((job.clone(), Instant::now()));
                if job["error"]["code"] == "full_export_needed" {
                    self.full_wanted.insert(promise.lane);
                } else if job["status"] == "completed" && job["exportType"] == "full" {
                    self.full_wanted.remove(promise.lane);
                }
            }
            (Some((before, _)), true) if before != job => {
                report.red("7", format!("an ended job has changed: {before} is now {job}"));
            }
            (Some((before, known)), false) if asked > *known => {
                report.red("7", format!("an ended job runs again: {before} is now {job}"));
            }
            _ => {}
        }
    }

    pub(crate) fn watermark(&self, lane: &str) -> Option<String> {
        self.watermarks.get(lane).cloned()
    }

    /// A watermark that a client was told of, which may not be below what somebody was told before it asked.
    pub(crate) fn told_watermark(
        &mut self,
        lane: &'static str,
        told: Option<String>,
        before: Option<String>,
        report: &Report,
    ) {
        if told < before {
            report.red("2", format!("the watermark of {lane} went back from {before:?} to {told:?}"));
        }
        if let Some(told) = told
            && self.watermarks.get(lane).is_none_or(|highest| *highest < told)
        {
            self.watermarks.insert(lane, told);
        }
    }
}

/// Why an ended job says wrongly that it was skipped, or that it was not.
fn wrong_with_skip(job: &Value) -> Option<&'static str> {
    let of_file = ["outputFilename", "location", "sha256", "digest", "number", "continuity", "error"];
    let has = |member: &&str| !job[*member].is_null();
    let is_skipped = status(job) == "skipped";
    if is_skipped && job["status"] != "completed" {
        Some("a skipped job shows as completed")
    } else if is_skipped && (of_file.iter().any(has) || job["files"] != json!([]) || job["rowsExported"] != 0) {
        Some("a skipped job has something of a file")
    } else if is_skipped && job["exportType"] == "full" {
        Some("a full export was skipped")
    } else if status(job) == "completed" && !has(&"outputFilename") {
        Some("a completed job has no file")
    } else {
        None
    }
}
