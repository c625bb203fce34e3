//! `apply`: keeps tables of another Postgres equal to the source.

use std::process::ExitCode;
use std::sync::Arc;

use crate::config::Environment;
use anyhow::Context;
use cdc_client::{
    LaneReader, ManifestFolder, Observer, ServiceAddress, TableMirror, Target, TargetConnections, TargetSettings,
};
use clap::builder::NonEmptyStringValueParser;
use clap::{ArgGroup, Args};
use pg_rows::encoding::{Encoding, Format};
use pg_rows::export_type::ExportType;
use pg_session::table_name::Table;

use crate::command::BadUsage;
use crate::command::lanes::{LaneOptions, LaneTask};
use crate::command::server::{AddressParser, remote_api};
use crate::command::start::{arm, block_on};
use crate::command::terminal::Terminal;
use cdc_manifest::PublicKey;

/// The consumer, the source of its exports, and the target table.
#[derive(Args)]
#[command(group = ArgGroup::new("source").args(["server", "from"]).required(true))]
pub(crate) struct Apply {
    /// The target database, as postgres://USER@HOST:PORT/DATABASE. Put a password into ~/.pgpass or PGPASSWORD, because
    /// `ps` shows arguments
    #[arg(long, value_name = "URL")]
    to: String,
    #[command(flatten)]
    lanes: LaneOptions,
    /// The address of the service. The key in CDC_EXPORT_KEY is sent to it
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: Option<ServiceAddress>,
    /// Read the exports from this folder or bucket by their manifests, without a service
    #[arg(long, value_name = "PLACE", requires = "dataset", conflicts_with_all = ["all_datasets", "adopt"])]
    from: Option<String>,
    /// The target table, which is made by the first export [default: the source table's schema and name]
    #[arg(long, value_name = "SCHEMA.TABLE")]
    table: Option<Table>,
    /// The schema of the target tables, which have the names of the source tables [default: the source table's schema]
    #[arg(long, value_name = "NAME", conflicts_with = "table", value_parser = NonEmptyStringValueParser::new())]
    target_schema: Option<String>,
    /// The type of export to submit once all are applied. With `delta`, a full export is submitted if only a full
    /// export can follow. A delta that finds nothing makes no file
    #[arg(long, default_value = "delta", value_parser = ["delta", "none"], conflicts_with = "from")]
    request: String,
    /// Keep the columns of the dataset's `meta`, such as `_order`, in the table. They are left out otherwise
    #[arg(long)]
    meta: bool,
    /// Acknowledge each applied export to the service
    #[arg(long, conflicts_with = "from")]
    ack: bool,
    /// Require that each manifest is signed. KEY is the public key in 64 hexadecimal digits, which the service logs
    /// when it starts. With several keys, any of them
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
}

impl Apply {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let environment = Environment::read()?;
        let named = environment.target(&self.to).map_err(|why| BadUsage(format!("--to: {why}")))?;
        if self.table.is_some() && self.lanes.are_several() {
            return Err(BadUsage("--table: it needs exactly one --dataset".to_owned()).into());
        }
        let terminal = Terminal::shared();
        let api = self.server.as_ref().map(|server| remote_api(server, Arc::clone(&terminal))).transpose()?;
        let api = api.map(|api| api.requiring(self.public_key.clone()));
        let place = self.from.as_deref().map(|from| environment.place(from)).transpose()?;
        if api.is_none() {
            arm(&environment)?;
        }
        let adopts = self.lanes.adopt;
        let settings = TargetSettings { table: self.table, schema: self.target_schema, keeps_meta: self.meta, adopts };
        let (options, limit) = (named.database.options().clone(), named.database.connect_timeout());
        let observer = Arc::clone(&terminal) as Arc<dyn Observer>;
        let connections = Arc::new(TargetConnections::new(options, limit, observer));
        let consumer = self.lanes.consumer.clone();
        let request = (self.request == "delta").then_some(ExportType::Delta);
        let encoding = Encoding::new(Format::Csv, None).context("csv can be unpacked")?;
        let implied = async || match &api {
            Some(api) => Ok(api.implied_dataset().await?),
            None => Err(BadUsage("--dataset: one is to be named".to_owned()).into()),
        };
        let recorded = async || Ok(connections.datasets(&consumer, settings.schema.as_deref()).await?);
        let read = async |task: LaneTask| {
            let LaneTask { dataset, terminal, is_submitted, group, turn, .. } = task;
            let (connections, consumer) = (Arc::clone(&connections), consumer.clone());
            let target = Target::new(connections, settings.clone(), consumer.clone(), dataset.clone());
            let mut mirror = TableMirror::new(target, Arc::clone(&terminal) as Arc<dyn Observer>, group, turn);
            mirror.refresh().await?;
            if let Some(place) = &place {
                let folder = ManifestFolder::new(place.clone(), consumer, dataset, self.public_key.clone());
                return Ok(folder.round(&mut mirror).await?);
            }
            let api = api.as_ref().context("clap requires --server or --from")?.observed_by(terminal);
            let acks = self.ack;
            let api = &api;
            let lane = LaneReader { api, consumer, dataset, request, encoding, is_submitted, acks, adopts };
            Ok(mirror.follow(&lane).await?)
        };
        block_on(self.lanes.run(
            api.as_ref(),
            request.map(|request| (request, encoding)),
            &terminal,
            implied,
            recorded,
            read,
        ))
    }
}
