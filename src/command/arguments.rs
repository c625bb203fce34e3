//! What each command takes, as clap reads and explains it.

use std::str::FromStr;
use std::time::Duration;

use cdc_export::dataset::{Table, USERS};
use cdc_export::job::encoding::{Compression, Encoding, Format};
use cdc_export::job::words::UnknownWord;
use cdc_export::job::{After, ConsumerId, ExportType};
use cdc_export::key::{self, Scope};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use uuid::Uuid;

use crate::command::BadUsage;
use crate::command::client::Address;
use crate::command::download::Output;

/// Which service.
#[derive(Args)]
pub(super) struct Where {
    /// The service at this address, with the key in CDC_EXPORT_KEY if it wants one; without it, the database of DATABASE_URL
    #[arg(long, value_name = "URL")]
    pub(super) server: Option<Address>,
}

/// What to show.
#[derive(Args)]
pub(crate) struct Status {
    /// Again and again, until it is interrupted
    #[arg(long)]
    pub(super) watch: bool,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) at: Where,
}

/// What to fetch.
#[derive(Args)]
pub(crate) struct Download {
    /// The export's id
    pub(super) job: Uuid,
    /// The file to make, or the folder that is there already, or - for standard output; without it, the current folder
    #[arg(long, short, value_name = "PATH")]
    pub(super) output: Option<Output>,
    #[command(flatten)]
    pub(super) at: Where,
}

/// What to do with keys.
#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it, this once
    Create(CreateKey),
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
pub(crate) struct CreateKey {
    /// What to call it
    #[arg(long)]
    pub(super) name: key::KeyName,
    /// Only for this consumer, or for these; without it, for all, and for exports without one
    #[arg(long = "consumer", value_name = "ID")]
    pub(super) consumers: Vec<ConsumerId>,
    /// What for; admin implies the others. Without it: export:read and export:write
    #[arg(long = "scope", value_parser = words::<Scope>(Scope::ALL.iter().map(|it| it.as_str())))]
    pub(super) scopes: Vec<Scope>,
    /// How long it is good, as 90d or 12h; without it, until it is revoked
    #[arg(long, value_name = "TIME", value_parser = lifetime)]
    pub(super) expires: Option<Duration>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
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
    pub(super) export_type: ExportType,
    /// Of which dataset
    #[arg(long, default_value = USERS)]
    pub(super) dataset: String,
    /// Whose export it would be
    #[arg(long)]
    pub(super) consumer: ConsumerId,
}

/// How to serve.
#[derive(Args, Default)]
pub(crate) struct Serve {
    /// Leave the exports to other processes
    #[arg(long)]
    pub(super) no_workers: bool,
}

/// What to export.
#[derive(Args)]
pub(crate) struct Export {
    /// Which rows
    #[arg(value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    pub(super) export_type: ExportType,
    /// Whose export it is
    #[arg(long)]
    pub(super) consumer: ConsumerId,
    /// Of which dataset
    #[arg(long, default_value = USERS)]
    pub(super) dataset: String,
    /// How its rows are written
    #[arg(long, default_value = "csv", value_parser = words::<Format>(Format::ALL.iter().map(|it| it.as_str())))]
    pub(super) format: Format,
    /// What the file is compressed with
    #[arg(long, default_value = "none", value_parser = words::<Compression>(Compression::ALL.iter().map(|it| it.as_str())))]
    pub(super) compression: Compression,
    /// What was loaded last, the id of an export or `none`: the export is refused if the consumer's exports have gone on from there
    #[arg(long, value_name = "ID")]
    pub(super) after: Option<Loaded>,
    /// The SHA-256 of the file that was loaded last
    #[arg(long, value_name = "SHA256", requires = "after")]
    pub(super) after_sha256: Option<String>,
    /// Put the file there too: a file, a folder that is there already, or - for standard output
    #[arg(long, short, value_name = "PATH")]
    pub(super) output: Option<Output>,
    /// Print the job as JSON at the end; not together with --output
    #[arg(long, conflicts_with = "output")]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) at: Where,
}

/// What a caller loaded last.
#[derive(Clone, Copy)]
pub(super) enum Loaded {
    Nothing,
    Export(Uuid),
}

impl FromStr for Loaded {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Loaded, &'static str> {
        match text {
            "none" => Ok(Loaded::Nothing),
            id => id.parse().map(Loaded::Export).map_err(|_| "not the id of an export, nor `none`"),
        }
    }
}

/// One of a type's words, which clap lists.
fn words<T>(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse())
}

impl Export {
    /// What was loaded last, if that is said.
    pub(super) fn after(&self) -> Result<Option<After>, BadUsage> {
        match (self.after, &self.after_sha256) {
            (None, _) => Ok(None),
            (Some(Loaded::Nothing), None) => Ok(Some(After::Nothing)),
            (Some(Loaded::Export(job)), sha256) if sha256.as_deref().is_none_or(After::is_sha256) => {
                Ok(Some(After::Export { job: job.into(), sha256: sha256.clone() }))
            }
            (Some(_), _) => {
                let why = "64 hexadecimal digits in lower case are expected, beside the id of an export in --after";
                Err(BadUsage(format!("--after-sha256: {why}")))
            }
        }
    }

    /// Whether it may be asked for. Once it has completed, an `--output` that can't be written is too late.
    pub(super) fn check(&self) -> Result<(), BadUsage> {
        Encoding::new(self.format, self.compression).map_err(|why| BadUsage(why.to_string()))?;
        self.after()?;
        self.output.as_ref().map_or(Ok(()), |output| output.check().map_err(|why| BadUsage(format!("--output: {why}"))))
    }
}
