//! The commands, and the ground they stand on: a database that was brought, or the private one, joined or run.

/// A line for whoever called, as `println!` prints one; but a reader who has seen enough, as `head`, is an error, which `main`
/// knows.
macro_rules! outln {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        writeln!(std::io::stdout(), $($text)*).map_err(anyhow::Error::from)
    }};
}

pub(crate) mod client;
mod datasets;
mod download;
mod export;
mod keys;
mod place;
mod plan;
mod serve;
mod status;

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use cdc_export::config::{self, Catalogue, Config};
use cdc_export::dataset::{Dataset, Table, USERS};
use cdc_export::job::encoding::{Compression, Encoding, Format};
use cdc_export::job::words::UnknownWord;
use cdc_export::job::{ConsumerId, ExportType};
use cdc_export::key::{self, Scope};
use cdc_export::postgres::{self, Database, demo, embedded};
use cdc_export::service::{self, Service, Stores};
use cdc_export::sink::Folder;
use cdc_export::source::{capture, catalog, snapshot::Source};
use cdc_export::store::Store;
use cdc_export::telemetry;
use cdc_export::worker::{self, Worker};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, Subcommand};
use clap_complete::Shell;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use uuid::Uuid;

use crate::CommandLine;
use crate::command::client::{Address, Client};
use crate::command::download::Output;
use crate::command::place::Place;

/// What may be asked for.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Serve the API and run exports (the default)
    Serve(Serve),
    /// Run exports for services on the same database and output folder, without an API
    Worker,
    /// Bring the database's schema up to date
    Migrate,
    /// Top the demo table up with users
    Seed {
        /// How many there shall be
        #[arg(long)]
        rows: u64,
    },
    /// Export a consumer's rows to a file, and wait for it
    Export(Export),
    /// Show consumers and open jobs
    Status(Status),
    /// Fetch the file of a completed export, and check it
    Download(Download),
    /// Ask the service on HOST and PORT whether it is ready
    Healthcheck,
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
    /// Look at what may be exported
    Datasets {
        #[command(subcommand)]
        what: Datasets,
    },
    /// Show what an export would read: rows, bytes, and Postgres's plan
    Plan(Plan),
    /// Make, list and revoke the keys of the API
    Keys {
        #[command(subcommand)]
        what: Keys,
    },
    /// Print what makes a shell complete these commands
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Which service.
#[derive(Args)]
struct Where {
    /// The service at this address, with the key in CDC_EXPORT_KEY if it wants one; without it, the database of DATABASE_URL
    #[arg(long, value_name = "URL")]
    server: Option<Address>,
}

/// What to show.
#[derive(Args)]
pub(crate) struct Status {
    /// Again and again, until it is interrupted
    #[arg(long)]
    watch: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// What to fetch.
#[derive(Args)]
pub(crate) struct Download {
    /// The export's id
    job: Uuid,
    /// The file or folder to put it, or - for standard output; without it, the current folder
    #[arg(long, short, value_name = "PATH")]
    output: Option<Output>,
    #[command(flatten)]
    at: Where,
}

/// What to do with keys.
#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it, this once
    Create(NewKey),
    /// List all keys, revoked ones too
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// End a key for good; running services refuse it within 5 seconds
    Revoke {
        /// Its prefix or its name
        #[arg(value_name = "PREFIX|NAME")]
        key: String,
    },
}

/// The key to make.
#[derive(Args)]
pub(crate) struct NewKey {
    /// What to call it
    #[arg(long)]
    name: key::Name,
    /// Only for this consumer, or for these; without it, for all, and for exports without one
    #[arg(long = "consumer", value_name = "ID")]
    consumers: Vec<ConsumerId>,
    /// What for; admin implies the others. Without it: export:read and export:write
    #[arg(long = "scope", value_parser = words::<Scope>(Scope::ALL.iter().map(|it| it.as_str())))]
    scopes: Vec<Scope>,
    /// How long it is good, as 90d or 12h; without it, until it is revoked
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    expires: Option<Duration>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(100 * 365 * 24 * 60 * 60));
    let time = humantime::parse_duration(text).ok().filter(|time| (shortest..=longest).contains(time));
    time.ok_or_else(|| "not a time from 1s to 36500d, such as 90d or 12h".to_owned())
}

/// What to do with datasets.
#[derive(Subcommand)]
pub(crate) enum Datasets {
    /// Hold the file of DATASETS against the tables
    Check,
    /// List them with their tables
    List,
    /// Print what the file might say of a table
    Add {
        /// The table, as `orders` or `sales.orders`
        table: Table,
    },
}

/// What to plan.
#[derive(Args)]
pub(crate) struct Plan {
    /// Which rows
    #[arg(value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    export_type: ExportType,
    /// Of which dataset
    #[arg(long, default_value = USERS)]
    dataset: String,
    /// Whose export it would be
    #[arg(long)]
    consumer: ConsumerId,
}

/// How to serve.
#[derive(Args, Default)]
pub(crate) struct Serve {
    /// Leave the exports to other processes
    #[arg(long)]
    no_workers: bool,
}

/// What to export.
#[derive(Args)]
pub(crate) struct Export {
    /// Which rows
    #[arg(value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    export_type: ExportType,
    /// Whose export it is
    #[arg(long)]
    consumer: ConsumerId,
    /// Of which dataset
    #[arg(long, default_value = USERS)]
    dataset: String,
    /// How its rows are written
    #[arg(long, default_value = "csv", value_parser = words::<Format>(Format::ALL.iter().map(|it| it.as_str())))]
    format: Format,
    /// What the file is compressed with
    #[arg(long, default_value = "none", value_parser = words::<Compression>(Compression::ALL.iter().map(|it| it.as_str())))]
    compression: Compression,
    /// Put the file there too: a file or folder, or - for standard output
    #[arg(long, short, value_name = "PATH")]
    output: Option<Output>,
    /// Print the job as JSON at the end
    #[arg(long, conflicts_with = "output")]
    json: bool,
    #[command(flatten)]
    at: Where,
}

/// One of a type's words, which clap lists.
fn words<T>(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse())
}

impl Default for Command {
    fn default() -> Command {
        Command::Serve(Serve::default())
    }
}

impl Command {
    /// What to log. A command that a person waits for says by itself what it does.
    pub(crate) fn telemetry(&self, config: &Config) -> telemetry::Settings {
        let settings = config.telemetry;
        match self {
            Command::Serve(_) | Command::Worker => settings,
            _ => telemetry::Settings { level: settings.level.min(LevelFilter::ERROR), ..settings },
        }
    }

    /// Whether it needs the catalogue. What a running service is asked or repaired by doesn't: somebody may be editing the file.
    pub(crate) fn catalogue(&self) -> Catalogue {
        match self {
            Command::Serve(_) | Command::Worker | Command::Export(_) | Command::Plan(_) => Catalogue::Read,
            Command::Track { .. } | Command::Untrack { .. } | Command::Status(_) => Catalogue::Read,
            Command::Datasets { what: Datasets::Check | Datasets::List } => Catalogue::Read,
            Command::Datasets { what: Datasets::Add { .. } } | Command::Keys { .. } => Catalogue::Unread,
            Command::Migrate | Command::Seed { .. } | Command::Healthcheck | Command::Download(_) => Catalogue::Unread,
            Command::Completions { .. } => Catalogue::Unread,
        }
    }

    /// The service elsewhere that is meant, if one is.
    pub(crate) fn server(&self) -> Option<&Address> {
        match self {
            Command::Export(Export { at, .. }) | Command::Status(Status { at, .. }) => at.server.as_ref(),
            Command::Download(Download { at, .. }) => at.server.as_ref(),
            _ => None,
        }
    }

    /// Does it at a service elsewhere.
    pub(crate) async fn run_there(self, client: Client) -> anyhow::Result<ExitCode> {
        match self {
            Command::Export(what) => export::export_there(client, &what).await,
            other => other.run_at(&Place::There(client)).await,
        }
    }

    /// Does what may be done here and elsewhere.
    async fn run_at(&self, place: &Place) -> anyhow::Result<ExitCode> {
        match self {
            Command::Status(what) => status::status(place, what).await?,
            Command::Download(Download { job, output, .. }) => {
                download::download(place, (*job).into(), output.as_ref()).await?;
            }
            _ => unreachable!("every other command is for this place alone"),
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Does it.
    pub(crate) async fn run(self, config: Config) -> anyhow::Result<ExitCode> {
        match self {
            Command::Serve(how) => serve::serve(config, &how).await,
            Command::Worker => serve::work(config).await,
            Command::Healthcheck => status::healthcheck(&config).await,
            Command::Export(what) => {
                dataset_of(&config, &what.dataset)?;
                what.check()?;
                let ground = Ground::find(&config).await?;
                let done = export::export(&config, &ground.database, &what).await;
                ground.leave().await;
                done
            }
            Command::Migrate => on_ground(&config, async |_| Ok(())).await,
            Command::Seed { rows } => on_ground(&config, async |database| seed(database, rows).await).await,
            Command::Status(_) | Command::Download(_) => {
                let ground = Ground::find(&config).await?;
                let service = wire(&config, &ground.database, 1, &CancellationToken::new()).service;
                let done = self.run_at(&Place::Here(Box::new(service))).await;
                ground.leave().await;
                done
            }
            Command::Track { dataset } => {
                let dataset = dataset_of(&config, &dataset)?;
                on_ground(&config, async |database| {
                    // Another dataset of the same table may want another key.
                    check(&config, database).await?;
                    Ok(capture::track(&database.pool(1), dataset).await?)
                })
                .await
            }
            Command::Untrack { dataset } => {
                let dataset = dataset_of(&config, &dataset)?;
                on_ground(&config, async |database| {
                    Ok(capture::untrack(&database.pool(1), dataset, &config.catalog).await?)
                })
                .await
            }
            Command::Datasets { what } => {
                on_ground(&config, async |database| datasets::run(&config, database, what).await).await
            }
            Command::Keys { what } => on_ground(&config, async |database| keys::run(database, what).await).await,
            Command::Plan(what) => {
                on_ground(&config, async |database| plan::plan(&config, database, &what).await).await
            }
            Command::Completions { shell } => completions(shell),
        }
    }
}

/// Prints what a shell reads. Whole or not at all.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "cdc-export", &mut script);
    outln!("{}", String::from_utf8(script)?.trim_end()).map(|()| ExitCode::SUCCESS)
}

impl Export {
    /// Whether it may be asked for. Once it has completed, an `--output` that can't be written is too late.
    fn check(&self) -> Result<(), BadUsage> {
        Encoding::new(self.format, self.compression).map_err(|why| BadUsage(why.to_string()))?;
        self.output.as_ref().map_or(Ok(()), |output| output.check().map_err(|why| BadUsage(format!("--output: {why}"))))
    }
}

/// Runs a short command on a migrated database.
async fn on_ground(
    config: &Config,
    command: impl AsyncFnOnce(&Database) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let ground = Ground::find(config).await?;
    let done = command(&ground.database).await;
    ground.leave().await;
    done.map(|()| ExitCode::SUCCESS)
}

/// What was asked for can't be, whatever the database has.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadUsage(String);

fn dataset_of<'c>(config: &'c Config, name: &str) -> Result<&'c Arc<Dataset>, BadUsage> {
    let none = || BadUsage(format!("there is no dataset `{name}`; there are: {}", config.catalog.names()));
    config.catalog.get(name).ok_or_else(none)
}

/// Holds the catalogue against the tables, if a file says it.
async fn check(config: &Config, database: &Database) -> anyhow::Result<()> {
    let Some(file) = &config.catalog_file else { return Ok(()) };
    let faults = catalog::check(&database.pool(1), &config.catalog).await?;
    if faults.0.is_empty() {
        return Ok(());
    }
    Err(config::Error::catalog(file, config.catalog.mistakes(faults)).into())
}

/// A migrated database, and the private server under it if this process runs that.
struct Ground {
    database: Database,
    server: Option<embedded::Server>,
}

impl Ground {
    /// `DATABASE_URL`, else the private server that another process runs, else one that this process runs while it lasts.
    async fn find(config: &Config) -> anyhow::Result<Ground> {
        let ground = match &config.database {
            Some(database) => Ground { database: database.clone(), server: None },
            None => join_or_start(&config.embedded).await?,
        };
        if let Err(error) = prepare(&ground.database).await {
            ground.leave().await;
            return Err(error);
        }
        Ok(ground)
    }

    async fn leave(self) {
        if let Some(server) = self.server {
            server.stop().await;
        }
    }
}

/// Brings the schema up to date, with the triggers of the demo's own table.
async fn prepare(database: &Database) -> anyhow::Result<()> {
    postgres::migrate(database).await?;
    Ok(capture::restore(&database.pool(1)).await?)
}

async fn join_or_start(settings: &embedded::Settings) -> anyhow::Result<Ground> {
    // A process that just starts its server has the folder, but no server to join yet.
    for _ in 0..30 {
        if let Some(options) = embedded::join(settings)? {
            return Ok(Ground { database: options.into(), server: None });
        }
        match embedded::Server::start(settings).await {
            Ok(server) => return Ok(Ground { database: server.connect_options().into(), server: Some(server) }),
            Err(embedded::Error::AlreadySupervised(_)) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) => return Err(error.into()),
        }
    }
    embedded::join(settings)?
        .map(|options| Ground { database: options.into(), server: None })
        .context("the private Postgres of another process doesn't get ready")
}

/// Connections that so many exports at once may have: a leader, a reader and a heartbeat each, the further readers that they
/// share, and what claims and settles them.
fn connections_of_exports(config: &Config, workers: u32) -> u32 {
    3 * workers + (config.readers - 1) + control_connections(workers)
}

/// Connections of the API: those that are set, one that asks whether Postgres is there, and those that count for `/consumers`.
fn connections_of_api(config: &Config) -> u32 {
    config.api_connections + 1 + COUNTING_CONNECTIONS
}

const COUNTING_CONNECTIONS: u32 = 2;

/// To claim and settle a job at a time for each worker, to keep up, and to listen.
fn control_connections(workers: u32) -> u32 {
    workers + 2
}

/// What exports run on.
struct Wired {
    worker: Worker,
    service: Service,
}

/// Wires service and worker over one database, for so many exports at once; 0: for the service alone. Makes the output folder.
fn wire(config: &Config, database: &Database, workers: u32, stopping: &CancellationToken) -> Wired {
    let folder = Arc::new(Folder::new(config.output_dir.clone()));
    if let Err(error) = folder.prepare() {
        // The service is of use without it: jobs fail with the reason until somebody mends the folder.
        let error = telemetry::chain(&error);
        tracing::error!(event = "output_unusable", folder = %config.output_dir.display(), error);
    }
    let source = |pool| Source::new(database.options().clone(), pool, config.readers);
    let control = database.pool(control_connections(workers));
    let settings = worker::Settings { workers, ..config.worker.clone() };
    let (its_folder, catalog) = (Arc::clone(&folder), Arc::clone(&config.catalog));
    let store = Store::new(control.clone());
    let worker = Worker::new(settings, store.clone(), source(control.clone()), its_folder, Arc::clone(&catalog));
    let callers = |connections, patience| database.pool_for_callers(connections, patience);
    let stores = Stores {
        api: store.over(callers(config.api_connections, service::PATIENCE)),
        probe: Store::new(callers(1, service::PATIENCE)),
        control: Some(Store::new(control.clone())).filter(|_| workers > 0),
    };
    let counting = callers(COUNTING_CONNECTIONS, service::COUNTING_PATIENCE);
    let settings = service::Settings { folder, catalog, max_attempts: config.max_attempts };
    let service = Service::new(settings, stores, source(counting), stopping.clone());
    Wired { worker, service }
}

async fn seed(database: &Database, rows: u64) -> anyhow::Result<()> {
    let bar = bar(rows);
    let inserted = demo::top_up(&database.pool(1), rows, |inserted| bar.set_position(inserted)).await?;
    bar.finish_and_clear();
    outln!("{inserted} users added.")
}

/// A bar of rows on a terminal; nothing in a pipe.
fn bar(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {human_pos} rows  {per_sec}  {eta} left  {msg}", length)
}

/// The same of bytes.
fn bar_of_bytes(length: u64) -> ProgressBar {
    bar_like("{bar:30} {percent:>3}%  {binary_bytes}  {binary_bytes_per_sec}  {eta} left", length)
}

fn bar_like(template: &str, length: u64) -> ProgressBar {
    ProgressBar::new(length).with_style(ProgressStyle::with_template(template).expect("the template is a constant"))
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
