//! `export`: submits an export and waits until it ends.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{CatalogFile, Config};
use crate::job::{FILE_BYTES, FailureCode, Status};
use crate::postgres::Database;
use crate::worker::Stops;
use anyhow::{Context, anyhow};
use cdc_capture::Continuity;
use cdc_client::{Api, ExportRequest, ExportView, FileView, Output};
use cdc_manifest::{After, ConsumerId, JobId, NotPlain};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::export_type::ExportType;
use pg_session::failure::chain;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::command::BadUsage;
use crate::command::catalog::named_or_implied;
use crate::command::database_handle::{CreateMissing, DatabaseHandle, OR_SERVER};
use crate::command::output::{check, output};
use crate::command::server::{ServerOption, local_api};
use crate::command::signals::stop_on_signal;
use crate::command::start::{Logs, block_on, settings};
use crate::command::wiring::{PreparedOutput, Wired, control_connections, wire};
use crate::command::words::{compressions, words};

/// The time after which this process runs the job itself if no worker has claimed it.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(1);

/// The export to run.
#[derive(Args)]
pub(crate) struct ExportArguments {
    /// The type of the export
    #[arg(value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    export_type: ExportType,
    /// The consumer to export for. A full export may have none: it is an ad-hoc one then, which neither reads nor moves
    /// a position
    #[arg(long, required_if_eq_any = [("export_type", "incremental"), ("export_type", "delta")])]
    consumer: Option<ConsumerId>,
    /// The dataset to export [default: users, or the only one there is]
    #[arg(long)]
    dataset: Option<String>,
    /// The format of the file
    #[arg(long, default_value = "csv", value_parser = words::<Format>(Format::ALL.iter().map(|it| it.as_str())))]
    format: Format,
    #[arg(long, help = format!("The compression of the file: {} [default: the first of these]", compressions()))]
    #[arg(value_parser = words::<Compression>(Compression::ALL.iter().map(|it| it.as_str())))]
    compression: Option<Compression>,
    /// The size in bytes from which on further rows go into another file [default: the setting of the dataset, or one
    /// file]
    #[arg(long, value_name = "BYTES", value_parser = RangedU64ValueParser::<u64>::new().range(FILE_BYTES))]
    max_file_bytes: Option<u64>,
    /// Make no file if an incremental export or a delta finds nothing
    #[arg(long, requires = "consumer")]
    skip_empty: bool,
    /// The id of the export that you loaded last, or `none`. The new export is refused if the consumer has later
    /// exports that you have not loaded
    #[arg(long, value_name = "ID", requires = "consumer", value_parser = last_loaded)]
    after: Option<After>,
    /// The SHA-256 of the file that you loaded last
    #[arg(long, value_name = "SHA256", requires = "after")]
    after_sha256: Option<String>,
    /// Copy the file to this destination. A name with an extension is a file. Any other name is a folder, which is
    /// created if it is missing. - is standard output
    #[arg(long, short, value_name = "PATH", value_parser = output)]
    output: Option<Output>,
    /// Print the job as JSON at the end; can't be combined with --output
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    at: ServerOption,
}

fn last_loaded(text: &str) -> Result<After, &'static str> {
    if text == "none" {
        return Ok(After::Nothing);
    }
    let job: Uuid = text.parse().map_err(|_| "not the id of an export, nor `none`")?;
    Ok(After::Export { job: job.into(), sha256: None })
}

impl ExportArguments {
    /// Submits the export, waits for its end, and prints the paths of its files. Ctrl-C cancels the export.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(api) = self.at.remote_api()? {
            return block_on(self.run_remotely(&api));
        }
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(async {
            let request = self.request()?;
            let handle = DatabaseHandle::open(&config, CreateMissing::Nothing, OR_SERVER).await?;
            let done = self.run_locally(&config, &handle.database, request).await;
            handle.close().await;
            done
        })
    }

    /// Builds the request from the arguments. Also checks `--output`, because after the export it would be too late.
    fn request(&self) -> Result<ExportRequest, BadUsage> {
        let encoding = Encoding::new(self.format, self.compression).map_err(|why| BadUsage(why.to_string()))?;
        let after = self.after()?;
        check(self.output.as_ref())?;
        let request = ExportRequest::new(self.consumer.clone(), self.export_type, encoding);
        let (dataset, max_file_bytes) = (self.dataset.clone(), self.max_file_bytes);
        let skip_empty = self.skip_empty.then_some(true);
        Ok(ExportRequest { dataset, max_file_bytes, skip_empty, after, ..request })
    }

    fn after(&self) -> Result<Option<After>, BadUsage> {
        match (&self.after, &self.after_sha256) {
            (after, None) => Ok(after.clone()),
            (Some(After::Export { job, .. }), Some(sha256)) if After::is_sha256(sha256) => {
                Ok(Some(After::Export { job: *job, sha256: Some(sha256.clone()) }))
            }
            _ => {
                let why = "64 hexadecimal digits in lower case are expected, beside the id of an export in --after";
                Err(BadUsage(format!("--after-sha256: {why}")))
            }
        }
    }

    /// Submits the export to the queue in the database. Runs it in this process if no worker claims it.
    async fn run_locally(
        &self,
        config: &Config,
        database: &Database,
        request: ExportRequest,
    ) -> anyhow::Result<ExitCode> {
        let dataset = named_or_implied(config, self.dataset.as_deref())?.name.clone();
        let request = ExportRequest { dataset: Some(dataset), ..request };
        let interrupted = stop_on_signal()?;
        let done = CancellationToken::new();
        let stops = Stops { drain: done.clone(), shutdown: done.clone() };
        let folder = PreparedOutput::prepare(config).await?;
        folder.warn_if_new(config, database).await?;
        let Wired { exports, service } =
            wire(config, &database.with_pool_of(control_connections(1)), folder, 1, &stops);
        let api = local_api(service);
        let id = api.submit(&request).await?;

        let run_here = async {
            let claimed = tokio::time::timeout(CLAIM_TIMEOUT, wait_until_claimed(&api, id)).await;
            if claimed.is_err() {
                exports.announce().await;
                exports.run(stops).await;
            }
        };
        let watched = async {
            let watched = follow(&api, id, self, config.output.folder(), &interrupted).await;
            done.cancel();
            watched
        };
        let (code, ()) = tokio::join!(watched, run_here);
        code
    }

    async fn run_remotely(&self, api: &Api) -> anyhow::Result<ExitCode> {
        let interrupted = stop_on_signal()?;
        let request = self.request()?;
        let id = api.submit(&request).await?;
        let code = follow(api, id, self, None, &interrupted).await?;
        if code == ExitCode::SUCCESS && self.output.is_none() && !self.json {
            eprintln!("`cdc-export download {id}{}` fetches it.", api.server_option());
        }
        Ok(code)
    }
}

/// Waits for the end of a job, and downloads its file to `--output`. Every error names the job, because no later export
/// contains its rows.
async fn follow(
    api: &Api,
    id: JobId,
    arguments: &ExportArguments,
    folder: Option<&Path>,
    interrupted: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    let export = watch(api, id, interrupted).await;
    let export = export.with_context(|| {
        format!("the end of the export {id} is not known; `cdc-export status{}` shows it", api.server_option())
    })?;
    finish(api, id, &export, arguments, folder, interrupted).await
}

async fn wait_until_claimed(api: &Api, id: JobId) {
    while api.poll(id, None).await.is_ok_and(|export| export.job.has_status(Status::Pending.as_str())) {}
}

/// Waits for the end of a job, and shows its progress. Ctrl-C cancels the job, unless it is committing.
async fn watch(api: &Api, id: JobId, interrupted: &CancellationToken) -> anyhow::Result<ExportView> {
    let (observer, mut cancelled) = (api.observer(), false);
    observer.begin_job(id);
    loop {
        let polled = api.poll(id, None);
        let export = if cancelled {
            polled.await?
        } else {
            tokio::select! {
                export = polled => export?,
                () = interrupted.cancelled() => {
                    cancelled = true;
                    match api.cancel(id).await {
                        Ok(true) => observer.notice("cancelling the export"),
                        // The job is being committed, and will complete.
                        Ok(false) => {}
                        Err(error) => observer.notice(&format!("the export can't be cancelled: {}", chain(&error))),
                    }
                    continue;
                }
            }
        };
        if export.job.has_ended() {
            observer.end();
            return Ok(export);
        }
        observer.job(&export.progress());
    }
}

/// Prints the outcome of the export, and downloads its file if `--output` is given.
async fn finish(
    api: &Api,
    id: JobId,
    export: &ExportView,
    arguments: &ExportArguments,
    folder: Option<&Path>,
    interrupted: &CancellationToken,
) -> anyhow::Result<ExitCode> {
    if arguments.json {
        outln!("{}", export.json)?;
    }
    if !export.job.has_status(Status::Completed.as_str()) {
        if !arguments.json {
            let symptom = export.job.error.as_ref().and_then(|error| api.symptom(&error.code));
            let symptom = symptom.map(|place| format!("; {place}")).unwrap_or_default();
            eprintln!("cdc-export: the export {}{symptom}", failure_text(export));
        }
        return Ok(ExitCode::FAILURE);
    }
    if export.continuity.as_deref() == Some(Continuity::TriggerMissing.as_str()) {
        eprintln!(
            "cdc-export: the file is right, but the changes of the table are not captured: the next incremental or delta will fail until \
             you run `cdc-export track {}`, and then a full export again",
            export.dataset
        );
    }
    let Some(name) = &export.output_filename else {
        eprintln!("cdc-export: the export found nothing, so there is no file");
        return Ok(ExitCode::SUCCESS);
    };
    let in_folder = |folder: &Path| {
        export.files.iter().map(|file| Ok(file.name.plain()?.within(folder))).collect::<Result<Vec<_>, NotPlain>>()
    };
    let paths = folder.map(in_folder).transpose()?;
    let is_elsewhere = paths.as_ref().is_some_and(|paths| paths.iter().any(|path| !path.exists()));
    let server = if is_elsewhere { " --server URL".to_owned() } else { api.server_option() };
    let fetches = format!("`cdc-export download {id}{server}` fetches its file");
    if arguments.output.is_some() {
        let saved = tokio::select! {
            saved = api.save(export, arguments.output.as_ref()) => saved.map_err(Into::into),
            () = interrupted.cancelled() => Err(anyhow!("interrupted")),
        };
        saved.with_context(|| format!("the export has completed; {fetches}"))?;
    } else if !arguments.json && is_elsewhere {
        outln!("{name}  {} rows", export.rows_exported)?;
        eprintln!("cdc-export: a service with another output folder or bucket ran the export; {fetches}");
    } else if !arguments.json {
        // A path on another machine is useless here, so only the name of the file is printed.
        let shown: Vec<String> = match &paths {
            Some(paths) => paths.iter().map(|path| path.display().to_string()).collect(),
            None => export.files.iter().map(FileView::place).collect(),
        };
        for (place, file) in shown.iter().zip(&export.files) {
            outln!("{place}  {} rows", file.rows)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the reason why an export has no file, and a remedy.
fn failure_text(ExportView { job, dataset, .. }: &ExportView) -> String {
    let Some(error) = job.error.as_ref().filter(|_| job.has_status(Status::Failed.as_str())) else {
        return format!("was {}", job.status);
    };
    let consumer = job.consumer_id.as_deref().unwrap_or_default();
    let next = match error.code.parse() {
        Ok(FailureCode::FullExportNeeded) => {
            // The detail ends with the remedy.
            format!(": `cdc-export export full --consumer {consumer} --dataset {dataset}`")
        }
        _ => String::new(),
    };
    format!("failed: {}: {}{next}", error.code, error.detail)
}
