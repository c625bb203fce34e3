//! The clients: they ask for exports, look at them, cancel some, fetch and remove files, and remember what they were
//! told.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::lanes::{self, AD_HOC, AskedBy, LANES, Lane};
use crate::ledger::{Ledger, Promise, status};
use crate::random::Random;
use crate::report::locked;
use crate::trial::World;

pub(crate) const CLIENTS: u64 = 6;
/// Jobs of a lane that may be open at once, as far as the clients know: the drain is bounded by it.
pub(crate) const MOST_OPEN: usize = 4;

/// Asks until the clients are told to stop.
pub(crate) async fn ask(world: Arc<World>, client: u64) {
    let mut random = Random::new(world.seed, 200 + client);
    let lanes: Vec<&Lane> = LANES.iter().filter(|lane| lane.asked_by != AskedBy::Loaders).collect();
    while world.asking.load(Ordering::SeqCst) {
        tokio::time::sleep(random.millis(20, 150)).await;
        let listening: Vec<String> = world.replicas.iter().filter_map(|replica| replica.address()).collect();
        let (Some(address), Some(lane)) = (random.pick(&listening), random.pick(&lanes)) else { continue };
        let caller = Caller::new(&world, address);
        match random.below(100) {
            0..8 => {
                if locked(&world.ledger).open(AD_HOC) < MOST_OPEN {
                    caller.submit_ad_hoc(&mut random).await;
                }
            }
            8..45 if lane.asked_by == AskedBy::Batches && random.percent(75) => {
                caller.submit_some(lane, &mut random).await;
            }
            8..45 => {
                let drawn = random.below(100);
                let (open, wants_full) = {
                    let ledger = locked(&world.ledger);
                    (ledger.open_of(lane.consumer), ledger.wants_full(lane.name))
                };
                if open < MOST_OPEN {
                    let kind = if wants_full { "full" } else { lane.kind(drawn) };
                    let mut body = json!({ "dataset": lane.dataset });
                    if random.percent(70) {
                        body["skipEmpty"] = json!(true);
                    }
                    caller.submit(kind, lane, &body).await;
                    // It looks again at once, and in a calm table mostly finds nothing.
                    let again = if lane.dataset == "calm" { 90 } else { 20 };
                    if open + 1 < MOST_OPEN && random.percent(again) {
                        body["skipEmpty"] = json!(true);
                        caller.submit("delta", lane, &body).await;
                    }
                }
            }
            45..50 => caller.look_at_all().await,
            50..70 => caller.look(lane).await,
            70..76 => caller.watermark(lane).await,
            76..84 => {
                let open: BTreeSet<(bool, String)> = {
                    let ledger = locked(&world.ledger);
                    let open = ledger.promises.iter().filter(|(_, promise)| promise.is_open());
                    // A batch as often as a job.
                    let or_batch = |(id, promise): (&String, &Promise)| match &promise.batch {
                        Some(batch) => (true, batch.clone()),
                        None => (false, id.clone()),
                    };
                    open.map(or_batch).collect()
                };
                match random.pick(&Vec::from_iter(open)) {
                    Some((true, batch)) => caller.cancel_batch(&batch, &mut random).await,
                    Some((false, job)) => caller.cancel(&job).await,
                    None => {}
                }
            }
            84..92 => caller.fetch(&mut random).await,
            92..95 => caller.remove(&mut random).await,
            _ => {
                let any = locked(&world.ledger).ids(|_| true);
                if let Some(job) = random.pick(&any) {
                    caller.look_at_batch_of(&job).await;
                }
            }
        }
    }
}

/// A client that speaks to one replica.
pub(crate) struct Caller<'w> {
    pub(crate) world: &'w World,
    pub(crate) address: String,
    /// When it began to ask. What it is told after the database was put back is of another era than what it asked for.
    era: u64,
}

impl<'w> Caller<'w> {
    pub(crate) fn new(world: &'w World, address: String) -> Caller<'w> {
        Caller { world, address, era: world.era() }
    }

    /// The ledger, unless it is another era's by now.
    pub(crate) fn ledger(&self) -> Option<MutexGuard<'w, Ledger>> {
        let ledger = locked(&self.world.ledger);
        (self.era == self.world.era()).then_some(ledger)
    }

    pub(crate) fn red(&self, invariant: &'static str, what: String) {
        if self.era == self.world.era() {
            self.world.report.red(invariant, what);
        }
    }

    /// Asks for an export with a body of its own; status and answer.
    pub(crate) async fn post(&self, path: &str, lane: &'static Lane, body: &Value) -> Option<(u16, Value)> {
        let request = self.world.http.post(format!("{}{path}", self.address)).header("X-Consumer-ID", lane.consumer);
        let request = request.header("Idempotency-Key", uuid::Uuid::new_v4().to_string()).json(body);
        let (status, answer) = self.send(request, &format!("POST {path}")).await?;
        let answer: Value = answer.json().await.ok()?;
        if status == 202
            && let Some(job) = answer["jobId"].as_str()
        {
            self.ledger()?.promised(job, lane.name, None);
        }
        Some((status, answer))
    }

    pub(crate) async fn get(&self, path: &str) -> Option<(u16, Value)> {
        let (status, answer) = self.call(Method::GET, path, None).await?;
        Some((status, answer.json().await.ok()?))
    }

    pub(crate) async fn bytes(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        let (status, answer) = self.call(Method::GET, path, None).await?;
        Some((status, answer.bytes().await.ok()?.to_vec()))
    }

    /// An answer that isn't an error of the network. What no answer may be is red here.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        consumer: Option<&str>,
    ) -> Option<(u16, reqwest::Response)> {
        let mut request = self.world.http.request(method.clone(), format!("{}{path}", self.address));
        if let Some(consumer) = consumer {
            request = request.header("X-Consumer-ID", consumer);
        }
        self.send(request, &format!("{method} {path}")).await
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> Option<(u16, reqwest::Response)> {
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        match status {
            200..=299 | 404 | 409 | 410 => {}
            503 if answer.headers().contains_key("Retry-After") => {}
            _ => {
                let text = answer.text().await.unwrap_or_default();
                self.world.report.red("api", format!("{what}: {status} {text}"));
                return None;
            }
        }
        Some((status, answer))
    }

    /// Asks twice with one key, as a client does that isn't sure of the first answer: it is one job.
    pub(crate) async fn submit(&self, kind: &str, lane: &'static Lane, body: &Value) -> Option<String> {
        let key = uuid::Uuid::new_v4().to_string();
        let once = || self.submit_once(kind, lane, body, &key);
        let (first, second) = (once().await, once().await);
        if let (Some(first), Some(second)) = (&first, &second)
            && first != second
        {
            self.world.report.red("8", format!("two jobs by one key: {first} and {second}"));
        }
        first.or(second)
    }

    async fn submit_once(&self, kind: &str, lane: &'static Lane, body: &Value, key: &str) -> Option<String> {
        let path = format!("/exports/{kind}");
        let request = self.world.http.post(format!("{}{path}", self.address)).header("X-Consumer-ID", lane.consumer);
        let request = request.header("Idempotency-Key", key).json(body);
        let answer = self.send(request, &format!("POST {path}")).await?;
        self.promised(answer, lane.name).await
    }

    /// An export for no consumer: of all rows, or of those up to some key.
    async fn submit_ad_hoc(&self, random: &mut Random) {
        let up_to = [None, Some(random.between(1, 2_400))][random.below(2) as usize];
        let filter: Vec<_> = up_to.iter().map(|key| json!({ "column": "id", "op": "lte", "value": key })).collect();
        let request = self.world.http.post(format!("{}/exports", self.address));
        let answer = self.send(request.json(&json!({ "exportType": "full", "filter": filter })), "POST /exports").await;
        if let Some(answer) = answer {
            self.promised(answer, AD_HOC).await;
        }
    }

    async fn promised(&self, (status, answer): (u16, reqwest::Response), lane: &'static str) -> Option<String> {
        if status != 202 {
            return None;
        }
        // A body that was cut off is a 202 all the same, but of which job, nobody knows.
        let job = answer.json::<Value>().await.ok()?["jobId"].as_str()?.to_owned();
        self.ledger()?.promised(&job, lane, None);
        Some(job)
    }

    /// The lane's newest jobs.
    pub(crate) async fn look(&self, lane: &Lane) {
        let Lane { name, consumer, dataset, .. } = lane;
        // `:` and `@` may stand in a query as they are.
        let jobs = self.look_at(&format!("/exports?consumer={consumer}&dataset={dataset}&limit=30")).await;
        // 6: newest first, whatever clocks say.
        let numbers: Vec<u64> = jobs.iter().filter_map(|job| job["number"].as_u64()).collect();
        if !numbers.is_sorted_by(|newer, older| newer > older) {
            self.red("6", format!("the list of {name} has the numbers {numbers:?}"));
        }
        // No list has a skipped job with another one after it.
        let listed = |id: &String| jobs.iter().any(|job| job["jobId"] == id.as_str());
        let of_lane = locked(&self.world.ledger).ids(|promise| promise.lane == *name && promise.is_open());
        for id in of_lane.iter().filter(|id| !listed(id)) {
            self.job(id).await;
        }
    }

    async fn look_at_all(&self) {
        self.look_at("/exports?limit=100").await;
    }

    async fn look_at(&self, path: &str) -> Vec<Value> {
        let asked = Instant::now();
        let Some((200, page)) = self.get(path).await else { return Vec::new() };
        let jobs = page["items"].as_array().cloned().unwrap_or_default();
        if let Some(mut ledger) = self.ledger() {
            for job in &jobs {
                ledger.told(job, asked, &self.world.report);
            }
        }
        jobs
    }

    pub(crate) async fn job(&self, id: &str) -> Option<Value> {
        let asked = Instant::now();
        let (status, answer) = self.call(Method::GET, &format!("/exports/{id}"), None).await?;
        if status == 404 {
            self.gone(id);
        }
        let job = answer.json::<Value>().await.ok().filter(|_| status == 200)?;
        self.ledger()?.told(&job, asked, &self.world.report);
        Some(job)
    }

    /// There is no job of that id. Whether it may be so, the oracle says.
    fn gone(&self, id: &str) {
        if let Some(promise) = self.ledger().as_mut().and_then(|ledger| ledger.promises.get_mut(id)) {
            promise.gone = true;
        }
    }

    async fn watermark(&self, lane: &'static Lane) {
        let before = locked(&self.world.ledger).watermark(lane.name);
        let path = format!("/exports/watermark?dataset={}", lane.dataset);
        let Some((status, answer)) = self.call(Method::GET, &path, Some(lane.consumer)).await else { return };
        let Ok(body) = answer.json::<Value>().await else { return };
        let told = match status {
            200 => body["lastExportedAt"].as_str().map(str::to_owned),
            404 => None,
            _ => return,
        };
        if let Some(mut ledger) = self.ledger() {
            ledger.told_watermark(lane.name, told, before, &self.world.report);
        }
    }

    async fn cancel(&self, job: &str) {
        let Some((202, _)) = self.call(Method::POST, &format!("/exports/{job}/cancel"), None).await else { return };
        if let Some(promise) = self.ledger().as_mut().and_then(|ledger| ledger.promises.get_mut(job)) {
            promise.cancel_accepted = true;
        }
    }

    /// Downloads a completed job's file: all of it or an error, never a part that looks like all. A skipped one has
    /// none.
    async fn fetch(&self, random: &mut Random) {
        let done: Vec<(String, bool)> = {
            let ledger = locked(&self.world.ledger);
            let ended = |(id, promise): (&String, &Promise)| Some((id.clone(), promise.ended.as_ref()?.0.clone()));
            let shown = ledger.promises.iter().filter_map(ended).filter(|(_, job)| job["status"] == "completed");
            shown.map(|(id, job)| (id, status(&job) == "skipped")).collect()
        };
        let Some((id, is_skipped)) = random.pick(&done) else { return };
        let Some((code, answer)) = self.call(Method::GET, &format!("/exports/{id}/download"), None).await else {
            return;
        };
        let removed = || locked(&self.world.ledger).promises.get(&id).is_some_and(|promise| promise.removal_asked);
        match code {
            404 if is_skipped => self.gone(&id),
            409 if is_skipped => {
                let Ok(problem) = answer.json::<Value>().await else { return };
                if problem["code"] != "no_file" {
                    self.red("api", format!("a download of {id}, which was skipped: {problem}"));
                }
            }
            200 if !is_skipped => {
                let Ok(bytes) = answer.bytes().await else { return };
                let Some(ledger) = self.ledger() else { return };
                let Some((job, _)) = ledger.promises.get(&id).and_then(|promise| promise.ended.as_ref()) else {
                    return;
                };
                if job["bytesWritten"] != bytes.len() || job["sha256"] != sha256(&bytes).as_str() {
                    self.world.report.red("5", format!("a download of {} bytes is not the file of {job}", bytes.len()));
                }
            }
            410 if removed() => {}
            503 => {}
            _ => self.red("3", format!("a download of {id}, which is completed, skipped: {is_skipped}: {code}")),
        }
    }

    /// Removes a file that the auditor has a copy of, for the oracle to replay. Only of jobs that are known to be
    /// completed: one whose file has no name yet would be given up.
    async fn remove(&self, random: &mut Random) {
        let mut kept = locked(&self.world.archive).jobs();
        // Loaders come later than others.
        let is_loaded = |lane| lanes::of_loaders().any(|loaded| loaded.name == lane);
        let known = |promise: &Promise| promise.ended.is_some() && !is_loaded(promise.lane);
        kept.retain(|id| locked(&self.world.ledger).promises.get(id).is_some_and(known));
        let Some(id) = random.pick(&kept) else { return };
        let name = match locked(&self.world.ledger).promises.get_mut(&id) {
            Some(promise) => {
                promise.removal_asked = true;
                promise.ended.as_ref().and_then(|(job, _)| job["outputFilename"].as_str()).map(str::to_owned)
            }
            None => return,
        };
        locked(&self.world.archive).removed.extend(name);
        self.call(Method::DELETE, &format!("/exports/{id}"), None).await;
    }
}

/// In hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = ring::digest::digest(&ring::digest::SHA256, bytes);
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An HTTP client in the making, which speaks TLS as the service does: built beside the service, it has no other.
pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // Who comes second finds it installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// A client's patience: a replica may be stopped for longer than that.
pub(crate) fn http() -> Result<reqwest::Client, reqwest::Error> {
    client_builder().timeout(Duration::from_secs(6)).build()
}
