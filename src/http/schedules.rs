//! `/schedules`: the periodic exports with their last and next runs.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::Problem;
use crate::job::json::{AnyJobJson, CompressionSchema, ConsumerSchema, ExportTypeSchema, FormatSchema, rfc3339};
use crate::schedule::ScheduledDatasets;
use crate::service::Service;
use crate::service::schedules::ListedSchedule;
use pg_rows::export_type::ExportType;

/// All schedules.
#[derive(Serialize, ToSchema)]
pub(crate) struct Schedules {
    /// The schedules, in the order of the operator's file
    items: Vec<ScheduleBody>,
}

/// A schedule.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Schedule)]
pub(crate) struct ScheduleBody {
    /// The schedule's name
    name: String,
    /// The id of the consumer whose exports it requests
    #[schema(value_type = ConsumerSchema)]
    consumer_id: String,
    /// The dataset's name; null if its jobs have several datasets
    #[schema(required)]
    dataset: Option<String>,
    /// The datasets of its jobs, or `["*"]` for all that are ready; null if `dataset` has the only one
    #[schema(required)]
    datasets: Option<Vec<String>>,
    /// The type of its exports
    #[schema(value_type = ExportTypeSchema)]
    export_type: ExportType,
    /// The format of their files
    #[schema(value_type = FormatSchema)]
    format: &'static str,
    /// The compression of their files
    #[schema(value_type = CompressionSchema)]
    compression: &'static str,
    /// The interval of its slots, such as `5m`, counted from 1970; null if it uses `cron`
    #[schema(required)]
    every: Option<String>,
    /// The cron pattern of its slots; null if it uses `every`
    #[schema(required)]
    cron: Option<String>,
    /// The time zone of `cron`
    #[schema(required)]
    timezone: Option<String>,
    /// True if a full export follows one that failed with `full_export_needed`. With `datasets`, the full export is in
    /// the same job
    heal: bool,
    /// The slot of its next run; a slot in the past is due and has no export yet
    #[schema(required, format = DateTime)]
    next_at: Option<String>,
    /// The last slot that was used by an export or skipped; null if there is none
    #[schema(required, format = DateTime)]
    last_slot: Option<String>,
    /// The time when it last requested an export
    #[schema(required, format = DateTime)]
    last_run_at: Option<String>,
    /// The job requested then, if it is kept
    #[schema(required)]
    last_job: Option<AnyJobJson>,
    /// The number of slots skipped since `lastRunAt` because an export of the lane was still open
    skipped: u64,
    /// The time of the last skipped slot
    #[schema(required, format = DateTime)]
    skipped_at: Option<String>,
    /// The code with which the export of the due slot is currently refused; null if it is not refused
    #[schema(
        required,
        pattern = "^(no_dataset|table_missing|permission_denied|not_tracked|full_only|too_many_open_jobs|nothing_ready|too_many_datasets)$"
    )]
    refused: Option<&'static str>,
    /// The time since which it has been refused
    #[schema(required, format = DateTime)]
    refused_since: Option<String>,
}

/// List the schedules
#[utoipa::path(
    get, path = "/schedules", operation_id = "listSchedules", tag = "schedules",
    responses((status = 200, description = "All schedules that the key may see.", body = Schedules)),
)]
pub(crate) async fn list(service: Service) -> Result<Json<Schedules>, Problem> {
    let schedules = service.schedules().await?;
    Ok(Json(Schedules { items: schedules.into_iter().map(body).collect() }))
}

fn body(ListedSchedule { schedule, state, next_at, last_job }: ListedSchedule) -> ScheduleBody {
    let (cron, timezone) = schedule.timing.pattern().unzip();
    let (refused, refused_since) = state.refused.unzip();
    let (dataset, datasets) = match &schedule.datasets {
        ScheduledDatasets::One(name) => (Some(name.clone()), None),
        ScheduledDatasets::Listed(names) => (None, Some(names.clone())),
        ScheduledDatasets::All => (None, Some(vec!["*".to_owned()])),
    };
    ScheduleBody {
        name: schedule.name.clone(),
        consumer_id: schedule.consumer.to_string(),
        dataset,
        datasets,
        export_type: schedule.export_type,
        format: schedule.encoding.format.as_str(),
        compression: schedule.encoding.compression.as_str(),
        every: schedule.timing.interval(),
        cron: cron.map(str::to_owned),
        timezone: timezone.map(str::to_owned),
        heal: schedule.heals,
        next_at: next_at.map(rfc3339),
        last_slot: state.slot.map(rfc3339),
        last_run_at: state.last_run_at.map(rfc3339),
        last_job: last_job.map(AnyJobJson::from),
        skipped: state.skipped,
        skipped_at: state.skipped_at.map(rfc3339),
        refused: refused.map(|why| why.as_str()),
        refused_since: refused_since.map(rfc3339),
    }
}
