//! `export`: one export from the command line, watched to its end.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use cdc_export::config::Config;
use cdc_export::http;
use cdc_export::job::encoding::Encoding;
use cdc_export::job::selection::Selection;
use cdc_export::job::{Job, JobId, Request, Status};
use cdc_export::postgres::Database;
use cdc_export::service::Service;
use indicatif::ProgressBar;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::command::{Export, Wired, bar, stop_on_signal, wire};

/// A job that nobody takes for this long is run here.
const NOBODY_TAKES_IT: Duration = Duration::from_secs(1);

/// In a pipe, how far it is is said this often.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Submits the export, waits for its end, and prints where its file is. Ctrl-C cancels it.
pub(crate) async fn export(config: &Config, database: &Database, what: &Export) -> anyhow::Result<ExitCode> {
    let interrupted = stop_on_signal()?;
    let request = Request {
        consumer: Some(what.consumer.clone()),
        dataset: what.dataset.clone(),
        export_type: what.export_type,
        selection: Selection::default(),
        encoding: Encoding::new(what.format, what.compression)?,
        retry_of: None,
        key: None,
    };
    let done = CancellationToken::new();
    let Wired { worker, service } = wire(config, database, 1, &done);
    let job = service.submit(&request).await?;

    let run_here = async {
        let taken = tokio::time::timeout(NOBODY_TAKES_IT, taken(&service, job.id)).await;
        if taken.is_err() {
            worker.announce().await;
            worker.run(done.clone()).await;
        }
    };
    let watched = async {
        let watched = watch(&service, job.id, &interrupted).await;
        done.cancel();
        watched
    };
    let (job, ()) = tokio::join!(watched, run_here);
    let job = job?;
    if what.json {
        println!("{}", http::job_as_json(job.clone()));
    } else {
        say(config, &job);
    }
    Ok(if job.status == Status::Completed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn taken(service: &Service, id: JobId) {
    while service.job(id).await.is_ok_and(|job| job.status == Status::Pending) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Follows a job to its end. After an interruption it is cancelled, unless it just commits.
async fn watch(service: &Service, id: JobId, interrupted: &CancellationToken) -> anyhow::Result<Job> {
    let bar = bar(100).with_message(id.to_string());
    let (mut said, mut cancelled) = (Instant::now(), false);
    loop {
        let job = service.ended_job(id, Duration::ZERO).await?;
        if job.status.is_terminal() {
            bar.finish_and_clear();
            return Ok(job);
        }
        show(&bar, &job, &mut said);
        if interrupted.is_cancelled() && !cancelled {
            // Too late is fine: then it completes.
            let _ = service.cancel(id).await;
            cancelled = true;
        }
        let pause = tokio::time::sleep(Duration::from_millis(100));
        if cancelled {
            pause.await;
        } else {
            tokio::select! { () = pause => {}, () = interrupted.cancelled() => {} }
        }
    }
}

fn show(bar: &ProgressBar, job: &Job, said: &mut Instant) {
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

fn say(config: &Config, job: &Job) {
    match job.status {
        Status::Completed => {
            println!("{}  {} rows", config.output_dir.join(&job.output_filename).display(), job.rows_exported);
        }
        Status::Failed => {
            let why = job.error.as_ref().map(|failure| format!("{}: {}", failure.code, failure.detail));
            eprintln!("cdc-export: the export failed: {}", why.unwrap_or_default());
        }
        Status::Cancelled => eprintln!("cdc-export: the export was cancelled"),
        Status::Pending | Status::Processing => {}
    }
}
