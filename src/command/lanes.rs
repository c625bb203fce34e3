//! The lanes of a consumer that `pull` and `apply` read: some of them at the same time, in rounds until a signal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, value_parser};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use crate::command::signals::stop_on_signal;
use crate::command::terminal::{Terminal, is_closed_stdout};
use crate::command::words::pause;
use cdc_client::{Api, DatasetView, ExportRequest, LaneGroup, Observer, Turn};
use cdc_manifest::{ConsumerId, PlainName};
use pg_rows::encoding::Encoding;
use pg_rows::export_type::ExportType;
use pg_session::failure::chain;

/// The number of jobs that a round submits if the export of one dataset ends each of them.
const MAX_JOBS: u32 = 10;

/// The options that choose the lanes and the rounds.
#[derive(Args)]
pub(super) struct LaneOptions {
    /// The consumer whose exports to read
    #[arg(long)]
    pub(super) consumer: ConsumerId,
    /// The dataset whose exports to read. Can be given several times [default: users, or the only one there is]
    #[arg(long)]
    dataset: Vec<String>,
    /// Read the exports of all datasets that are ready. Each round asks the service for its datasets
    #[arg(long, conflicts_with = "dataset")]
    all_datasets: bool,
    /// A dataset that is not read. Can be given several times
    #[arg(long, value_name = "NAME", requires = "all_datasets", conflicts_with = "dataset")]
    exclude: Vec<String>,
    /// The number of datasets that are read at the same time, from 1 to 16
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u8).range(1..=16))]
    jobs: u8,
    /// Go on from another or a restored database, by full exports. Otherwise such a source is refused
    #[arg(long, conflicts_with = "every")]
    pub(super) adopt: bool,
    /// Repeat until SIGTERM, with this pause between rounds, such as 5m
    #[arg(long, value_name = "TIME", value_parser = pause)]
    pub(super) every: Option<Duration>,
}

struct RoundDatasets {
    ready: BTreeSet<String>,
    /// The datasets that are left out and have copies, which get older.
    stale: BTreeSet<String>,
}

/// The job that was submitted for a round. The lanes of other datasets submit their own exports.
#[derive(Default)]
struct RoundJob {
    /// The datasets that it exports.
    datasets: BTreeSet<String>,
    /// The datasets whose exports ended earlier jobs. Each returns to the job once a round of its own succeeds.
    apart: BTreeSet<String>,
}

pub(super) struct LaneTask {
    pub(super) dataset: String,
    pub(super) terminal: Arc<Terminal>,
    /// True if the command was asked for several datasets, or for all.
    pub(super) is_one_of_several: bool,
    /// True if the lane's export was submitted already, in the job of the round.
    pub(super) is_submitted: bool,
    pub(super) group: Arc<LaneGroup>,
    /// The right to read the lane now.
    pub(super) turn: Turn,
}

impl LaneTask {
    /// Returns the folder of the lane's files: one of its own within `folder` if there may be other lanes.
    pub(super) fn folder_in(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        if !self.is_one_of_several {
            return Ok(folder.to_owned());
        }
        let name: PlainName = self.dataset.parse().context("the dataset can't have a folder of its own")?;
        let own = name.within(folder);
        let is_other = fs::symlink_metadata(&own).is_ok_and(|found| !found.is_dir());
        ensure!(!is_other, "{} is a link or a file: a folder is expected", own.display());
        Ok(own)
    }
}

impl LaneOptions {
    pub(super) fn are_several(&self) -> bool {
        self.all_datasets || self.dataset.iter().any(|name| *name != self.dataset[0])
    }

    /// Reads all lanes with `read`, and with `--every` again after each pause, until a signal stops it. `implied`
    /// returns the dataset if the options name none, and `recorded` the datasets that have copies. Submits the
    /// requested exports of several lanes as one job.
    pub(super) async fn run(
        self,
        api: Option<&Api>,
        request: Option<(ExportType, Encoding)>,
        terminal: &Arc<Terminal>,
        implied: impl AsyncFnOnce() -> anyhow::Result<String>,
        recorded: impl AsyncFn() -> anyhow::Result<BTreeSet<String>>,
        read: impl AsyncFn(LaneTask) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let stopped = stop_on_signal()?;
        let rounds = async {
            let mut named: BTreeSet<String> = self.dataset.iter().cloned().collect();
            if named.is_empty() && !self.all_datasets {
                named.insert(implied().await?);
            }
            let (mut unready, mut job) = (BTreeMap::new(), RoundJob::default());
            loop {
                let round = async {
                    let datasets = match api.filter(|_| self.all_datasets) {
                        // If the copies can't be read, each dataset has that error.
                        Some(api) => {
                            self.ready_datasets(api, recorded().await.unwrap_or_default(), &mut unready).await?
                        }
                        None => RoundDatasets { ready: named.clone(), stale: BTreeSet::new() },
                    };
                    let submitted = match (api, request.filter(|_| !self.adopt)) {
                        (Some(api), Some(request)) => self.submit_job(api, request, &datasets.ready, &mut job).await,
                        _ => Ok(()),
                    };
                    // Before any lane is listed.
                    let newest = match api.filter(|_| datasets.ready.len() > 1) {
                        Some(api) => Some(api.newest_job(&self.consumer).await?.unwrap_or_default()),
                        None => None,
                    };
                    let group = LaneGroup::new(datasets.ready.clone(), self.jobs, newest);
                    self.round(&datasets, &mut job, group, terminal, &read).await.and(submitted)
                };
                let done = round.await;
                let Some(every) = self.every else { return done };
                if let Err(error) = done {
                    terminal.notice(&chain(error.as_ref()));
                }
                sleep(every).await;
            }
        };
        tokio::select! {
            done = rounds => done?,
            () = stopped.cancelled() => if self.every.is_none() {
                bail!("interrupted: run the command again to continue from here")
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Submits a job of all datasets, and waits for its end. If the export of one dataset ends the job, submits another
    /// job without it. The job has no datasets if none can be completed.
    ///
    /// # Errors
    /// If the service's output folder or bucket takes no file. The job keeps its datasets, so that their lanes don't
    /// submit exports of their own.
    async fn submit_job(
        &self,
        api: &Api,
        (export_type, encoding): (ExportType, Encoding),
        ready: &BTreeSet<String>,
        job: &mut RoundJob,
    ) -> anyhow::Result<()> {
        let wanted = ExportRequest::new(Some(self.consumer.clone()), export_type, encoding);
        let wanted = ExportRequest { skip_empty: Some(true), ..wanted };
        job.datasets = ready.difference(&job.apart).cloned().collect();
        for _ in 0..MAX_JOBS {
            if job.datasets.len() < 2 {
                break;
            }
            let names: Vec<_> = job.datasets.iter().map(String::as_str).collect();
            let ended = async { api.ended_job(api.submit_datasets(&wanted, &names).await?).await };
            let (why, failed) = match ended.await {
                Ok(ended) => match (ended.failure(), ended.completed()) {
                    (None, _) => return Ok(()),
                    // The lanes of the lost files ask for full exports.
                    (Some(_), completed) if !completed.is_empty() => {
                        job.datasets.retain(|dataset| completed.contains(&**dataset));
                        return Ok(());
                    }
                    (Some(why), _) if ended.is_of_destination() => bail!("{why}"),
                    (Some(why), _) => (why, ended.failed_dataset().map(str::to_owned)),
                },
                Err(error) if error.has_code("output_missing") => return Err(error.into()),
                Err(error) => (error.to_string(), None),
            };
            let Some(failed) = failed.and_then(|failed| job.datasets.take(&failed)) else {
                let all = job.datasets.len();
                let text = format!("{why}: the {all} datasets are not exported together, but each by itself");
                api.observer().notice(&text);
                break;
            };
            let others = job.datasets.len();
            api.observer().notice(&format!("{why}: the other {others} datasets are exported without it"));
            job.apart.insert(failed);
        }
        job.datasets.clear();
        Ok(())
    }

    /// Reads each lane once.
    ///
    /// # Errors
    /// The error of the only lane. If there are several, the names of those that failed, each of whose errors has been
    /// printed. A dataset whose copy gets older has failed.
    async fn round(
        &self,
        datasets: &RoundDatasets,
        job: &mut RoundJob,
        group: LaneGroup,
        terminal: &Arc<Terminal>,
        read: &impl AsyncFn(LaneTask) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let is_one_of_several = self.are_several();
        let RoundDatasets { ready, stale } = datasets;
        let all = ready.len() + stale.len();
        let group = Arc::new(group);
        let RoundJob { datasets: submitted, apart } = job;
        let read = async |dataset: String| {
            let shown = terminal.of_dataset(&dataset);
            let terminal = Arc::clone(&shown);
            let (of, turn) = (Arc::clone(&group), group.turn().await);
            let is_submitted = submitted.contains(&dataset);
            let task =
                LaneTask { dataset: dataset.clone(), terminal, is_one_of_several, is_submitted, group: of, turn };
            let done = read(task).await;
            group.has_ended(&dataset, done.is_err()).await;
            (dataset, shown, done)
        };
        let mut lanes: FuturesUnordered<_> = ready.iter().cloned().map(read).collect();
        let mut failed = stale.clone();
        while let Some((dataset, shown, done)) = lanes.next().await {
            match done {
                Ok(()) => drop(apart.remove(&dataset)),
                Err(error) if !is_one_of_several || is_closed_stdout(&error) => return Err(error.context(dataset)),
                Err(error) => {
                    // The dataset that stopped the job says why.
                    let cause = error.downcast_ref().map(cdc_client::Error::root);
                    // Its exports would be made in vain.
                    let is_in_vain = |why: &str| why.starts_with("another_source:") || why.starts_with("older:");
                    if matches!(cause, Some(cdc_client::Error::Refused(why)) if is_in_vain(why)) {
                        apart.insert(dataset.clone());
                    }
                    if !matches!(cause, Some(cdc_client::Error::JobStopped)) {
                        shown.notice(&chain(error.as_ref()));
                    }
                    failed.insert(dataset);
                }
            }
        }
        let names = failed.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        ensure!(failed.is_empty(), "{} of {all} datasets failed: {names}", failed.len());
        Ok(())
    }

    /// Returns the datasets that are ready. Warns of the others, unless `unready` has their problems from the last
    /// call. Of those are the datasets of `recorded`, which have copies, and are no datasets any more. Such a copy is
    /// stale only if all copies are to go on from another database.
    async fn ready_datasets(
        &self,
        api: &Api,
        recorded: BTreeSet<String>,
        unready: &mut BTreeMap<String, String>,
    ) -> anyhow::Result<RoundDatasets> {
        let (ready, others): (Vec<_>, Vec<_>) = api.datasets().await?.into_iter().partition(|dataset| dataset.ready);
        let mut ready: BTreeSet<_> = ready.into_iter().map(|dataset| dataset.name).collect();
        // The rows of a partition are in the dataset of its table.
        let others = others.into_iter().filter(|dataset| dataset.reason.as_deref() != Some("partition"));
        let others = others.map(|DatasetView { name, problems, .. }| (name, problems.join("; ")));
        let others: BTreeMap<_, _> = others.collect();
        let mut stale: BTreeSet<_> = recorded.difference(&ready).cloned().collect();
        let gone = "it is no dataset any more, and its copy stays as it is";
        let gone: BTreeMap<_, _> = stale.iter().map(|name| (name.clone(), gone.to_owned())).collect();
        stale.retain(|name| self.adopt || others.contains_key(name));
        let before = std::mem::replace(unready, gone.into_iter().chain(others).collect());
        for name in &self.exclude {
            ready.remove(name);
            stale.remove(name);
            unready.remove(name);
        }
        for (name, problem) in &*unready {
            if before.get(name) != Some(problem) {
                api.observer().notice(&format!("warning: {name} is left out, because it is not ready: {problem}"));
            }
        }
        ensure!(!ready.is_empty(), "no dataset is ready: nothing was read");
        Ok(RoundDatasets { ready, stale })
    }
}
