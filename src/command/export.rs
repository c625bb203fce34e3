//! `export`: one export from the command line, watched to its end.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use cdc_export::config::Config;
use cdc_export::job::{FailureCode, JobId, Status};
use cdc_export::postgres::Database;
use indicatif::ProgressBar;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command::arguments::Export;
use crate::command::backend::{Backend, JobView};
use crate::command::client::Client;
use crate::command::database_handle::{Wired, wire};
use crate::command::{bar, download, stop_on_signal};

/// A job that nobody takes for this long is run here.
const NOBODY_TAKES_IT: Duration = Duration::from_secs(1);

/// In a pipe, how far it is is said this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Submits the export, waits for its end, and prints where its file is. Ctrl-C cancels it.
pub(crate) async fn export(config: &Config, database: &Database, what: &Export) -> anyhow::Result<ExitCode> {
    let interrupted = stop_on_signal()?;
    let done = CancellationToken::new();
    let Wired { worker, service } = wire(config, database, 1, &done);
    let backend = Backend::Local(Box::new(service));
    let id = backend.submit(what).await?;

    let run_here = async {
        let taken = tokio::time::timeout(NOBODY_TAKES_IT, taken(&backend, id)).await;
        if taken.is_err() {
            worker.announce().await;
            worker.run(done.clone()).await;
        }
    };
    let watched = async {
        let watched = follow(&backend, id, what, &config.output_dir, &interrupted).await;
        done.cancel();
        watched
    };
    let (code, ()) = tokio::join!(watched, run_here);
    code
}

/// The same by a service elsewhere.
pub(crate) async fn export_remotely(client: Client, what: &Export) -> anyhow::Result<ExitCode> {
    let interrupted = stop_on_signal()?;
    what.check()?;
    let backend = Backend::Remote(client);
    let id = backend.submit(what).await?;
    let code = follow(&backend, id, what, Path::new(""), &interrupted).await?;
    if code == ExitCode::SUCCESS && what.output.is_none() && !what.json {
        eprintln!("`cdc-export download {id}{}` fetches it.", backend.option());
    }
    Ok(code)
}

/// Sees a job to its end, and its file to where it shall be. Whoever asked for it learns its name whatever happens: once it has
/// completed, no other export has its rows.
async fn follow(
    backend: &Backend,
    id: JobId,
    what: &Export,
    output_dir: &Path,
    interrupted: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let job = watch(backend, id, interrupted).await;
    let job =
        job.with_context(|| format!("the export {id} goes on; `cdc-export status{}` shows it", backend.option()))?;
    finish(backend, id, &job, what, output_dir, interrupted).await
}

async fn taken(backend: &Backend, id: JobId) {
    while backend.look(id).await.is_ok_and(|job| job.is(Status::Pending)) {}
}

/// Follows a job to its end. After an interruption it is cancelled, unless it just commits.
async fn watch(backend: &Backend, id: JobId, interrupted: &CancellationToken) -> anyhow::Result<JobView> {
    let bar = bar(100).with_message(id.to_string());
    let (mut said, mut cancelled) = (Instant::now(), false);
    loop {
        let look = backend.look(id);
        let job = if cancelled {
            look.await?
        } else {
            tokio::select! {
                job = look => job?,
                () = interrupted.cancelled() => {
                    cancelled = true;
                    match backend.cancel(id).await {
                        Ok(true) => bar.suspend(|| eprintln!("cdc-export: cancelling the export")),
                        // Then it completes.
                        Ok(false) => {}
                        Err(error) => bar.suspend(|| eprintln!("cdc-export: it can't be cancelled: {error:#}")),
                    }
                    continue;
                }
            }
        };
        if job.has_ended() {
            bar.finish_and_clear();
            return Ok(job);
        }
        show(&bar, &job, &mut said);
    }
}

fn show(bar: &ProgressBar, job: &JobView, said: &mut Instant) {
    if std::io::stderr().is_terminal() {
        // The bar counts rows; how many there will be follows from how far it is.
        let all = job.rows_exported.saturating_mul(100).checked_div(u64::from(job.progress)).unwrap_or(0);
        bar.set_length(all.max(job.rows_exported).max(1));
        bar.set_position(job.rows_exported);
    } else if said.elapsed() >= SAY_EVERY {
        eprintln!("{} {}% {} rows", job.status, job.progress, job.rows_exported);
        *said = Instant::now();
    }
}

/// Says how it ended, and fetches the file if that is wanted.
async fn finish(
    backend: &Backend,
    id: JobId,
    job: &JobView,
    what: &Export,
    output_dir: &Path,
    interrupted: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    if what.json {
        outln!("{}", job.json)?;
    }
    if !job.is(Status::Completed) {
        if !what.json {
            eprintln!("cdc-export: the export {}", why(job));
        }
        return Ok(ExitCode::FAILURE);
    }
    if what.output.is_some() {
        let saved = tokio::select! {
            saved = download::save(backend, id, job, what.output.as_ref()) => saved,
            () = interrupted.cancelled() => Err(anyhow!("interrupted")),
        };
        let fetches =
            || format!("the export has completed; `cdc-export download {id}{}` fetches its file", backend.option());
        saved.with_context(fetches)?;
    } else if !what.json {
        outln!("{}  {} rows", output_dir.join(&*job.output_filename).display(), job.rows_exported)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Why there is no file, and what helps.
fn why(job: &JobView) -> String {
    let Some(error) = &job.error else { return format!("was {}", job.status) };
    let consumer = job.consumer_id.as_deref().unwrap_or_default();
    let next = match error.code.parse() {
        Ok(FailureCode::FullExportNeeded) => {
            format!("; `cdc-export export full --consumer {consumer} --dataset {}` heals it", job.dataset)
        }
        _ => String::new(),
    };
    format!("failed: {}: {}{next}", error.code, error.detail)
}
