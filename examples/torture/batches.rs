//! Batches, as their clients see them: exports of several of a consumer's datasets, asked for, looked at and cancelled
//! as a whole.

use std::time::Instant;

use reqwest::Method;
use serde_json::{Value, json};

use crate::clients::{Caller, MOST_OPEN};
use crate::era::FILE_LOST;
use crate::lanes::{self, Lane};
use crate::ledger::is_terminal;
use crate::random::Random;
use crate::report::locked;

impl Caller<'_> {
    /// Asks for a batch of some of the consumer's datasets, or of all that are ready.
    pub(crate) async fn submit_some(&self, lane: &'static Lane, random: &mut Random) {
        let mut lanes: Vec<&'static Lane> = lanes::of_consumer(lane.consumer).collect();
        let is_of_all = random.percent(20);
        if !is_of_all {
            random.shuffle(&mut lanes);
            lanes.truncate(random.between(2, lanes.len() as u64) as usize);
        }
        let drawn = random.below(100);
        let (open, wants_full) = {
            let ledger = locked(&self.world.ledger);
            (ledger.open_of(lane.consumer), lanes.iter().any(|lane| ledger.wants_full(lane.name)))
        };
        if open >= MOST_OPEN {
            return;
        }
        let kind = if wants_full { "full" } else { lane.kind(drawn) };
        let names: Vec<_> = lanes.iter().map(|lane| lane.dataset).collect();
        let mut body = json!({ "datasets": if is_of_all { json!("*") } else { json!(names) } });
        if random.percent(60) {
            body["skipEmpty"] = json!(true);
        }
        self.submit_batch(kind, lane.consumer, &body).await;
    }

    /// Asks twice with one key: it is one batch, of the same jobs.
    async fn submit_batch(&self, kind: &str, consumer: &'static str, body: &Value) {
        let key = uuid::Uuid::new_v4().to_string();
        let once = || self.submit_batch_once(kind, consumer, body, &key);
        if let (Some(first), Some(second)) = (once().await, once().await)
            && first != second
        {
            self.red("8", format!("two batches by one key: {first:?} and {second:?}"));
        }
    }

    /// The batch's jobs, in their order.
    async fn submit_batch_once(
        &self,
        kind: &str,
        consumer: &'static str,
        body: &Value,
        key: &str,
    ) -> Option<Vec<String>> {
        let path = format!("/exports/{kind}");
        let request = self.world.http.post(format!("{}{path}", self.address)).header("X-Consumer-ID", consumer);
        let request = request.header("Idempotency-Key", key).json(body);
        let (status, answer) = self.send(request, &format!("POST {path} of {body}")).await?;
        let answer: Value = answer.json().await.ok().filter(|_| status == 202)?;
        let batch = answer["batchId"].as_str()?;
        let mut jobs = Vec::new();
        for job in answer["jobs"].as_array()? {
            let of_job = |lane: &&Lane| job["dataset"] == lane.dataset;
            let (Some(id), Some(lane)) = (job["jobId"].as_str(), lanes::of_consumer(consumer).find(of_job)) else {
                self.red("api", format!("a batch of {body} has the job {job}"));
                continue;
            };
            self.ledger()?.promised(id, lane.name, Some(batch));
            jobs.push(id.to_owned());
        }
        let asked_for = body["datasets"].as_array().map(Vec::len);
        if jobs.first().is_none_or(|first| *first != batch) || asked_for.is_some_and(|many| many != jobs.len()) {
            self.red("api", format!("a batch of {body} is {answer}"));
        }
        Some(jobs)
    }

    /// 7 and 12: looks at a batch, whose members have ended together.
    pub(crate) async fn batch(&self, id: &str) {
        let asked = Instant::now();
        let Some((200, batch)) = self.get(&format!("/batches/{id}")).await else { return };
        let jobs = batch["jobs"].as_array().cloned().unwrap_or_default();
        let Some(mut ledger) = self.ledger() else { return };
        for job in &jobs {
            ledger.told(job, asked, &self.world.report);
        }
        drop(ledger);
        // A job that is committed and has no name yet shows as processing.
        let has = |status: &str| jobs.iter().any(|job| job["status"] == status);
        let is_lost = |job: &Value| job["error"]["code"] == FILE_LOST;
        let has_failed = jobs.iter().any(|job| job["status"] == "failed" && !is_lost(job));
        let is_torn = has("completed") && (has_failed || has("pending") || has("cancelled"));
        if is_torn || has_failed && !jobs.iter().all(is_terminal) || has("cancelled") && has_failed {
            self.red("12", format!("a batch is neither all nor nothing: {batch}"));
        }
    }

    /// Cancels a batch. One member alone can't be cancelled.
    pub(crate) async fn cancel_batch(&self, id: &str, random: &mut Random) {
        let members = locked(&self.world.ledger).ids(|promise| promise.batch.as_deref() == Some(id));
        if let Some(member) = random.pick(&members).filter(|_| random.percent(30)) {
            let path = format!("/exports/{member}/cancel");
            if let Some((202, _)) = self.call(Method::POST, &path, None).await {
                self.red("api", format!("the member {member} of the batch {id} was cancelled alone"));
            }
            return;
        }
        let Some((202, _)) = self.call(Method::POST, &format!("/batches/{id}/cancel"), None).await else { return };
        let Some(mut ledger) = self.ledger() else { return };
        for promise in ledger.promises.values_mut().filter(|promise| promise.batch.as_deref() == Some(id)) {
            promise.cancel_accepted = true;
        }
    }

    /// Looks at the batch of some job, or at the job, if it was asked for alone.
    pub(crate) async fn look_at_batch_of(&self, job: &str) {
        let batch = locked(&self.world.ledger).promises.get(job).and_then(|promise| promise.batch.clone());
        match batch {
            Some(batch) => self.batch(&batch).await,
            None => drop(self.job(job).await),
        }
    }
}
