//! The clients' record of every job that the service promised, and of every answer about it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use serde_json::{Value, json};

use crate::era::FILE_LOST;
use crate::lanes::{self, AD_HOC};
use crate::report::Report;

#[derive(Clone, Debug, Default)]
pub(crate) struct Promise {
    pub(crate) lanes: Vec<&'static str>,
    /// The job as the first client saw it ended, and the time of that answer.
    pub(crate) ended: Option<(Value, Instant)>,
    pub(crate) cancel_accepted: bool,
    /// The lanes whose exports the service has forgotten: they were skipped, and a later one followed.
    pub(crate) gone: BTreeSet<&'static str>,
    /// The lanes whose files a client asked to remove. After a lost answer, it is unknown if the file is gone.
    pub(crate) removal_asked: BTreeSet<&'static str>,
}

impl Promise {
    pub(crate) fn is_open(&self) -> bool {
        self.ended.is_none() && !self.is_gone()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.len() == self.lanes.len()
    }

    /// Returns the lane's export from the answer in which a client first saw the job ended.
    pub(crate) fn told(&self, lane: &str) -> Option<Value> {
        let (job, _) = self.ended.as_ref()?;
        exports(job).into_iter().find(|export| lane_of(export) == Some(lane))
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) promises: BTreeMap<String, Promise>,
    /// The highest watermark that a client received, by lane. RFC 3339 in UTC with microseconds sorts as text.
    watermarks: BTreeMap<&'static str, String>,
    /// Lanes in which an export needed a full export, and no full export has completed since.
    full_wanted: BTreeSet<&'static str>,
}

/// Returns the exports of a job, each like a job of one dataset. Only members that the torture reads are right.
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
        // If a file is lost, the job fails, but its other exports don't.
        if job["error"]["code"] == FILE_LOST && has_ended_well(export) {
            alone["status"] = json!("completed");
        }
        alone
    };
    exports.iter().map(alone).collect()
}

/// Returns true if an export of a job of several datasets is published or skipped.
fn has_ended_well(export: &Value) -> bool {
    export["skipped"] == true || !export["number"].is_null()
}

pub(crate) fn lane_of(export: &Value) -> Option<&'static str> {
    lanes::name(export["consumerId"].as_str().unwrap_or(AD_HOC), export["dataset"].as_str()?)
}

/// Returns the status of a job, or `skipped`. Clients see a skipped job as completed.
pub(crate) fn status(job: &Value) -> &str {
    if job["skipped"] == true { "skipped" } else { job["status"].as_str().unwrap_or_default() }
}

pub(crate) fn is_terminal(job: &Value) -> bool {
    matches!(job["status"].as_str(), Some("completed" | "failed" | "cancelled"))
}

impl Ledger {
    pub(crate) fn promised(&mut self, job: &str, lanes: Vec<&'static str>) {
        // Two requests with one key promise the same job.
        self.promises.entry(job.to_owned()).or_insert(Promise { lanes, ..Promise::default() });
    }

    pub(crate) fn open(&self, lane: &str) -> usize {
        self.promises.values().filter(|promise| promise.lanes.contains(&lane) && promise.is_open()).count()
    }

    /// Returns the number of a consumer's open jobs. Several lanes together may have as many as a single lane.
    pub(crate) fn open_of(&self, consumer: &str) -> usize {
        let is_its = |promise: &&Promise| lanes::of_consumer(consumer).any(|its| promise.lanes.contains(&its.name));
        self.promises.values().filter(|promise| promise.is_open()).filter(is_its).count()
    }

    /// Adapts to a restored database, which has these jobs: the status in the API, and whether somebody cancelled the
    /// job. Answers about other jobs are no longer promises.
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

    /// Records an answer about a job. An end is final: two answers after the end are the same. An answer to a request
    /// after the end doesn't show an open job.
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

    /// Records a watermark. It may not be below one that a client received before the request.
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

/// Returns true if an answer shows that a job is committed in part. A later loss of a file is no contradiction.
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

/// Returns true if two answers about an ended job are the same. Skipped exports may be missing in one of them.
fn say_the_same(mut one: Value, mut other: Value) -> bool {
    if let (Some(Value::Array(left)), Some(Value::Array(right))) = (one.get_mut("exports"), other.get_mut("exports")) {
        let has = |exports: &[Value], export: &Value| exports.iter().any(|its| its["dataset"] == export["dataset"]);
        left.retain(|export| has(right, export));
        right.retain(|export| has(left, export));
    }
    one == other
}

/// Returns the mistake in an ended job that was skipped or was not. Returns `None` if there is no mistake.
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
