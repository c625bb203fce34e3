//! `plan`: shows the rows, the bytes and the query plan of an export, without running it.

use std::process::ExitCode;
use std::time::Duration;

use crate::config::{CatalogFile, Config};
use crate::dataset::{Description, RelationKind};
use crate::job::{ConsumerId, ExportType};
use crate::postgres::Database;
use crate::source::{self, Source, opening::Refused, snapshot::Purpose};
use crate::watermark::Waiting;
use clap::Args;
use indicatif::{BinaryBytes, HumanCount};
use pg_rows::encoding::Format;

use crate::command::catalog::named_or_implied;
use crate::command::database_handle::{CreateMissing, with_database};
use crate::command::start::{Logs, block_on, settings};
use crate::command::wiring::wire_service;
use crate::command::words::words;

/// The timeout of the locks and of `explain`. No rows are read.
const PLAN_TIMEOUT: Duration = Duration::from_secs(30);

/// The export to plan.
#[derive(Args)]
pub(crate) struct Plan {
    /// The type of the export
    #[arg(value_parser = words::<ExportType>(ExportType::ALL.iter().map(|it| it.as_str())))]
    export_type: ExportType,
    /// The dataset to export [default: users, or the only one there is]
    #[arg(long)]
    dataset: Option<String>,
    /// The consumer whose export to plan
    #[arg(long)]
    consumer: ConsumerId,
}

impl Plan {
    /// Opens the snapshot of the export, and prints how Postgres would read it.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let config = settings(CatalogFile::Read, Logs::Errors)?;
        block_on(with_database(&config, CreateMissing::Nothing, async |database| plan(&config, database, &self).await))
    }
}

async fn plan(config: &Config, database: &Database, arguments: &Plan) -> anyhow::Result<()> {
    let dataset = named_or_implied(config, arguments.dataset.as_deref())?;
    if !dataset.allows(arguments.export_type) {
        return Err(would_fail(source::Error::FullOnly(dataset.name.clone())));
    }
    let service = wire_service(config, database)?;
    let Description { rows, bytes, schema, .. } = service.describe(&dataset).await?;
    match rows {
        None if schema.is_ok_and(|schema| schema.relation == RelationKind::View) => {
            outln!("{} is a view, of which Postgres knows no number of rows.", dataset.table)?;
        }
        Some(rows) => outln!("{} has about {} rows in {}.", dataset.table, HumanCount(rows), BinaryBytes(bytes))?,
        None => outln!("Nobody has counted the rows of {} yet: ANALYZE does.", dataset.table)?,
    }
    if arguments.export_type != ExportType::Full {
        let waiting = match service.lag(&arguments.consumer, &dataset).await?.rows_waiting {
            Waiting::Exactly(rows) => HumanCount(rows).to_string(),
            Waiting::AtLeast(rows) => format!("at least {}", HumanCount(rows)),
            Waiting::Unknown => "an unknown number of".to_owned(),
        };
        outln!("For {} {waiting} changed rows are waiting.", arguments.consumer)?;
    }
    let marker = service.marker(&arguments.consumer, &dataset).await?;
    let (consumer, export_type) = (Some(&arguments.consumer), arguments.export_type);
    let (dataset, format, marker) = (&dataset, Format::Csv, marker.as_ref());
    let purpose = Purpose { dataset, consumer, export_type, format, job: None, marker };
    let source = Source::new(database.options().clone(), database.pool(1), 1);
    let connections = source.connections(PLAN_TIMEOUT).await?;
    let mut snapshot = match connections.open(&[purpose], PLAN_TIMEOUT).await {
        Ok(snapshot) => snapshot,
        Err(Refused { error, .. }) => return Err(would_fail(error)),
    };
    let (_, mut reading) = snapshot.split();
    let rows = reading.rows(0).await.map_err(would_fail)?;
    for plan in rows.explain(arguments.export_type, config.worker.cell_max).await? {
        outln!("\n{}", plan.join("\n"))?;
    }
    Ok(())
}

fn would_fail(error: source::Error) -> anyhow::Error {
    match error {
        source::Error::FullExportNeeded { .. } => anyhow::anyhow!("the export would fail: {error}"),
        error => error.into(),
    }
}
