//! A consumer's lane as a service shows it to whoever takes its exports one after the other: those that come after the last one that was
//! taken, and a new one where there are none.

use crate::job::{After, ConsumerId, ExportType, FailureCode, Filter, JobId, Request, Status};
use crate::manifest::Source;
use anyhow::{Context, bail, ensure};
use pg_rows::encoding::Encoding;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use uuid::Uuid;

use crate::command::answer::Error;
use crate::command::api::{Api, Refusal, SHOWN};
use crate::command::download::is_gone;
use crate::command::export::show;
use crate::command::plain::tell;
use crate::command::progress::bar_of_rows;
use crate::command::view::JobView;

/// The number of requests for an export if other exports come first.
const TRIES: u32 = 5;

/// The last export that was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Position {
    pub(super) job_id: Uuid,
    /// Its place in the lane.
    pub(super) number: u64,
    /// The digest that the manifest of the next export names.
    pub(super) digest: String,
    /// The SHA-256 of its only file.
    pub(super) sha256: Option<String>,
}

impl Position {
    /// The position of whoever has taken this export.
    pub(super) fn of(job: &JobView) -> anyhow::Result<Position> {
        let not_published = || format!("the export {} is not published", job.job_id);
        Ok(Position {
            job_id: id_of(job)?.as_uuid(),
            number: job.number.with_context(not_published)?,
            digest: job.digest.as_ref().with_context(not_published)?.to_string(),
            sha256: job.sha256.as_ref().map(ToString::to_string),
        })
    }

    fn after(&self) -> After {
        After::Export { job: self.job_id.into(), sha256: Some(self.sha256.as_ref().unwrap_or(&self.digest).clone()) }
    }
}

pub(super) fn id_of(job: &JobView) -> anyhow::Result<JobId> {
    let id: Uuid = job.job_id.parse().context("an export has no id")?;
    Ok(id.into())
}

/// Takes exports, and keeps where it is.
pub(super) trait Taker {
    /// The last export that it has taken.
    fn last(&self) -> Option<&Position>;

    /// The database that they are from, if that is known.
    fn source(&self) -> Option<&Source>;

    /// Takes the next one.
    async fn take(&mut self, api: &Api, export: &JobView) -> anyhow::Result<Taken>;
}

/// The outcome of an export.
#[derive(Debug)]
pub(super) enum Taken {
    Done,
    /// It can't be taken, for this reason, and none after it but a full one.
    Unfit(String),
}

/// The exports of a lane.
pub(super) struct Feed<'b> {
    pub(super) api: &'b Api,
    pub(super) consumer: ConsumerId,
    pub(super) dataset: String,
    /// The type that is asked for if there is nothing to take; `None`: nothing is.
    pub(super) request: Option<ExportType>,
    pub(super) encoding: Encoding,
    /// True if the service is told of each export that was taken.
    pub(super) acks: bool,
}

/// The outcome of a request.
enum Asked {
    /// The export has completed.
    Done,
    /// Somebody else's came first.
    Overtaken,
    /// Only a full export helps, for this reason.
    Broken(String),
}

/// The exports that can be taken.
enum Next {
    Exports(Vec<JobView>),
    /// Only a full export helps, for this reason.
    Broken(String),
}

impl Feed<'_> {
    /// Gives the taker all that is there for it, oldest first; then asks for another export, if it should, and gives it that. Whenever it is
    /// dropped meanwhile, another call goes on from what the taker has.
    pub(super) async fn round(&self, taker: &mut impl Taker) -> anyhow::Result<()> {
        let mut asked = None;
        // A process that was killed may have taken one and not said so. If the service doesn't know it any more, what follows tells.
        let _ = self.acknowledge(taker).await;
        loop {
            let broken = match self.next(taker.last()).await? {
                Next::Exports(exports) if exports.is_empty() => match (self.request, asked) {
                    (None, _) | (_, Some(_)) => return Ok(()),
                    (Some(wanted), None) => match self.ask(wanted, taker.last()).await? {
                        Asked::Done => {
                            asked = Some(wanted);
                            None
                        }
                        Asked::Overtaken => None,
                        Asked::Broken(why) => Some(why),
                    },
                },
                Next::Exports(exports) => self.give(taker, &exports).await?,
                Next::Broken(why) => Some(why),
            };
            let Some(why) = broken else { continue };
            if self.request.is_none() {
                bail!("{why}: only a full export goes on from here, which --request asks for");
            }
            if asked == Some(ExportType::Full) {
                bail!("{why}, although a full export was made just now");
            }
            self.require_source(taker).await?;
            tell(&format!("{why}: asking for a full export"));
            asked = Some(ExportType::Full);
            if let Asked::Broken(why) = self.ask(ExportType::Full, None).await? {
                bail!("a full export was refused: {why}");
            }
            self.give_newest_full(taker).await?;
        }
    }

    /// Refuses to ask for a full export that would not be taken: the service has another database, as its last export says.
    async fn require_source(&self, taker: &impl Taker) -> anyhow::Result<()> {
        let Some(had) = taker.source() else { return Ok(()) };
        let Some(newest) = self.completed(None, 1).await?.into_iter().next() else { return Ok(()) };
        let found = self.api.manifest(id_of(&newest)?).await?.export.source;
        ensure!(
            *had == found,
            "another_source: the exports until now are from the database {} of cluster {}, and the service has the database {} of cluster {}: \
             another source needs another place",
            had.database,
            had.cluster,
            found.database,
            found.cluster
        );
        Ok(())
    }

    /// Returns why only a full export goes on from here, if that is so.
    async fn give(&self, taker: &mut impl Taker, exports: &[JobView]) -> anyhow::Result<Option<String>> {
        for export in exports {
            let Taken::Unfit(why) = self.hand(taker, export).await? else {
                let is_there = taker.last().is_some_and(|last| last.job_id.to_string() == *export.job_id);
                // Another process has taken others meanwhile: what comes next is to be asked anew.
                if is_there { continue } else { return Ok(None) }
            };
            // Perhaps a later full export makes up for it.
            let full = self.newest_full().await?.filter(|full| full.number > export.number);
            let Some(full) = full else { return Ok(Some(why)) };
            tell(&format!("{why}: going on from the full export {}", full.job_id));
            return Ok(match self.hand(taker, &full).await? {
                Taken::Done => None,
                Taken::Unfit(why) => Some(why),
            });
        }
        Ok(None)
    }

    async fn give_newest_full(&self, taker: &mut impl Taker) -> anyhow::Result<()> {
        let full = self.newest_full().await?.context("the full export isn't there")?;
        match self.hand(taker, &full).await? {
            Taken::Done => Ok(()),
            Taken::Unfit(why) => bail!("{why}, although it was made just now"),
        }
    }

    async fn hand(&self, taker: &mut impl Taker, export: &JobView) -> anyhow::Result<Taken> {
        let taken = match taker.take(self.api, export).await {
            Err(error) if is_gone(&error) => {
                return Ok(Taken::Unfit(format!("the service has the files of the export {} no more", export.job_id)));
            }
            taken => taken?,
        };
        if matches!(taken, Taken::Done) {
            self.acknowledge(taker).await?;
        }
        Ok(taken)
    }

    async fn acknowledge(&self, taker: &impl Taker) -> anyhow::Result<()> {
        match taker.last() {
            Some(last) if self.acks => self.api.ack(last.job_id.into()).await,
            _ => Ok(()),
        }
    }

    async fn next(&self, last: Option<&Position>) -> anyhow::Result<Next> {
        let Some(last) = last else { return self.first().await };
        let (api, after) = (self.api, last.job_id.into());
        match api.published_after(&self.consumer, &self.dataset, after, SHOWN).await {
            Ok(exports) => Ok(Next::Exports(exports)),
            Err(error) if is_restored(&error) => Ok(Next::Broken(format!("{error:#}"))),
            Err(error) => Err(error),
        }
    }

    /// The exports of a lane for whoever has none of it: from the newest full one on, or all of a lane that has none.
    async fn first(&self) -> anyhow::Result<Next> {
        if let Some(full) = self.newest_full().await? {
            return Ok(Next::Exports(vec![full]));
        }
        let mut all = self.completed(None, u32::MAX - 1).await?;
        all.reverse();
        match all.first() {
            Some(first) if first.number != Some(1) => {
                Ok(Next::Broken("the lane's first exports are forgotten, and it has no full one".to_owned()))
            }
            _ => Ok(Next::Exports(all)),
        }
    }

    async fn newest_full(&self) -> anyhow::Result<Option<JobView>> {
        Ok(self.completed(Some(ExportType::Full), 1).await?.into_iter().next())
    }

    /// The lane's completed exports, newest first.
    async fn completed(&self, export_type: Option<ExportType>, limit: u32) -> anyhow::Result<Vec<JobView>> {
        let filter = Filter {
            consumer: Some(self.consumer.clone()),
            dataset: Some(self.dataset.clone()),
            status: Some(Status::Completed),
            export_type,
            ..Filter::default()
        };
        self.api.jobs(&filter, limit).await
    }

    /// Asks for an export behind this one, and waits until it has ended.
    async fn ask(&self, export_type: ExportType, last: Option<&Position>) -> anyhow::Result<Asked> {
        let is_full = export_type == ExportType::Full;
        // A full one goes on from anywhere.
        let after = (!is_full).then(|| last.map_or(After::Nothing, Position::after));
        let consumer = Some(self.consumer.clone());
        let request = Request { after, ..Request::new(consumer, self.dataset.clone(), export_type, self.encoding) };
        for _ in 0..TRIES {
            let refused = match self.api.submit(&request).await {
                Ok(id) => return self.ended(id).await,
                Err(error) => error,
            };
            let Some(Refusal { code, open, .. }) = refused.downcast_ref() else { return Err(refused) };
            match (&**code, open.as_slice()) {
                ("database_restored", _) => return Ok(Asked::Broken(format!("{refused:#}"))),
                ("out_of_step", []) => return Ok(Asked::Overtaken),
                ("out_of_step", [open, ..]) => drop(self.wait(*open).await?),
                _ => return Err(refused),
            }
        }
        bail!("other exports of the consumer keep coming first")
    }

    async fn ended(&self, id: JobId) -> anyhow::Result<Asked> {
        let job = self.wait(id).await?;
        let failure = job.error.as_ref().filter(|_| job.has_status(Status::Failed));
        match failure {
            _ if job.has_status(Status::Completed) => Ok(Asked::Done),
            Some(error) if &*error.code == FailureCode::FullExportNeeded.as_str() => {
                Ok(Asked::Broken(error.detail.to_string()))
            }
            Some(error) => bail!("the export {id} failed: {}: {}", error.code, error.detail),
            None => bail!("the export {id} was {}", job.status),
        }
    }

    /// Waits until a job has ended.
    async fn wait(&self, id: JobId) -> anyhow::Result<JobView> {
        let (bar, mut printed_at) = (bar_of_rows(100).with_message(id.to_string()), Instant::now());
        loop {
            let job = self.api.poll(id).await?;
            if job.has_ended() {
                bar.finish_and_clear();
                return Ok(job);
            }
            show(&bar, &job, &mut printed_at);
        }
    }
}

fn is_restored(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Error>().is_some_and(|error| error.is_of("database_restored"))
}
