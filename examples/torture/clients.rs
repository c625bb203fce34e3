//! The clients request exports, look at them, cancel some, and download and remove files. They record each answer.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::lanes::{self, AD_HOC, AskedBy, LANES, Lane};
use crate::ledger::{Ledger, Promise, exports, lane_of, status};
use crate::random::Random;
use crate::report::locked;
use crate::trial::World;

pub(crate) const CLIENTS: u64 = 6;
/// Largest number of open jobs of a lane, as far as the clients know. It bounds the time of the drain.
pub(crate) const MOST_OPEN: usize = 4;

/// Sends requests until the clients must stop.
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
            8..45 => caller.ask_for(lane, &mut random).await,
            45..50 => drop(caller.look_at("/exports?limit=100").await),
            50..70 => caller.look(lane).await,
            70..76 => caller.watermark(lane).await,
            76..84 => {
                let open = locked(&world.ledger).ids(Promise::is_open);
                if let Some(job) = random.pick(&open) {
                    caller.cancel(&job).await;
                }
            }
            84..92 => caller.fetch(&mut random).await,
            92..95 => caller.remove(&mut random).await,
            _ => {
                let any = locked(&world.ledger).ids(|_| true);
                if let Some(job) = random.pick(&any) {
                    caller.job(&job).await;
                }
            }
        }
    }
}

type Accepted = (String, Vec<&'static str>);

pub(crate) struct Caller<'w> {
    pub(crate) world: &'w World,
    pub(crate) address: String,
    /// The era in which the caller was created. An answer after a restore of the database belongs to another era.
    era: u64,
}

impl<'w> Caller<'w> {
    pub(crate) fn new(world: &'w World, address: String) -> Caller<'w> {
        Caller { world, address, era: world.era() }
    }

    /// Returns the ledger, or `None` if another era has begun.
    pub(crate) fn ledger(&self) -> Option<MutexGuard<'w, Ledger>> {
        let ledger = locked(&self.world.ledger);
        (self.era == self.world.era()).then_some(ledger)
    }

    pub(crate) fn red(&self, invariant: &'static str, what: String) {
        if self.era == self.world.era() {
            self.world.report.red(invariant, what);
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Option<(u16, Value)> {
        let (status, answer) = self.call(Method::GET, path, None).await?;
        Some((status, answer.json().await.ok()?))
    }

    pub(crate) async fn bytes(&self, path: &str) -> Option<(u16, Vec<u8>)> {
        let (status, answer) = self.call(Method::GET, path, None).await?;
        Some((status, answer.bytes().await.ok()?.to_vec()))
    }

    /// Sends a request. Returns `None` after a network error, or after a status that no answer may have: a violation.
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

    /// Requests an export of a lane; mostly, if its consumer has several datasets, a job of some or all of these.
    async fn ask_for(&self, lane: &'static Lane, random: &mut Random) {
        let is_of_several = lane.asked_by == AskedBy::Datasets && random.percent(75);
        let is_of_all = is_of_several && random.percent(20);
        let mut lanes = vec![lane];
        if is_of_several {
            lanes = lanes::of_consumer(lane.consumer).collect();
            random.shuffle(&mut lanes);
            if !is_of_all {
                lanes.truncate(random.between(2, lanes.len() as u64) as usize);
            }
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
        let mut body = if is_of_all {
            json!({ "datasets": "*" })
        } else if is_of_several {
            json!({ "datasets": names })
        } else {
            json!({ "dataset": lane.dataset })
        };
        if random.percent(70) {
            body["skipEmpty"] = json!(true);
        }
        self.submit(kind, lane.consumer, &body).await;
        // The consumer requests a delta again at once, which in a calm table mostly finds nothing.
        let again = if lane.dataset == "calm" { 90 } else { 20 };
        if !is_of_several && open + 1 < MOST_OPEN && random.percent(again) {
            body["skipEmpty"] = json!(true);
            self.submit("delta", lane.consumer, &body).await;
        }
    }

    /// Requests a job twice with one key, like a client that missed the first answer. Both are one job. Returns its id.
    pub(crate) async fn submit(&self, kind: &str, consumer: &str, body: &Value) -> Option<String> {
        let (path, key) = (format!("/exports/{kind}"), uuid::Uuid::new_v4().to_string());
        let once = async || self.post(&path, consumer, Some(&key), body).await?.2;
        let (first, second) = (once().await, once().await);
        if let (Some(first), Some(second)) = (&first, &second)
            && first != second
        {
            self.red("8", format!("two jobs by one key: {first:?} and {second:?}"));
        }
        first.or(second).map(|(job, _)| job)
    }

    /// Requests an export without a consumer: of all rows, or of the rows up to a key.
    async fn submit_ad_hoc(&self, random: &mut Random) {
        let up_to = [None, Some(random.between(1, 2_400))][random.below(2) as usize];
        let filter: Vec<_> = up_to.iter().map(|key| json!({ "column": "id", "op": "lte", "value": key })).collect();
        let body = json!({ "exportType": "full", "filter": filter });
        self.post("/exports", AD_HOC, None, &body).await;
    }

    /// Requests an export. Returns the status, the answer, and the accepted job with its lanes.
    pub(crate) async fn post(
        &self,
        path: &str,
        consumer: &str,
        key: Option<&str>,
        body: &Value,
    ) -> Option<(u16, Value, Option<Accepted>)> {
        let mut request = self.world.http.post(format!("{}{path}", self.address)).json(body);
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        if consumer != AD_HOC {
            request = request.header("X-Consumer-ID", consumer);
        }
        let (status, answer) = self.send(request, &format!("POST {path} of {body}")).await?;
        // A truncated answer is a 202 as well, but its job is unknown.
        let answer = answer.json().await.ok()?;
        let accepted = if status == 202 { Some(self.promised(&answer, consumer, body)?) } else { None };
        Some((status, answer, accepted))
    }

    fn promised(&self, answer: &Value, consumer: &str, body: &Value) -> Option<Accepted> {
        let job = answer["jobId"].as_str()?.to_owned();
        let exports = answer["exports"].as_array().map_or(std::slice::from_ref(body), Vec::as_slice);
        let lane = |export: &Value| lanes::name(consumer, export["dataset"].as_str().unwrap_or_default());
        let lanes: Vec<&str> = exports.iter().filter_map(lane).collect();
        let asked_for = body["datasets"].as_array().map_or(exports.len(), Vec::len);
        let is_of_datasets = !body["datasets"].is_null();
        if lanes.len() != asked_for || lanes.is_empty() || is_of_datasets != answer["exports"].is_array() {
            self.red("api", format!("a job of {body} is {answer}"));
        }
        self.ledger()?.promised(&job, lanes.clone());
        Some((job, lanes))
    }

    pub(crate) async fn look(&self, lane: &Lane) {
        let Lane { name, consumer, dataset, .. } = lane;
        // A query may contain `:` and `@` unescaped.
        let jobs = self.look_at(&format!("/exports?consumer={consumer}&dataset={dataset}&limit=30")).await;
        // 6: The list must be ordered newest first, whatever the clocks say.
        let exports = jobs.iter().flat_map(exports).filter(|export| export["dataset"] == *dataset);
        let numbers: Vec<u64> = exports.filter_map(|export| export["number"].as_u64()).collect();
        if !numbers.is_sorted_by(|newer, older| newer > older) {
            self.red("6", format!("the list of {name} has the numbers {numbers:?}"));
        }
        // A list omits a skipped job that a later one follows. So the client requests such a job by its id.
        let listed = |id: &String| jobs.iter().any(|job| job["jobId"] == id.as_str());
        let of_lane = locked(&self.world.ledger).ids(|promise| promise.lanes.contains(name) && promise.is_open());
        for id in of_lane.iter().filter(|id| !listed(id)) {
            self.job(id).await;
        }
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
            self.gone(id, |_| true);
        }
        let job = answer.json::<Value>().await.ok().filter(|_| status == 200)?;
        self.ledger()?.told(&job, asked, &self.world.report);
        Some(job)
    }

    /// Records that the job has no exports of these lanes, or does not exist. The oracle judges whether that may be.
    fn gone(&self, id: &str, is_gone: impl Fn(&str) -> bool) {
        if let Some(promise) = self.ledger().as_mut().and_then(|ledger| ledger.promises.get_mut(id)) {
            promise.gone.extend(promise.lanes.iter().filter(|lane| is_gone(lane)));
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

    /// Downloads a completed export's file: the whole file or an error, never a part. A skipped export has none.
    async fn fetch(&self, random: &mut Random) {
        let done: Vec<Value> = {
            let ledger = locked(&self.world.ledger);
            let ended = ledger.promises.values().filter_map(|promise| promise.ended.as_ref());
            ended.flat_map(|(job, _)| exports(job)).filter(|export| export["status"] == "completed").collect()
        };
        let Some(export) = random.pick(&done) else { return };
        let (Some(id), Some(lane)) = (export["jobId"].as_str(), lane_of(&export)) else { return };
        let is_skipped = status(&export) == "skipped";
        let path = self.path_of_file(id, lane, "/download");
        let Some((code, answer)) = self.call(Method::GET, &path, None).await else { return };
        match code {
            404 if is_skipped => self.gone(id, |gone| gone == lane),
            409 if is_skipped => {
                let Ok(problem) = answer.json::<Value>().await else { return };
                if problem["code"] != "no_file" {
                    self.red("api", format!("a download of {id}, which was skipped: {problem}"));
                }
            }
            200 if !is_skipped => {
                let Ok(bytes) = answer.bytes().await else { return };
                if export["bytesWritten"] != bytes.len() || export["sha256"] != sha256(&bytes).as_str() {
                    self.red("5", format!("a download of {} bytes is not the file of {export}", bytes.len()));
                }
            }
            410 if self.world.was_removed(id, lane) => {}
            503 => {}
            _ => self.red("3", format!("a download of {id}, which is completed, skipped: {is_skipped}: {code}")),
        }
    }

    /// Removes a file that the auditor has a copy of, for the oracle to replay. The job must be known to have ended:
    /// the service would give up a file that has no name yet.
    async fn remove(&self, random: &mut Random) {
        let mut kept = locked(&self.world.archive).exports();
        // Loaders fetch files later than other consumers.
        kept.retain(|(id, lane)| {
            let is_loaded = lanes::of_loaders().any(|loaded| loaded.name == lane);
            let has_ended = |promise: &Promise| promise.ended.is_some();
            !is_loaded && locked(&self.world.ledger).promises.get(id).is_some_and(has_ended)
        });
        let Some((id, lane)) = random.pick(&kept) else { return };
        let name = match locked(&self.world.ledger).promises.get_mut(&id) {
            Some(promise) => {
                promise.removal_asked.extend(promise.lanes.iter().filter(|its| **its == lane));
                promise.told(&lane).and_then(|export| export["outputFilename"].as_str().map(str::to_owned))
            }
            None => return,
        };
        locked(&self.world.archive).removed.extend(name);
        self.call(Method::DELETE, &self.path_of_file(&id, &lane, ""), None).await;
    }

    /// Returns the path of a call about the file of an export. The path names the dataset if the job has several.
    fn path_of_file(&self, id: &str, lane: &str, call: &str) -> String {
        let several = |promise: &Promise| promise.lanes.len() > 1;
        let is_one_of_several = locked(&self.world.ledger).promises.get(id).is_some_and(several);
        match lane.split_once('/').filter(|_| is_one_of_several) {
            Some((_, dataset)) => format!("/exports/{id}{call}?dataset={dataset}"),
            None => format!("/exports/{id}{call}"),
        }
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// Returns an HTTP client builder with the service's TLS provider. A program built beside the service has no other.
pub(crate) fn client_builder() -> reqwest::ClientBuilder {
    // An error means that another caller has already installed the provider.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}

/// Returns a client that waits for at most 6 s. A replica may be stopped for longer.
pub(crate) fn http() -> Result<reqwest::Client, reqwest::Error> {
    client_builder().timeout(Duration::from_secs(6)).build()
}
