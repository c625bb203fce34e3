//! `apply`: keeps a table of another Postgres equal to the source.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use crate::apply::{Settings, Target, TargetConnections};
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
use crate::manifest::seal::PublicKey;

/// The consumer, the source of its exports, and the target table.
#[derive(Args)]
#[command(group = ArgGroup::new("source").args(["server", "from"]).required(true))]
pub(crate) struct Apply {
    /// The target database, as postgres://USER@HOST:PORT/DATABASE. Put a password into ~/.pgpass or PGPASSWORD, because
    /// `ps` shows arguments
    #[arg(long, value_name = "URL")]
    to: String,
    /// The consumer whose exports to apply
    #[arg(long)]
    consumer: ConsumerId,
    /// The dataset whose exports to apply [default: users, or the only one there is]
    #[arg(long)]
    dataset: Option<String>,
    /// The address of the service. The key in CDC_EXPORT_KEY is sent to it
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: Option<ServiceAddress>,
    /// Read the exports from this folder or bucket by their manifests, without a service
    #[arg(long, value_name = "PLACE", requires = "dataset")]
    from: Option<String>,
    /// The target table. It may have rows, which become those of the source [default: the source table's schema and
    /// name, if that table is new or empty]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    table: Option<Table>,
    /// Trust this role, which owns the table or objects that it uses: its triggers, functions and types then run with
    /// the rights of the user of --to. Can be given several times
    #[arg(long, value_name = "ROLE", requires = "table")]
    trust_owner: Vec<String>,
    /// The type of export to submit once all are applied. With `delta`, a full export is submitted if only a full
    /// export can follow
    #[arg(long, default_value = "delta", value_parser = ["delta", "none"], conflicts_with = "from")]
    request: String,
    /// Repeat until SIGTERM, with this pause between rounds, such as 1s
    #[arg(long, value_name = "TIME", value_parser = pause)]
    every: Option<Duration>,
    /// The reaction to new or retyped columns of the source: `add` alters the target table, `fail` refuses the export
    #[arg(long, default_value = "add", value_parser = ["add", "fail"])]
    schema: String,
    /// The way to apply a full export: `merge` changes the rows that differ, `truncate` empties the table first
    #[arg(long, default_value = "merge", value_parser = ["merge", "truncate"])]
    full: String,
    /// The way to apply deletions: `hard` deletes the rows, else the name of the timestamp or boolean column that marks
    /// deleted rows
    #[arg(long, value_name = "hard|COLUMN", default_value = "hard")]
    deletes: String,
    /// Acknowledge each applied export to the service
    #[arg(long, conflicts_with = "from")]
    ack: bool,
    /// Require that each manifest is signed. KEY is the public key in 64 hexadecimal digits, which the service logs
    /// when it starts. With several keys, any of them
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
}

impl Apply {
    /// Applies the exports that are available, and submits more.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let environment = Environment::read()?;
        let named = environment.target(&self.to).map_err(|why| BadUsage(format!("--to: {why}")))?;
        if let Some(file) = &named.authorities {
            config::trust_only(file).context("can't restart with the authorities of sslrootcert alone")?;
        }
        let api = self.server.as_ref().map(remote_api).transpose()?.map(|api| api.requiring(self.public_key.clone()));
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
            schema: None,
            trusted_owners: self.trust_owner,
            adds_columns: self.schema == "add",
            truncates: self.full == "truncate",
            deleted: Some(self.deletes).filter(|column| column != "hard"),
        };
        let connections = Arc::new(TargetConnections::new(database.options().clone()));
        let target = Target::new(connections, settings, self.consumer.clone(), dataset.clone());
        let mut mirror = TableMirror::new(target, Terminal::shared());
        let exports = match (&api, &self.from) {
            (Some(api), _) => ExportsFrom::Service(LaneReader {
                api,
                consumer: self.consumer,
                dataset,
                request: (self.request == "delta").then_some(ExportType::Delta),
                encoding: Encoding::new(Format::Csv, Compression::None).context("csv can be unpacked")?,
                skips_empty: self.every.is_some(),
                acks: self.ack,
            }),
            (None, from) => {
                let place = environment.place(from.as_deref().unwrap_or_default())?;
                ExportsFrom::Place(ManifestFolder::new(place, self.consumer, dataset, self.public_key))
            }
        };
        repeat(self.every, async || exports.round(&mut mirror).await).await
    }
}

/// The source of the exports.
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
