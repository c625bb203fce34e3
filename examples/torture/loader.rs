//! Loaders: clients that load each export of their lane once, in order. Each request names the export that was loaded
//! last. Two loaders share a lane and know nothing of each other. They are killed now and then, and remember what they
//! had recorded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::clients::{Caller, MOST_OPEN, sha256};
use crate::era::Delivered;
use crate::lanes::{self, Lane};
use crate::ledger::{self, Promise, is_terminal};
use crate::patience::eventually;
use crate::random::Random;
use crate::report::locked;
use crate::trial::World;

const LOADERS: usize = 2;
/// Longest time that a loader waits for its export.
const PATIENCE: Duration = Duration::from_secs(20);

/// The exports that a loader has recorded together with their rows, in the order of loading.
pub(crate) type Recorded = Vec<Delivered>;

pub(crate) fn all() -> impl Iterator<Item = (&'static Lane, usize)> {
    lanes::of_loaders().flat_map(|lane| (0..LOADERS).map(move |which| (lane, which)))
}

/// Loads exports until the clients must stop.
pub(crate) async fn load(world: Arc<World>, lane: &'static Lane, which: usize) {
    let of = lanes::of_loaders().position(|other| other.name == lane.name).unwrap_or_default();
    let mut loader = Loader::new(&world, lane, which, Random::new(world.seed, (250 + LOADERS * of + which) as u64));
    while world.asking.load(Ordering::SeqCst) {
        let rest = loader.random.millis(100, 900);
        tokio::time::sleep(rest).await;
        loader.round().await;
    }
}

/// Loads the available exports until the loader is in step. No faults happen any more.
pub(crate) async fn catch_up(world: &World, lane: &'static Lane, which: usize) -> Result<()> {
    let mut loader = Loader::new(world, lane, which, Random::new(world.seed, 290));
    loader.mortal = false;
    let is_in_step = async || Ok(loader.round().await == Round::InStep);
    ensure!(
        eventually(3 * PATIENCE, is_in_step).await?,
        "a loader of {} doesn't come to the end of its lane",
        lane.name
    );
    Ok(())
}

struct Loader<'w> {
    world: &'w World,
    lane: &'static Lane,
    which: usize,
    random: Random,
    /// The loader was told to make a full export. A killed loader forgets this, and is told again.
    wants_full: bool,
    mortal: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    /// The requested export was loaded, or was skipped: nothing else was left to load.
    InStep,
    Behind,
}

struct Standing {
    era: u64,
    last: Option<Delivered>,
}

impl<'w> Loader<'w> {
    fn new(world: &'w World, lane: &'static Lane, which: usize, random: Random) -> Loader<'w> {
        Loader { world, lane, which, random, wants_full: false, mortal: true }
    }

    fn is_killed(&mut self, chance: u64) -> bool {
        let killed = self.mortal && self.random.percent(chance);
        self.wants_full &= !killed;
        killed
    }

    async fn round(&mut self) -> Round {
        let listening: Vec<String> = self.world.replicas.iter().filter_map(|replica| replica.address()).collect();
        let Some(address) = self.random.pick(&listening) else { return Round::Behind };
        let caller = Caller::new(self.world, address);
        let standing = {
            let recorded = locked(&self.world.loaded);
            let last = recorded.get(&(self.lane.name, self.which)).and_then(|loaded| loaded.last().cloned());
            Standing { era: self.world.era(), last }
        };
        if self.mortal && self.random.percent(20) {
            self.list(&caller, &standing).await;
            return Round::Behind;
        }
        // Jobs that the loader requested before it was killed are still open.
        if self.mortal && locked(&self.world.ledger).open(self.lane.name) >= MOST_OPEN {
            caller.look(self.lane).await;
            return Round::Behind;
        }
        self.ask(&caller, &standing).await
    }

    /// Loads the exports after the last one from the list, without requesting a new one.
    async fn list(&mut self, caller: &Caller<'_>, standing: &Standing) {
        let Some((last, _)) = &standing.last else { return };
        let path = format!("/exports?consumer={}&dataset={}&after={last}", self.lane.consumer, self.lane.dataset);
        let Some((200, page)) = caller.get(&path).await else { return };
        for job in page["items"].as_array().into_iter().flatten() {
            if !self.load(caller, standing, job).await {
                return;
            }
        }
    }

    async fn ask(&mut self, caller: &Caller<'_>, standing: &Standing) -> Round {
        let nothing_yet = standing.last.is_none() && self.random.percent(50);
        let kind = if self.wants_full || nothing_yet { "full" } else { "delta" };
        let mut body = json!({ "dataset": self.lane.dataset, "after": null });
        if self.random.percent(70) {
            body["skipEmpty"] = json!(true);
        }
        if let Some((id, hash)) = &standing.last {
            body["after"] = json!(id);
            body["afterSha256"] = json!(hash);
        }
        let (path, key) = (format!("/exports/{kind}"), uuid::Uuid::new_v4().to_string());
        let Some((status, answer, _)) = caller.post(&path, self.lane.consumer, Some(&key), &body).await else {
            return Round::Behind;
        };
        match (status, answer["code"].as_str()) {
            (202, _) => {
                let Some(job) = self.wait(caller, &answer).await else { return Round::Behind };
                if job["error"]["code"] == "full_export_needed" {
                    self.wants_full = true;
                }
                // A skipped export means that there is nothing to load.
                let is_loaded = match ledger::status(&job) {
                    "skipped" => true,
                    "completed" => self.load(caller, standing, &job).await,
                    _ => false,
                };
                if is_loaded {
                    return Round::InStep;
                }
            }
            (409, Some("out_of_step")) if kind != "full" => {
                for job in answer["jobs"].as_array().into_iter().flatten() {
                    if job["status"] != "completed" || !self.load(caller, standing, job).await {
                        break;
                    }
                }
            }
            (409, Some("database_restored")) if kind != "full" => self.wants_full = true,
            (503 | 429, _) => {}
            other => {
                let line = format!("a loader's {kind} of {} after {:?}: {other:?}", self.lane.name, standing.last);
                self.world.report.red("api", line);
            }
        }
        Round::Behind
    }

    async fn wait(&mut self, caller: &Caller<'_>, answer: &Value) -> Option<Value> {
        let id = answer["jobId"].as_str()?;
        let begun = Instant::now();
        loop {
            if self.is_killed(5) || begun.elapsed() > PATIENCE {
                return None;
            }
            // The other loader's export was skipped after this one, so this one is gone.
            if locked(&self.world.ledger).promises.get(id).is_some_and(Promise::is_gone) {
                return None;
            }
            if let Some(job) = caller.job(id).await.filter(is_terminal) {
                return Some(job);
            }
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
    }

    /// Fetches an export's file and records the export. Returns false if the export was not recorded.
    async fn load(&mut self, caller: &Caller<'_>, standing: &Standing, job: &Value) -> bool {
        let (Some(id), Some(hash)) = (job["jobId"].as_str(), job["sha256"].as_str()) else {
            self.world.report.red("api", format!("an export to load without id or hash: {job}"));
            return false;
        };
        let Some((200, bytes)) = caller.bytes(&format!("/exports/{id}/download")).await else { return false };
        if sha256(&bytes) != hash {
            self.world.report.red("5", format!("a loader got {} bytes that are not the file of {job}", bytes.len()));
            return false;
        }
        // A killed loader loses what it hasn't recorded yet.
        if self.is_killed(10) {
            return false;
        }
        let Ok(id) = id.parse() else { return false };
        let mut recorded = locked(&self.world.loaded);
        // The database was restored meanwhile. The loader dies first, so that the oracle knows the era of each record.
        if self.world.era() != standing.era {
            return false;
        }
        let loaded = &mut recorded.entry((self.lane.name, self.which)).or_default();
        if loaded.iter().any(|(other, other_hash)| *other == id && other_hash == hash) {
            self.world.report.red("1", format!("{id} was given to a loader of {} that has it", self.lane.name));
        }
        loaded.push((id, hash.to_owned()));
        true
    }
}
