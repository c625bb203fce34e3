//! A table of another Postgres that takes exports: from a service, or from a place of files with their manifests.

use std::fs::File;
use std::io::{self, Seek};

use crate::apply::input::{Input, unpacked};
use crate::apply::{Applied, Changes, Error, Target};
use crate::manifest::{Manifest, Source};
use anyhow::Context;
use tokio::time::{Duration, Instant, sleep};

use crate::command::api::Api;
use crate::command::download::{fetch_part, files_of, part_of, require_same};
use crate::command::feed::{Position, Taken, Taker, id_of};
use crate::command::plain::{plain, tell};
use crate::command::view::JobView;

/// The time for which the target is waited for.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// The table, and where it is.
pub(super) struct Mirror {
    target: Target,
    last: Option<Position>,
    source: Option<Source>,
}

impl Mirror {
    pub(super) fn new(target: Target) -> Mirror {
        Mirror { target, last: None, source: None }
    }

    /// Reads where the table is. Another process may have applied exports meanwhile, and so may this one, if the answer was lost.
    pub(super) async fn refresh(&mut self) -> anyhow::Result<()> {
        let found = while_unavailable(async || Ok(self.target.position().await?)).await?;
        self.source = found.as_ref().map(|found| found.source.clone());
        self.last = found.map(|found| Position {
            job_id: found.job,
            number: found.number(),
            digest: found.digest,
            sha256: None,
        });
        Ok(())
    }

    /// Applies an export, again while the target is not available. `open` opens its files, in their order.
    pub(super) async fn apply(
        &mut self,
        manifest: &Manifest,
        open: impl AsyncFn() -> anyhow::Result<Vec<Input>>,
    ) -> anyhow::Result<Taken> {
        let applied = while_unavailable(async || Ok(self.target.apply(manifest, open().await?).await?)).await?;
        match applied {
            Applied::Unfit(why) => return Ok(Taken::Unfit(why)),
            Applied::Done(Changes { written, deleted }, remarks) => {
                remarks.iter().for_each(|remark| tell(remark));
                let (kind, number) = (&manifest.export.export_type, manifest.number);
                outln!("{} {number}  {written} rows written, {deleted} deleted", plain(kind))?;
            }
            Applied::Before => {}
        }
        self.refresh().await?;
        Ok(Taken::Done)
    }
}

/// Calls the target, again while it is not available, for [`RETRY_TIMEOUT`] after the first failure: a load may take longer before it fails.
async fn while_unavailable<T>(mut call: impl AsyncFnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut failing_since = None;
    loop {
        let error = match call().await {
            Err(error) if error.downcast_ref().is_some_and(Error::may_pass) => error,
            done => return done,
        };
        match failing_since {
            None => tell(&format!("{error:#}; trying again for a minute")),
            Some(since) if Instant::now() < since + RETRY_TIMEOUT => {}
            Some(_) => return Err(error),
        }
        failing_since.get_or_insert_with(Instant::now);
        sleep(PAUSE).await;
    }
}

impl Taker for Mirror {
    fn last(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    async fn take(&mut self, api: &Api, export: &JobView) -> anyhow::Result<Taken> {
        let id = id_of(export)?;
        let manifest = api.manifest(id).await?;
        let folder = tempfile::Builder::new().prefix("cdc-export-apply").tempdir().context("a temporary folder")?;
        let files = files_of(export)?;
        let mut parts = Vec::new();
        for file in &files {
            let part = part_of(&folder.path().join(file.plain_name()?), id);
            fetch_part(api, id, file, &part).await?;
            parts.push(File::open(part)?);
        }
        // A process that is killed leaves nothing.
        drop(folder);
        require_same(id, &files, &manifest)?;
        let open = async || {
            let opened = parts.iter().zip(&manifest.export.files).map(|(part, file)| {
                let mut part = part.try_clone()?;
                part.rewind()?;
                unpacked(part, &manifest.export.compression, &file.sha256)
            });
            opened.collect::<io::Result<Vec<_>>>().map_err(Error::Input).map_err(anyhow::Error::from)
        };
        self.apply(&manifest, open).await
    }
}
