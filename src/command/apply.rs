//! `apply`: keeps a table of another Postgres equal to the source.

use std::process::ExitCode;
use std::time::Duration;

use crate::apply::{Settings, Target};
use crate::config::{self, Environment};
use crate::dataset::Table;
use crate::job::{ConsumerId, ExportType};
use crate::postgres::Database;
use anyhow::Context;
use clap::{ArgGroup, Args};
use pg_rows::encoding::{Compression, Encoding, Format};

use crate::client::api::Api;
use crate::client::lane_reader::LaneReader;
use crate::client::manifest_folder::ManifestFolder;
use crate::client::remote::ServiceAddress;
use crate::client::table_mirror::TableMirror;
use crate::command::BadUsage;
use crate::command::rounds::{repeat, until_signal};
use crate::command::server::{AddressParser, arm, remote_api};
use crate::command::start::block_on;
use crate::command::terminal::Terminal;
use crate::command::words::pause;

/// Whose exports, from where, and which table.
#[derive(Args)]
#[command(group = ArgGroup::new("source").args(["server", "from"]).required(true))]
pub(crate) struct Apply {
    /// The other database, as postgres://USER@HOST:PORT/DATABASE. A password is best in ~/.pgpass or PGPASSWORD: `ps`
    /// shows arguments
    #[arg(long, value_name = "URL")]
    to: String,
    /// Whose exports
    #[arg(long)]
    consumer: ConsumerId,
    /// Of which dataset [default: users, or the only one there is]
    #[arg(long)]
    dataset: Option<String>,
    /// The address of the service, which is shown the key in CDC_EXPORT_KEY if it wants one
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: Option<ServiceAddress>,
    /// Take the exports from this folder or bucket, by their manifests, and ask no service
    #[arg(long, value_name = "PLACE", requires = "dataset")]
    from: Option<String>,
    /// The table of the other database [default: the source table's schema and name]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    table: Option<Table>,
    /// What to ask for once all is applied, and where only a full export goes on
    #[arg(long, default_value = "delta", value_parser = ["delta", "none"], conflicts_with = "from")]
    request: String,
    /// Go on until SIGTERM, with this pause in between, such as 1s
    #[arg(long, value_name = "TIME", value_parser = pause)]
    every: Option<Duration>,
    /// What becomes of columns that come, or get another type, in the source
    #[arg(long, default_value = "add", value_parser = ["add", "fail"])]
    schema: String,
    /// How a full export is applied: `merge` changes what differs, `truncate` empties the table first
    #[arg(long, default_value = "merge", value_parser = ["merge", "truncate"])]
    full: String,
    /// `hard`: rows that are deleted go; else the column, a timestamp or a boolean, that says so of them
    #[arg(long, value_name = "hard|COLUMN", default_value = "hard")]
    deletes: String,
    /// Tell the service of each export that is applied
    #[arg(long, conflicts_with = "from")]
    ack: bool,
}

impl Apply {
    /// Applies what is there, and asks for more.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let environment = Environment::read()?;
        let named = environment.target(&self.to).map_err(|why| BadUsage(format!("--to: {why}")))?;
        if let Some(file) = &named.authorities {
            config::trust_alone(file).context("can't restart with the authorities of sslrootcert alone")?;
        }
        let api = self.server.as_ref().map(remote_api).transpose()?;
        if api.is_none() {
            arm(&environment)?;
        }
        let every = self.every;
        block_on(until_signal(every, self.apply(&environment, &named.database, api)))
    }

    async fn apply(self, environment: &Environment, database: &Database, api: Option<Api>) -> anyhow::Result<()> {
        let dataset = match (self.dataset, &api) {
            (Some(named), _) => named,
            (None, Some(api)) => api.implied_dataset().await?,
            (None, None) => return Err(BadUsage("--dataset: one is to be named".to_owned()).into()),
        };
        let settings = Settings {
            table: self.table,
            adds_columns: self.schema == "add",
            truncates: self.full == "truncate",
            deleted: Some(self.deletes).filter(|column| column != "hard"),
        };
        let target = Target::new(database.options().clone(), settings, self.consumer.clone(), dataset.clone());
        let mut mirror = TableMirror::new(target, Terminal::shared());
        let exports = match (&api, &self.from) {
            (Some(api), _) => ExportsFrom::Service(LaneReader {
                api,
                consumer: self.consumer,
                dataset,
                request: (self.request == "delta").then_some(ExportType::Delta),
                encoding: Encoding::new(Format::Csv, Compression::None).context("csv can be unpacked")?,
                acks: self.ack,
            }),
            (None, from) => {
                let place = environment.place(from.as_deref().unwrap_or_default())?;
                ExportsFrom::Place(ManifestFolder::new(place, self.consumer, dataset))
            }
        };
        repeat(self.every, async || exports.round(&mut mirror).await).await
    }
}

/// The place or service that exports come from.
enum ExportsFrom<'b> {
    Service(LaneReader<'b>),
    Place(ManifestFolder),
}

impl ExportsFrom<'_> {
    async fn round(&self, mirror: &mut TableMirror) -> anyhow::Result<()> {
        mirror.refresh().await?;
        match self {
            ExportsFrom::Service(lane) => lane.round(mirror).await?,
            ExportsFrom::Place(folder) => folder.round(mirror).await?,
        }
        Ok(())
    }
}
