//! `pull`: downloads the exports of a consumer into a folder, one after the other, and submits new ones.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::job::{ConsumerId, ExportType};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::words::UnknownWord;
use tokio::task::spawn_blocking;

use crate::client::api::Api;
use crate::client::lane_reader::LaneReader;
use crate::client::pull_folder::{PullFolder, read_dataset};
use crate::client::remote::ServiceAddress;
use crate::command::BadUsage;
use crate::command::rounds::{repeat, until_signal};
use crate::command::server::{AddressParser, remote_api};
use crate::command::start::block_on;
use crate::command::terminal::Terminal;
use crate::command::words::{pause, words};
use crate::manifest::seal::PublicKey;

/// The consumer, the service and the folder.
#[derive(Args)]
pub(crate) struct Pull {
    /// The consumer whose exports to download
    #[arg(long)]
    consumer: ConsumerId,
    /// The dataset whose exports to download [default: users, or the only one there is]
    #[arg(long)]
    dataset: Option<String>,
    /// The address of the service. The key in CDC_EXPORT_KEY is sent to it
    #[arg(long, value_name = "URL", value_parser = AddressParser)]
    server: ServiceAddress,
    /// The folder for the files, which is created if it is missing. A hidden file in it records the last export, so the
    /// other files may be moved away
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,
    /// The type of export to submit once all are downloaded. Unless it is `none`, a full export is submitted if only a
    /// full export can follow
    #[arg(long, value_name = "TYPE", default_value = "none", value_parser = request())]
    request: RequestedType,
    /// Repeat until SIGTERM, with this pause between rounds, such as 5m
    #[arg(long, value_name = "TIME", value_parser = pause)]
    every: Option<Duration>,
    /// The format of the submitted exports
    #[arg(long, default_value = "csv", value_parser = words::<Format>(Format::ALL.iter().map(|it| it.as_str())))]
    format: Format,
    /// The compression of the submitted exports
    #[arg(long, default_value = "none", value_parser = words::<Compression>(Compression::ALL.iter().map(|it| it.as_str())))]
    compression: Compression,
    /// Acknowledge each downloaded export to the service. Retention keeps exports that are not acknowledged
    #[arg(long)]
    ack: bool,
    /// Require that the service signs each manifest. KEY is the public key in 64 hexadecimal digits, which the service
    /// logs when it starts. With several keys, any of them
    #[arg(long, value_name = "KEY")]
    public_key: Vec<PublicKey>,
}

#[derive(Clone, Copy)]
struct RequestedType(Option<ExportType>);

fn request() -> impl TypedValueParser<Value = RequestedType> {
    let words = ["delta", "incremental", "full", "none"];
    PossibleValuesParser::new(words).try_map(|word| -> Result<RequestedType, UnknownWord> {
        Ok(RequestedType(if word == "none" { None } else { Some(word.parse()?) }))
    })
}

impl Pull {
    /// Downloads the exports that are available, prints their paths, and submits more.
    pub(crate) fn run(mut self) -> anyhow::Result<ExitCode> {
        let api = remote_api(&self.server)?.requiring(std::mem::take(&mut self.public_key));
        block_on(until_signal(self.every, self.pull(&api)))
    }

    async fn pull(self, api: &Api) -> anyhow::Result<()> {
        let Pull { consumer, dataset, into, request: RequestedType(request), every, format, compression, ack, .. } =
            self;
        let encoding = Encoding::new(format, compression).map_err(|why| BadUsage(why.to_string()))?;
        let dataset = match dataset {
            Some(named) => named,
            None => match read_dataset(&into)? {
                Some(recorded) => recorded,
                None => api.implied_dataset().await?,
            },
        };
        let lane = (consumer.clone(), dataset.clone());
        let open = move || PullFolder::open(&into, &lane.0, lane.1, &Terminal::default());
        let mut folder = spawn_blocking(open).await??;
        let skips_empty = every.is_some();
        let lane = LaneReader { api, consumer, dataset, request, encoding, skips_empty, acks: ack };
        repeat(every, async || Ok(lane.round(&mut folder).await?)).await
    }
}
