//! A replica of the service: the real binary, started again and again in one folder.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;

use crate::clock::KEPT_FOR;
use crate::cluster::Cluster;
use crate::environment;
use crate::lanes::DATASETS;
use crate::log_bound::MAX_BYTES;
use crate::place::Place;
use crate::proxy::Link;
use crate::receiver::{Receiver, SECRET_ENV};
use crate::report::{Report, locked};

pub(crate) const LEASE: Duration = Duration::from_secs(1);
/// Longest start. It may wait for a recovery of Postgres, or for a replica that was stopped in its own start.
const START: Duration = Duration::from_secs(15);

pub(crate) struct Replica {
    pub(crate) index: usize,
    pub(crate) link: Link,
    pub(crate) store_link: Option<Link>,
    /// URL of the database, through the link.
    url: String,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
    /// The replica's own folder. Replicas have only the place of the files in common.
    folder: PathBuf,
    life: tokio::sync::Mutex<Option<Life>>,
    address: watch::Sender<Option<String>>,
    pids: Mutex<Vec<i32>>,
}

struct Life {
    child: Child,
    pid: Pid,
    signs: watch::Receiver<Signs>,
}

#[derive(Default)]
struct Signs {
    address: Option<String>,
    /// Names of the failpoints that the process has hit.
    hits: Vec<String>,
}

/// Returns a command that runs the service on this database, without our environment. The process ends with ours.
pub(crate) fn command(binary: &Path, url: &str) -> Command {
    let mut command = Command::new(binary);
    command.env_clear().env("PATH", environment("PATH").unwrap_or_default());
    command.env("DATABASE_URL", url).env("LOG_FORMAT", "json");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Replica {
    /// Makes a replica of the service on `cluster`, with its own folder in `folder`.
    pub(crate) async fn new(
        index: usize,
        cluster: &Cluster,
        place: &Place,
        receiver: &Receiver,
        folder: &Path,
    ) -> Result<Replica> {
        let (link, store_link) = (Link::to(cluster.port()).await?, place.link().await?);
        let mut environment = place.environment(store_link.as_ref())?;
        let own = folder.join(format!("replica-{index}"));
        std::fs::create_dir(&own)?;
        std::fs::write(own.join("datasets.toml"), format!("{DATASETS}{}", receiver.block()))?;
        environment.push((SECRET_ENV, Receiver::secret()));
        Ok(Replica {
            index,
            url: cluster.service_url(link.port),
            link,
            store_link,
            environment,
            log: folder.join(format!("replica-{index}.log")),
            folder: own,
            life: tokio::sync::Mutex::new(None),
            address: watch::Sender::new(None),
            pids: Mutex::default(),
        })
    }

    pub(crate) fn links(&self) -> impl Iterator<Item = &Link> {
        [Some(&self.link), self.store_link.as_ref()].into_iter().flatten()
    }

    pub(crate) fn address(&self) -> Option<String> {
        self.address.borrow().clone()
    }

    /// Returns true if a lease's owner has the process id of one of this replica's lives.
    pub(crate) fn is(&self, owner: &str) -> bool {
        locked(&self.pids).iter().any(|pid| Replica::owns(*pid, owner))
    }

    /// Returns the process ids of all its lives, the present one last.
    pub(crate) fn lives(&self) -> Vec<i32> {
        locked(&self.pids).clone()
    }

    pub(crate) fn owns(pid: i32, owner: &str) -> bool {
        owner.split([':', '@', '/']).any(|part| part.parse() == Ok(pid))
    }

    /// Starts the replica and waits until it listens. Restarts a process that ends earlier: it couldn't reach Postgres.
    pub(crate) async fn start(&self, binary: &Path, failpoints: Option<&str>, report: &Arc<Report>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut life = self.spawn(binary, failpoints, report)?;
            let listens = tokio::select! {
                biased;
                signs = life.signs.wait_for(|signs| signs.address.is_some()) => signs.ok().and_then(|signs| signs.address.clone()),
                _ = life.child.wait() => None,
                () = tokio::time::sleep(START) => None,
            };
            if let Some(listens) = listens {
                self.address.send_replace(Some(listens));
                *self.life.lock().await = Some(life);
                return Ok(());
            }
            life.child.kill().await?;
            ensure!(begun.elapsed() < 6 * START, "replica {} doesn't start; its log says why", self.index);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn spawn(&self, binary: &Path, failpoints: Option<&str>, report: &Arc<Report>) -> Result<Life> {
        let mut command = command(binary, &self.url);
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .env("DATASETS", "datasets.toml")
            .env("PORT", "0")
            .env("MANIFESTS", "on")
            .env("LEASE_SECONDS", LEASE.as_secs().to_string())
            // So a job ends even if it meets one fault after the other.
            .env("MAX_ATTEMPTS", "4")
            .env("WORKERS", "3")
            .env("READERS", "3")
            .env("CHANGE_LOG_MAX_BYTES", MAX_BYTES.to_string())
            .envs(["RETAIN_FILES", "RETAIN_JOBS", "CHANGE_LOG_MAX_AGE"].map(|setting| (setting, KEPT_FOR)))
            .envs(failpoints.map(|list| ("FAILPOINTS", list)))
            .current_dir(&self.folder)
            .process_group(0);
        let mut child = command.spawn().with_context(|| format!("can't run {}", binary.display()))?;
        let pid = child.id().context("a process that just began has an id")?.cast_signed();
        locked(&self.pids).push(pid);
        let (seen, signs) = watch::channel(Signs::default());
        let stderr = child.stderr.take().context("it is piped")?;
        tokio::spawn(read_log(stderr, self.log.clone(), seen, Arc::clone(report)));
        Ok(Life { child, pid: Pid::from_raw(pid), signs })
    }

    pub(crate) async fn hits(&self, name: &str, patience: Duration) -> bool {
        let Some(mut signs) = self.life.lock().await.as_ref().map(|life| life.signs.clone()) else { return false };
        let hit = signs.wait_for(|signs| signs.hits.iter().any(|hit| hit == name));
        // An error means that the log has ended, and the process with it.
        matches!(tokio::time::timeout(patience, hit).await, Ok(Ok(_)))
    }

    /// Waits until the process ends. Somebody else must end it.
    pub(crate) async fn dies(&self, patience: Duration) -> Option<ExitStatus> {
        let mut life = self.life.lock().await;
        let ended = tokio::time::timeout(patience, life.as_mut()?.child.wait()).await.ok()?.ok()?;
        *life = None;
        self.address.send_replace(None);
        Some(ended)
    }

    pub(crate) async fn signal(&self, signal: Signal) -> Result<Option<Pid>> {
        let mut life = self.life.lock().await;
        let Some(life) = life.as_mut() else { return Ok(None) };
        if life.child.try_wait()?.is_some() {
            return Ok(None);
        }
        kill(life.pid, signal)?;
        Ok(Some(life.pid))
    }

    /// Kills the process. An earlier end by itself is a violation.
    pub(crate) async fn kill(&self, report: &Report) -> Result<()> {
        self.address.send_replace(None);
        if let Some(mut life) = self.life.lock().await.take() {
            if let Some(status) = life.child.try_wait()? {
                report.red("10", format!("replica {} ended by itself: {status}", self.index));
            }
            life.child.kill().await?;
        }
        Ok(())
    }

    /// Asks the process to end. It must do so with exit code 0 within half a minute.
    pub(crate) async fn stop(&self, report: &Report) -> Result<()> {
        self.address.send_replace(None);
        if self.signal(Signal::SIGTERM).await?.is_none() {
            bail!("replica {} was not running at the end", self.index);
        }
        match self.dies(Duration::from_secs(30)).await {
            Some(status) if status.success() => {}
            other => report.red("10", format!("replica {} after SIGTERM: {other:?}", self.index)),
        }
        Ok(())
    }

    /// Returns the number of open descriptors and the resident memory in KiB, if the system has them.
    pub(crate) async fn size(&self) -> Option<(usize, u64)> {
        let pid = self.life.lock().await.as_ref()?.pid;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some((descriptors, resident.trim().trim_end_matches("kB").trim().parse().ok()?))
    }
}

async fn read_log(stderr: ChildStderr, file: PathBuf, signs: watch::Sender<Signs>, report: Arc<Report>) {
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(file).ok();
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(log) = &mut log {
            let _ = writeln!(log, "{line}");
        }
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            if line.contains("panicked") {
                report.red("defect", line);
            }
            continue;
        };
        if let Some(address) = event["address"].as_str() {
            signs.send_modify(|signs| signs.address = Some(address.to_owned()));
        }
        match event["event"].as_str() {
            Some("failpoint") => {
                let name = event["name"].as_str().unwrap_or_default().to_owned();
                signs.send_modify(|signs| signs.hits.push(name));
            }
            Some("worker_panicked" | "maintenance_panicked" | "deliveries_panicked" | "panic") => {
                report.red("defect", line)
            }
            _ => {}
        }
    }
}

/// A time for which a process was stopped.
#[derive(Clone, Copy)]
pub(crate) struct Stopped {
    pub(crate) pid: Pid,
    pub(crate) from: DateTime<Utc>,
    pub(crate) to: DateTime<Utc>,
}
