//! A table of another Postgres that takes exports: from a service, or from a place of files with their manifests.

use std::fs::File;
use std::io::{self, Seek};

use crate::apply::input::Input;
use crate::apply::{Applied, Changes, Error, Target};
use crate::manifest::{Manifest, Source};
use anyhow::{Context, anyhow};
use tokio::time::{Duration, Instant, sleep};

use crate::command::backend::Backend;
use crate::command::download::{fetch_part, files_of, is_gone, part_of};
use crate::command::feed::{Position, Taken, Taker, id_of};
use crate::command::plain::{plain, tell};
use crate::command::view::JobView;

/// How long the target is waited for.
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
        let begun = Instant::now();
        let mut is_told = false;
        let found = loop {
            match self.target.position().await {
                Err(error) if error.may_pass() && begun.elapsed() < RETRY_TIMEOUT => {
                    if !is_told {
                        tell(&format!("{:#}; trying again for a minute", anyhow::Error::from(error)));
                    }
                    is_told = true;
                    sleep(PAUSE).await;
                }
                found => break found?,
            }
        };
        self.source = found.as_ref().map(|found| found.source().clone());
        self.last = found.map(|found| Position {
            job_id: found.job,
            number: Some(found.number),
            digest: Some(found.digest),
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
        // A load may take longer than that before it fails.
        let mut failing = None;
        let applied = loop {
            match self.target.apply(manifest, open().await?).await {
                Err(error)
                    if error.may_pass() && failing.get_or_insert_with(Instant::now).elapsed() < RETRY_TIMEOUT =>
                {
                    tell(&format!("{:#}; trying again", anyhow::Error::from(error)));
                    sleep(PAUSE).await;
                }
                applied => break applied?,
            }
        };
        for remark in self.target.remarks() {
            tell(&remark);
        }
        match applied {
            Applied::Unfit(why) => return Ok(Taken::Unfit(why)),
            Applied::Done(Changes { written, deleted }) => {
                let (kind, number) = (&manifest.export.export_type, manifest.number);
                outln!("{} {number}  {written} rows written, {deleted} deleted", plain(kind))?;
            }
            Applied::Before => {}
        }
        self.refresh().await?;
        Ok(Taken::Done)
    }
}

impl Taker for Mirror {
    fn last(&self) -> Option<&Position> {
        self.last.as_ref()
    }

    fn source(&self) -> Option<&Source> {
        self.source.as_ref()
    }

    async fn take(&mut self, backend: &Backend, export: &JobView) -> anyhow::Result<Taken> {
        let id = id_of(export)?;
        let Some(manifest) = backend.manifest(id).await? else {
            return Ok(Taken::Unfit(format!("the export {id} is of a version that wrote no manifests")));
        };
        let folder = tempfile::Builder::new().prefix("cdc-export-apply").tempdir().context("a temporary folder")?;
        let files = files_of(export)?;
        let mut parts = Vec::new();
        for file in &files {
            let part = part_of(&folder.path().join(file.plain_name()?), id);
            match fetch_part(backend, id, file, &part).await {
                Err(error) if is_gone(&error) => {
                    return Ok(Taken::Unfit(format!("the service has the files of the export {id} no more")));
                }
                Err(error) => return Err(error),
                Ok(_) => parts.push(File::open(part)?),
            }
        }
        // A process that is killed leaves nothing.
        drop(folder);
        let same = files.iter().map(|file| &file.sha256).eq(manifest.export.files.iter().map(|file| &file.sha256));
        if !same || manifest.digest != manifest.export.digest() {
            return Err(anyhow!("the manifest of {id} is of other files than the export has"));
        }
        let open = async || {
            let opened = parts.iter().zip(&manifest.export.files).map(|(part, file)| {
                let mut part = part.try_clone()?;
                part.rewind()?;
                Input::new(part, &manifest.export.compression, &file.sha256)
            });
            opened.collect::<io::Result<Vec<_>>>().map_err(Error::Input).map_err(anyhow::Error::from)
        };
        self.apply(&manifest, open).await
    }
}
