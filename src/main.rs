//! The command line, and the wiring of the rooms. The only place that prints for people and the only user of anyhow.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cdc_export::config::{self, Config};
use cdc_export::dataset::{Dataset, USERS};
use cdc_export::postgres::{self, Database, demo, embedded};
use cdc_export::service::Service;
use cdc_export::sink::Folder;
use cdc_export::source::{capture, snapshot::Source};
use cdc_export::store::Store;
use cdc_export::worker::Worker;
use cdc_export::{http, telemetry};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Hands a table's rows to downstream consumers as files, with nothing lost and nothing twice.
///
/// Settings come from the environment and from `.env`; `.env.example` lists them all.
#[derive(Parser)]
#[command(version)]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API and run exports (the default)
    Serve,
    /// Capture the changes of a table that was there before, and let it be exported
    Track {
        /// The dataset whose table it is
        dataset: String,
    },
    /// Remove what `track` installed; the table is exported no more
    Untrack {
        /// The dataset whose table it is
        dataset: String,
    },
}

fn main() -> ExitCode {
    // Clap ends with 2 on bad usage by itself.
    let CommandLine { command } = CommandLine::parse();
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(error) => return fail(2, &error.into()),
    };
    telemetry::start(&config.telemetry);
    match run(command.unwrap_or(Command::Serve), config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(if error.is::<config::Error>() { 2 } else { 1 }, &error),
    }
}

/// One line: what failed and why.
fn fail(code: u8, error: &anyhow::Error) -> ExitCode {
    eprintln!("cdc-export: {error:#}");
    ExitCode::from(code)
}

fn run(command: Command, config: Config) -> anyhow::Result<()> {
    #[cfg(debug_assertions)]
    if let Some(list) = &config.failpoints {
        cdc_export::failpoint::arm(list)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        match command {
            Command::Serve => serve(config).await,
            Command::Track { dataset } => {
                let (pool, dataset) = (database_of(&config).await?.pool(1), dataset_of(&dataset)?);
                Ok(capture::track(&pool, dataset).await?)
            }
            Command::Untrack { dataset } => {
                let (pool, dataset) = (database_of(&config).await?.pool(1), dataset_of(&dataset)?);
                Ok(capture::untrack(&pool, dataset).await?)
            }
        }
    });
    // A thread that a dead disk holds up would hold up the end of the process.
    runtime.shutdown_timeout(Duration::from_secs(3));
    done
}

/// The database that was brought, or the private one while a service runs it. Migrated.
async fn database_of(config: &Config) -> anyhow::Result<Database> {
    let database = match &config.database {
        Some(database) => database.clone(),
        None => embedded::join(&config.embedded)?
            .context("no service runs the private Postgres, and DATABASE_URL is unset")?
            .into(),
    };
    postgres::migrate(&database).await?;
    Ok(database)
}

fn dataset_of(name: &str) -> anyhow::Result<&'static Dataset> {
    anyhow::ensure!(name == USERS.name, "there is no dataset `{name}`; there is: {}", USERS.name);
    Ok(&USERS)
}

async fn serve(config: Config) -> anyhow::Result<()> {
    // Before anything is started: a signal that comes meanwhile must stop it properly.
    let shutdown = stop_on_signal()?;
    // The port comes first: a second service on it shouldn't get as far as the database.
    let listener = http::listen(&config.http).await;
    let listener = listener.with_context(|| format!("can't listen on {}:{}", config.http.host, config.http.port))?;
    let (server, database) = match &config.database {
        Some(database) => (None, database.clone()),
        None => {
            let server = tokio::select! {
                started = embedded::Server::start(&config.embedded) => started?,
                () = shutdown.cancelled() => return Ok(()),
            };
            let database = server.connect_options().into();
            (Some(server), database)
        }
    };
    let served = serve_on(&config, listener, database, shutdown).await;
    if let Some(server) = server {
        server.stop().await;
    }
    served
}

async fn serve_on(
    config: &Config,
    listener: tokio::net::TcpListener,
    database: Database,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let api_pool = database.pool(config.api_connections);
    let prepare = async {
        postgres::migrate(&database).await?;
        capture::restore(&api_pool, &USERS).await?;
        if config.seed_rows > 0 {
            demo::seed(&api_pool, config.seed_rows).await?;
        }
        anyhow::Ok(())
    };
    // Either may wait for another replica.
    tokio::select! { prepared = prepare => prepared?, () = shutdown.cancelled() => return Ok(()) }

    let folder = Arc::new(Folder::new(config.output_dir.clone()));
    if let Err(error) = folder.prepare() {
        // The service is of use without it: jobs fail with the reason until somebody mends the folder.
        tracing::error!(event = "output_unusable", folder = %config.output_dir.display(), error = format!("{:#}", anyhow::Error::new(error)));
    }
    // To claim and settle a job at a time for each worker, to keep up, and to listen.
    let control = database.pool(config.worker.workers + 2);
    let source = Source::new(database.options().clone(), control.clone());
    let worker = Worker::new(config.worker.clone(), Store::new(control.clone()), source, Arc::clone(&folder));
    worker.announce().await;
    let service = Service::new(
        Store::new(api_pool.clone()),
        Source::new(database.options().clone(), api_pool),
        folder,
        config.max_attempts,
    );
    let router = http::router(service, config.http.access);

    let address = listener.local_addr()?;
    tracing::info!(event = "listening", address = %format!("http://{address}"));
    // The two end together: an API without workers would take jobs on that nobody does.
    tokio::join!(http::serve(listener, router, shutdown.clone()), worker.run(shutdown));
    tracing::info!(event = "stopped");
    Ok(())
}

/// A token that SIGTERM or Ctrl-C cancels; a second signal ends the process at once.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    // With a handler, however idle, a file past `ulimit -f` is an error of its write instead of the end of the process.
    let mut file_too_large = signal(SignalKind::from_raw(nix::libc::SIGXFSZ))?;
    tokio::spawn(async move { while file_too_large.recv().await.is_some() {} });
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        tracing::info!(event = "stopping");
        stop.cancel();
        next().await;
        #[expect(
            clippy::disallowed_methods,
            reason = "who signals twice wants no destructors; Postgres follows by its death signal"
        )]
        std::process::exit(1);
    });
    Ok(token)
}
