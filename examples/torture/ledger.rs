//! The clients' record: every job that the service promised, and every answer about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde_json::{Value, json};

use crate::era::FILE_LOST;
use crate::lanes::{self, AD_HOC};
use crate::report::Report;

#[derive(Clone, Debug, Default)]
pub(crate) struct Promise {
    pub(crate) lanes: Vec<&'static str>,
    /// The job as it was when somebody first saw it ended, and when that answer came.
    pub(crate) ended: Option<(Value, Instant)>,
    pub(crate) cancel_accepted: bool,
    /// The lanes whose exports the service doesn't know any more: they were skipped, with another one after them.
    pub(crate) gone: BTreeSet<&'static str>,
    /// The lanes whose files somebody asked to remove; whether that was done is not known if the answer was lost.
    pub(crate) removal_asked: BTreeSet<&'static str>,
}

impl Promise {
    pub(crate) fn is_open(&self) -> bool {
        self.ended.is_none() && !self.is_gone()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.len() == self.lanes.len()
    }

    /// Returns the answer about the lane's export that a client got when the job had ended.
    pub(crate) fn told(&self, lane: &str) -> Option<Value> {
        let (job, _) = self.ended.as_ref()?;
        exports(job).into_iter().find(|export| lane_of(export) == Some(lane))
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

/// The exports of a job, each in the form of a job of one dataset, as far as the torture goes by it.
pub(crate) fn exports(job: &Value) -> Vec<Value> {
    let Some(exports) = job["exports"].as_array() else { return vec![job.clone()] };
    let cause = &job["error"]["dataset"];
    let alone = |export: &Value| {
        let mut alone = export.clone();
        for of_job in ["jobId", "consumerId", "status", "error"] {
            alone[of_job] = job[of_job].clone();
        }
        if !cause.is_null() && *cause != export["dataset"] {
            alone["error"] = Value::Null;
        }
        // A job whose file is lost has failed, and the other exports have not.
        if job["error"]["code"] == FILE_LOST && has_ended_well(export) {
            alone["status"] = json!("completed");
        }
        alone
    };
    exports.iter().map(alone).collect()
}

/// Returns true if an export of a job of several datasets is published, or was skipped.
fn has_ended_well(export: &Value) -> bool {
    export["skipped"] == true || !export["number"].is_null()
}

pub(crate) fn lane_of(export: &Value) -> Option<&'static str> {
    lanes::name(export["consumerId"].as_str().unwrap_or(AD_HOC), export["dataset"].as_str()?)
}

/// The status of a job, which its clients see as completed if it was skipped.
pub(crate) fn status(job: &Value) -> &str {
    if job["skipped"] == true { "skipped" } else { job["status"].as_str().unwrap_or_default() }
}

pub(crate) fn is_terminal(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

impl Ledger {
    pub(crate) fn promised(&mut self, job: &str, lanes: Vec<&'static str>) {
        // The same job may be promised twice, by its key.
        self.promises.entry(job.to_owned()).or_insert(Promise { lanes, ..Promise::default() });
    }

    pub(crate) fn open(&self, lane: &str) -> usize {
        self.promises.values().filter(|promise| promise.lanes.contains(&lane) && promise.is_open()).count()
    }

    /// The open jobs of a consumer. Its turns come as they do to a consumer with one lane.
    pub(crate) fn open_of(&self, consumer: &str) -> usize {
        let is_its = |promise: &&Promise| lanes::of_consumer(consumer).any(|its| promise.lanes.contains(&its.name));
        self.promises.values().filter(|promise| promise.is_open()).filter(is_its).count()
    }

    /// The database was put back: it has these jobs, as the API shows them, with whether somebody cancelled them. What
    /// clients were told of others is no promise any more.
    pub(crate) fn put_back(&mut self, states: &HashMap<String, (String, bool)>) {
        self.promises.retain(|id, _| states.contains_key(id));
        for (id, promise) in &mut self.promises {
            let (now, cancelled) = &states[id];
            promise.cancel_accepted &= cancelled;
            promise.gone.clear();
            promise.ended.take_if(|(job, _)| status(job) != now);
        }
        self.watermarks.clear();
    }

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
        let exports = exports(job);
        let shown: Vec<&str> = exports.iter().filter_map(lane_of).collect();
        promise.gone.extend(promise.lanes.iter().filter(|lane| !shown.contains(*lane)));
        if is_torn(job) {
            report.red("12", format!("a job is neither all nor nothing: {job}"));
        }
        match (&mut promise.ended, is_terminal(job)) {
            (None, true) => {
                promise.ended = Some((job.clone(), Instant::now()));
                for export in &exports {
                    if let Some(wrong) = wrong_with_skip(export) {
                        report.red("3", format!("{wrong}: {export}"));
                    }
                    let Some(lane) = lane_of(export) else { continue };
                    if export["error"]["code"] == "full_export_needed" {
                        self.full_wanted.insert(lane);
                    } else if export["status"] == "completed" && export["exportType"] == "full" {
                        self.full_wanted.remove(lane);
                    }
                }
            }
            (Some((before, _)), true) if !say_the_same(before.clone(), job.clone()) => {
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

/// Returns true if an answer contradicts that exports of a job are committed together. A later loss doesn't.
fn is_torn(job: &Value) -> bool {
    let Some(exports) = job["exports"].as_array() else { return false };
    let is_committed = |export: &&Value| has_ended_well(export) || export["phase"] == "publishing";
    let committed = exports.iter().filter(is_committed).count();
    match job["status"].as_str() {
        _ if job["error"]["code"] == FILE_LOST => committed == exports.len(),
        Some("completed") => !exports.iter().all(has_ended_well),
        Some("processing") => committed > 0 && committed < exports.len(),
        _ => committed > 0,
    }
}

/// Returns true if two answers say the same about an ended job. Exports that were skipped may be gone in one of them.
fn say_the_same(mut one: Value, mut other: Value) -> bool {
    if let (Some(Value::Array(left)), Some(Value::Array(right))) = (one.get_mut("exports"), other.get_mut("exports")) {
        let has = |exports: &[Value], export: &Value| exports.iter().any(|its| its["dataset"] == export["dataset"]);
        left.retain(|export| has(right, export));
        right.retain(|export| has(left, export));
    }
    one == other
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
