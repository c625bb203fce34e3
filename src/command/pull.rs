//! `pull`: downloads the exports of a consumer into folders, in the order of each lane, and submits new ones.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use cdc_manifest::{Lane, PublicKey};
use clap::Args;
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::export_type::ExportType;
use tokio::task::spawn_blocking;

use crate::command::BadUsage;
use crate::command::lanes::{LaneOptions, LaneTask};
use crate::command::server::{AddressParser, remote_api};
use crate::command::start::block_on;
use crate::command::terminal::Terminal;
use crate::command::words::{compressions, words};
use cdc_client::{LaneReader, Observer, PullFolder, ServiceAddress, WhenLocked};

/// The consumer, the service and the folder.
#[derive(Args)]
pub(crate) struct Pull {
    #[command(flatten)]
    lanes: LaneOptions,
    /// The address of the service. The key in CDC_EXPORT_KEY is sent to it
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: ServiceAddress,
    /// The folder for the files, which is created if it is missing. A hidden file in it records the last export, so the
    /// other files may be moved away. With several datasets, each has a folder of its name within this one
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,
    /// The type of export to submit once all are downloaded. If it finds nothing, it makes no file. Unless it is
    /// `none`, a full export is submitted if only a full export can follow. A first delta has all soft-deleted rows:
    /// begin with `full` to leave them out
    #[arg(long, value_name = "TYPE", default_value = "none", value_parser = ["delta", "incremental", "full", "none"])]
    request: String,
    /// The format of the submitted exports [default: csv]. A file of another format, for which somebody else has asked,
    /// is downloaded too, and a line says so
    #[arg(long, value_parser = words::<Format>(Format::ALL.iter().map(|it| it.as_str())))]
    format: Option<Format>,
    #[arg(long)]
    #[arg(help = format!("The compression of the submitted exports: {} [default: the first of these]", compressions()))]
    #[arg(value_parser = words::<Compression>(Compression::ALL.iter().map(|it| it.as_str())))]
    compression: Option<Compression>,
    /// Acknowledge each downloaded export to the service. Retention keeps exports that are not acknowledged
    #[arg(long)]
    ack: bool,
    /// Require that the service signs each manifest. KEY is the public key in 64 hexadecimal digits, which the service
    /// logs when it starts. With several keys, any of them
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
}

impl Pull {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Pull { lanes, server, into, request, format, compression, ack, public_key } = self;
        let request = ExportType::ALL.iter().copied().find(|export_type| export_type.as_str() == request);
        let encoding =
            Encoding::new(format.unwrap_or(Format::Csv), compression).map_err(|why| BadUsage(why.to_string()))?;
        let terminal = Terminal::shared();
        let api = remote_api(&server, Arc::clone(&terminal))?.requiring(public_key);
        let (consumer, adopts) = (lanes.consumer.clone(), lanes.adopt);
        let implied = async || match PullFolder::dataset_of(&into)? {
            Some(recorded) => Ok(recorded),
            None => Ok(api.implied_dataset().await?),
        };
        let recorded = async || Ok(PullFolder::datasets_in(&into, &consumer)?);
        let read = async |task: LaneTask| {
            let (folder, consumer) = (task.folder_in(&into)?, consumer.clone());
            let when_locked = if task.is_one_of_several { WhenLocked::Refuse } else { WhenLocked::Wait };
            let LaneTask { dataset, terminal, is_submitted, group, .. } = task;
            let api = api.observed_by(Arc::clone(&terminal) as Arc<dyn Observer>);
            let (opened_by, of) = (consumer.clone(), dataset.clone());
            let open = move || {
                let lane = Lane { consumer: &opened_by, dataset: &of };
                PullFolder::open(&folder, lane, group, format, when_locked, &*terminal)
            };
            let mut folder = spawn_blocking(open).await??;
            let acks = ack;
            let api = &api;
            let lane = LaneReader { api, consumer, dataset, request, encoding, is_submitted, acks, adopts };
            Ok(folder.follow(&lane).await?)
        };
        block_on(lanes.run(Some(&api), request.map(|request| (request, encoding)), &terminal, implied, recorded, read))
    }
}
