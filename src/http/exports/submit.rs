//! The calls that make an export: what they carry, and what they answer.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::link::LinkBuilder;
use utoipa::openapi::{self, RefOr};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use crate::dataset::USERS;
use crate::http::input::{Consumer, MaybeConsumer, Members, PathConsumer, PathJob, Submission};
use crate::http::openapi::DatasetName;
use crate::http::problem::{Code, Problem};
use crate::job::encoding::{BadEncoding, Compression, Encoding, Format};
use crate::job::selection::{Operator, Selection};
use crate::job::{ConsumerId, ExportType, Job, Request};
use crate::service::{self, Service};

/// Ask for an export of any type, or an ad-hoc one
///
/// With `X-Consumer-ID` it is that consumer's, of the type that the body says. Without, it is an ad-hoc full export, which reads and
/// moves no watermark and runs beside others; only these take `columns`, `filter` and `limit`.
#[utoipa::path(
    post, path = "/exports", operation_id = "createExport", tag = "exports",
    params(Submission<MaybeConsumer>), request_body = NewExport, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs, Code::TableUnreadable, Code::DatasetMismatch,
    ]))),
)]
pub(crate) async fn create(
    State(service): State<Service>,
    Submission { of: MaybeConsumer(consumer), key, mut members }: Submission<MaybeConsumer>,
) -> Result<Response, Problem> {
    let export_type = members.take_word("exportType")?.unwrap_or(ExportType::Full);
    let selection = if consumer.is_none() { selection_of(&mut members)? } else { Selection::default() };
    let after = if consumer.is_some() { members.take_after()? } else { None };
    let (dataset, encoding) = options_of(members)?;
    if consumer.is_none() && export_type != ExportType::Full {
        let detail = format!("X-Consumer-ID: the header is missing, and {export_type} is relative to a consumer");
        return Err(Problem::bad_input(Code::ConsumerRequired, "X-Consumer-ID", detail));
    }
    let request = Request { consumer, dataset, export_type, selection, encoding, after, retry_of: None, key };
    Ok(accepted(submit(&service, &request).await?, "pending"))
}

/// Ask for every live row
///
/// The export moves the consumer's watermark to the latest `updated_at` among the rows.
#[utoipa::path(
    post, path = "/exports/full", operation_id = "startFull", tag = "exports",
    params(Submission<Consumer>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([Code::TooManyOpenJobs]))),
)]
pub(crate) async fn full(
    State(service): State<Service>,
    submission: Submission<Consumer>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Full).await
}

/// Ask for the live rows that changed since the consumer's last export
#[utoipa::path(
    post, path = "/exports/incremental", operation_id = "startIncremental", tag = "exports",
    params(Submission<Consumer>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs]))),
)]
pub(crate) async fn incremental(
    State(service): State<Service>,
    submission: Submission<Consumer>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Incremental).await
}

/// Ask for the rows that changed since the consumer's last export, deleted ones too
///
/// Each row has its operation: `INSERT`, `UPDATE` or `DELETE`. Deletions come first.
#[utoipa::path(
    post, path = "/exports/delta", operation_id = "startDelta", tag = "exports",
    params(Submission<Consumer>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs]))),
)]
pub(crate) async fn delta(
    State(service): State<Service>,
    submission: Submission<Consumer>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Delta).await
}

/// Ask for an incremental export of the consumer that the path names
#[utoipa::path(
    post, path = "/export/{consumer_id}", operation_id = "startIncrementalOf", tag = "exports",
    params(Submission<PathConsumer>), request_body = Options, responses(Submitted),
    extensions(("x-codes" = json!([Code::OutOfStep, Code::DatabaseRestored, Code::TooManyOpenJobs]))),
)]
pub(crate) async fn incremental_of(
    State(service): State<Service>,
    submission: Submission<PathConsumer>,
) -> Result<Response, Problem> {
    start(&service, submission, ExportType::Incremental).await
}

/// Starts an export of the type that the call's path has said.
async fn start<C: Into<ConsumerId>>(
    service: &Service,
    submission: Submission<C>,
    export_type: ExportType,
) -> Result<Response, Problem> {
    let Submission { of: consumer, key, mut members } = submission;
    let after = members.take_after()?;
    let ((dataset, encoding), selection) = (options_of(members)?, Selection::default());
    let consumer = Some(consumer.into());
    let request = Request { consumer, dataset, export_type, selection, encoding, after, retry_of: None, key };
    Ok(accepted(submit(service, &request).await?, "started"))
}

/// Ask again for an export that failed or was cancelled
///
/// It is a new job like that one, which it names in `retryOf`.
#[utoipa::path(
    post, path = "/exports/{jobId}/retry", operation_id = "retryExport", tag = "exports",
    params(Submission<PathJob>), request_body = Nothing, responses(Submitted),
    extensions(("x-codes" = json!([
        Code::NotFailed, Code::OutOfStep, Code::DatabaseRestored, Code::NoDataset, Code::TooManyOpenJobs, Code::TableUnreadable, Code::DatasetMismatch,
    ]))),
)]
pub(crate) async fn retry(
    State(service): State<Service>,
    Submission { of: PathJob(id), key, members }: Submission<PathJob>,
) -> Result<Response, Problem> {
    members.refuse_others()?;
    Ok(accepted(service.retry(id, key).await?, "pending"))
}

/// A dataset in a body is input, not the name of what is asked for.
async fn submit(service: &Service, request: &Request) -> Result<Job, Problem> {
    match service.submit(request).await {
        Err(error @ service::Error::NoDataset(_)) => {
            Err(Problem::bad_input(Code::MemberInvalid, "dataset", format!("dataset: {error}")))
        }
        done => Ok(done?),
    }
}

/// What of a dataset an ad-hoc export shall have.
fn selection_of(members: &mut Members) -> Result<Selection, Problem> {
    let columns = members.take_names("columns")?;
    let limit = members.take_number("limit", 1..=i64::MAX as u64)?;
    Ok(Selection { columns, filter: members.take_conditions("filter")?, limit })
}

/// The dataset, and how its rows are to be written, from what is left of the body.
fn options_of(mut members: Members) -> Result<(String, Encoding), Problem> {
    let dataset = members.take_text("dataset")?.unwrap_or_else(|| USERS.to_owned());
    let format = members.take_word("format")?.unwrap_or(Format::Csv);
    let compression = members.take_word("compression")?.unwrap_or(Compression::None);
    members.refuse_others()?;
    let encoding = Encoding::new(format, compression).map_err(|why| {
        let field = match why {
            BadEncoding::NotBuilt(_) => "format",
            BadEncoding::CompressedInside(_) => "compression",
        };
        Problem::bad_input(Code::MemberInvalid, field, format!("{field}: {why}"))
    });
    Ok((dataset, encoding?))
}

/// The body of a call whose path says the type: all of it may be left out.
#[derive(ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({ "format": "ndjson", "compression": "zstd" }))]
#[expect(dead_code, reason = "the document's: a body is read by `Members`, which names what is wrong with it")]
struct Options {
    /// Which dataset's rows
    #[schema(required = false, default = "users", value_type = DatasetName)]
    dataset: String,
    /// How they are written
    #[schema(required = false, default = "csv")]
    format: Format,
    /// What that is compressed with; not with `parquet`
    #[schema(required = false, default = "none")]
    compression: Compression,
    /// The export that the caller loaded last, null for none: the call is refused where the consumer's exports are elsewhere. Left out,
    /// nothing is checked. A full export is never refused by it
    #[schema(required = false, value_type = Option<Uuid>)]
    after: String,
    /// Beside an id in `after`: the SHA-256 of the file that was loaded
    #[schema(required = false, pattern = "^[0-9a-f]{64}$")]
    after_sha256: String,
}

/// The body of `POST /exports`: all of it may be left out.
#[derive(ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({
    "columns": ["id", "email"], "filter": [{ "column": "id", "op": "gte", "value": 100 }], "limit": 1000
}))]
#[expect(dead_code, reason = "the document's, as `Options`")]
struct NewExport {
    /// Which rows; without a consumer, `full` alone
    #[schema(required = false, default = "full")]
    export_type: ExportType,
    /// Which dataset's rows
    #[schema(required = false, default = "users", value_type = DatasetName)]
    dataset: String,
    /// How they are written
    #[schema(required = false, default = "csv")]
    format: Format,
    /// What that is compressed with; not with `parquet`
    #[schema(required = false, default = "none")]
    compression: Compression,
    /// With a consumer: the export that the caller loaded last, null for none
    #[schema(required = false, value_type = Option<Uuid>)]
    after: String,
    /// Beside an id in `after`: the SHA-256 of the file that was loaded
    #[schema(required = false, pattern = "^[0-9a-f]{64}$")]
    after_sha256: String,
    /// The columns of the file, in this order; without a consumer
    #[schema(required = false, min_items = 1, max_items = 1600)]
    columns: Vec<String>,
    /// What must hold of a row, all of it; without a consumer
    #[schema(required = false, max_items = 100)]
    filter: Vec<ConditionBody>,
    /// So many rows at most, the first by the key; without a consumer
    #[schema(required = false, minimum = 1, maximum = 9223372036854775807i64)]
    limit: u64,
}

/// A condition on a column.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Condition, example = json!({ "column": "id", "op": "in", "value": [1, 2, 3] }))]
#[expect(dead_code, reason = "the document's, as `Options`")]
struct ConditionBody {
    /// The column
    column: String,
    /// How it is compared
    op: Operator,
    /// With what: a string, a number or a boolean, read by the column's type; for `in` a list of such; for `isNull` a boolean
    #[schema(value_type = Value)]
    value: serde_json::Value,
}

/// No members.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// An export that was taken on.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "jobId": "01a1f83b-3f18-718b-bb88-fdeaa3d54f3e", "status": "started", "exportType": "delta",
    "outputFilename": "delta_search_20261120T091314Z.csv"
}))]
pub(crate) struct Submitted {
    /// Its id
    #[schema(value_type = Uuid)]
    job_id: String,
    /// `started` where the path said the type, else `pending`
    #[schema(pattern = "^(started|pending)$")]
    status: &'static str,
    /// Which rows it will hold
    #[schema(value_type = ExportType)]
    export_type: &'static str,
    /// The name that its file will have
    output_filename: String,
}

impl IntoResponses for Submitted {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let location =
            HeaderBuilder::new().schema(Some(String::schema())).description(Some("The job: `/exports/{jobId}`"));
        let to =
            |operation: &str| LinkBuilder::new().operation_id(operation).parameter("jobId", "$response.body#/jobId");
        let links = ["getExport", "followExport", "cancelExport", "downloadExport", "deleteExportFile"];
        let answer = openapi::ResponseBuilder::new()
            .description("The export was taken on. It will be done, whatever happens to this process.")
            .header("Location", location.build())
            .content("application/json", openapi::Content::new(Some(openapi::Ref::from_schema_name("Submitted"))));
        let answer = links.iter().fold(answer, |answer, operation| answer.link(*operation, to(operation).build()));
        BTreeMap::from([("202".to_owned(), answer.build().into())])
    }
}

/// A job was taken on; `status` is the word that the call's answer has for that.
fn accepted(job: Job, status: &'static str) -> Response {
    let location = [(header::LOCATION, format!("/exports/{}", job.id))];
    let answer = Submitted {
        job_id: job.id.to_string(),
        status,
        export_type: job.export_type.as_str(),
        output_filename: job.output_filename,
    };
    (StatusCode::ACCEPTED, location, Json(answer)).into_response()
}
