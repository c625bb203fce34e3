//! Extracts and validates headers and parameters: consumer, job id, dataset and idempotency key.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query, RawPathParams};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::Deserialize;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{Ref, Required};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::catalog::mistake::SeveralDatasets;
use crate::http::access::service_of;
use crate::http::code::Code;
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::job::IdempotencyKey;
use crate::job::json::ConsumerSchema;
use crate::key;
use crate::service::{self, Service};
use cdc_manifest::{ConsumerId, JobId, is_dataset_name};
use pg_rows::export_type::ExportType;

pub(crate) const CONSUMER_HEADER: &str = "X-Consumer-ID";
pub(crate) const KEY_HEADER: &str = "Idempotency-Key";

/// The consumer from the header, if the header is present. The extractor has checked that the caller may access this
/// consumer.
pub(crate) struct MaybeConsumer(pub(crate) Option<ConsumerId>);

impl<S: Sync> FromRequestParts<S> for MaybeConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<MaybeConsumer, Problem> {
        let consumer = header_of(&parts.headers, CONSUMER_HEADER, Code::ConsumerInvalid)?;
        service_of(parts)?.require_consumer(consumer.as_ref())?;
        Ok(MaybeConsumer(consumer))
    }
}

/// The consumer from the header. The extractor has checked that the caller may access this consumer.
pub(crate) struct Consumer(pub(crate) ConsumerId);

impl<S: Sync> FromRequestParts<S> for Consumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Consumer, Problem> {
        let consumer = header_of(&parts.headers, CONSUMER_HEADER, Code::ConsumerInvalid)?.ok_or_else(|| {
            let detail =
                format!("{CONSUMER_HEADER}: the header is missing, which names the consumer, such as `warehouse`");
            Problem::bad_input(Code::ConsumerRequired, CONSUMER_HEADER, detail)
        })?;
        service_of(parts)?.require_consumer(Some(&consumer))?;
        Ok(Consumer(consumer))
    }
}

pub(crate) struct Key(pub(crate) Option<IdempotencyKey>);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Key, Problem> {
        header_of(&parts.headers, KEY_HEADER, Code::IdempotencyKeyInvalid).map(Key)
    }
}

impl IntoParams for Consumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter(CONSUMER_HEADER, ParameterIn::Header).required(Required::True).build()]
    }
}

impl IntoParams for MaybeConsumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter(CONSUMER_HEADER, ParameterIn::Header).required(Required::False).build()]
    }
}

impl IntoParams for PathConsumer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![consumer_parameter("consumer_id", ParameterIn::Path).required(Required::True).build()]
    }
}

fn consumer_parameter(name: &str, place: ParameterIn) -> ParameterBuilder {
    let schema = Ref::from_schema_name(ConsumerSchema::name());
    let parameter = ParameterBuilder::new().name(name).parameter_in(place).schema(Some(schema));
    parameter.description(Some("The consumer of the export")).example(Some("search".into()))
}

impl IntoParams for PathJob {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema =
            ObjectBuilder::new().schema_type(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
        let parameter = ParameterBuilder::new().name("jobId").parameter_in(ParameterIn::Path).required(Required::True);
        let parameter = parameter.description(Some("The id returned by the call that requested the export"));
        vec![parameter.schema(Some(schema)).example(Some("01a1f83b-3f18-718b-bb88-fdeaa3d54f3e".into())).build()]
    }
}

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^[!-~]{1,255}$"));
        let key = ParameterBuilder::new().name(KEY_HEADER).parameter_in(ParameterIn::Header).required(Required::False);
        let key = key.schema(Some(schema)).example(Some("order-7".into())).description(Some(
            "A name for this request. If the client sends it again, the service returns the first job and creates no second one, \
             as long as it keeps the job",
        ));
        vec![key.build()]
    }
}

/// Returns the dataset of a parameter or a member, or the implied dataset if it is missing. The caller may see this
/// dataset. `bad` makes the problem if it is missing and no dataset is implied.
pub(crate) fn dataset_or_implied(
    service: &Service,
    name: Option<String>,
    bad: fn(&str, SeveralDatasets) -> Problem,
) -> Result<String, Problem> {
    match name {
        Some(name) => service.require_dataset(&name).map(|()| name).map_err(Problem::from),
        None => Ok(service.implied_dataset().map_err(|why| bad("dataset", why))?.name.clone()),
    }
}

/// Validates the name of a dataset. The dataset may be missing from the catalog, because its exports are kept.
pub(crate) fn dataset(name: String) -> Result<String, Problem> {
    let bad = || Problem::bad_parameter("dataset", "the name of a dataset is expected");
    if is_dataset_name(&name) { Ok(name) } else { Err(bad()) }
}

/// Parses a header, if present. Refuses a header given twice, because the values might differ.
fn header_of<T>(headers: &HeaderMap, name: &str, code: Code) -> Result<Option<T>, Problem>
where
    T: FromStr<Err: Display>,
{
    let bad = |why: &dyn Display| Problem::bad_input(code, name, format!("{name}: {why}"));
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        // It would be in logs and file names.
        (Some(value), None) if value.to_str().is_ok_and(key::is_in) => {
            Err(bad(&"this is an API key, which belongs into Authorization"))
        }
        (Some(value), None) => value.to_str().unwrap_or_default().parse().map(Some).map_err(|why| bad(&why)),
        (Some(_), Some(_)) => Err(bad(&"given twice")),
    }
}

/// Returns true if `If-None-Match` contains this `ETag`. The comparison is weak (RFC 9110, section 13.1.2).
pub(crate) fn matches_etag(headers: &HeaderMap, etag: &[u8]) -> bool {
    let tags = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    let mut tags = tags.flat_map(|tags| tags.split(',')).map(|tag| tag.trim().trim_start_matches("W/"));
    tags.any(|tag| tag == "*" || tag.as_bytes() == etag)
}

/// The consumer from the path. The extractor has checked that the caller may access this consumer.
pub(crate) struct PathConsumer(pub(crate) ConsumerId);

impl<S: Send + Sync> FromRequestParts<S> for PathConsumer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathConsumer, Problem> {
        // A segment that cannot be decoded becomes an empty text, which is an invalid id.
        let text = PathParameter::from_request_parts(parts, state).await.map(|PathParameter(text)| text);
        let text = text.unwrap_or_default();
        // These are likely typos of calls under `/exports/`. Accepting one as an id would create an unintended consumer
        // and move its watermark.
        if text == "watermark" || text.parse::<ExportType>().is_ok() {
            let detail = format!(
                "there is nothing at this path: the call is /exports/{text}, with the consumer in {CONSUMER_HEADER}"
            );
            return Err(Problem::not_found(&detail));
        }
        let consumer = text.parse();
        let consumer = consumer
            .map_err(|why| Problem::bad_input(Code::ConsumerInvalid, "consumer_id", format!("consumer_id: {why}")))?;
        service_of(parts)?.require_consumer(Some(&consumer))?;
        // A contradicting header is refused. The position of a consumer that the client did not intend must not move.
        let header = header_of::<ConsumerId>(&parts.headers, CONSUMER_HEADER, Code::ConsumerInvalid)?;
        if header.is_some_and(|header| header != consumer) {
            let detail = format!("{CONSUMER_HEADER}: the path names another consumer");
            return Err(Problem::bad_input(Code::ConsumerInvalid, CONSUMER_HEADER, detail));
        }
        Ok(PathConsumer(consumer))
    }
}

impl From<Consumer> for ConsumerId {
    fn from(Consumer(consumer): Consumer) -> ConsumerId {
        consumer
    }
}

impl From<PathConsumer> for ConsumerId {
    fn from(PathConsumer(consumer): PathConsumer) -> ConsumerId {
        consumer
    }
}

/// The single path parameter. A path that cannot be decoded results in 404.
pub(crate) struct PathParameter(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathParameter {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathParameter, Problem> {
        let parameters = RawPathParams::from_request_parts(parts, state).await;
        let parameters = parameters.map_err(|_| Problem::not_found("there is nothing at this path"))?;
        let first = parameters.iter().next().map(|(_, value)| value.to_owned());
        Ok(PathParameter(first.expect("the route has a parameter")))
    }
}

/// The job from the path. A malformed id and an unknown job result in the same response, and so does a job that the
/// caller may not see. So a client cannot detect jobs of other clients.
pub(crate) struct PathJob(pub(crate) JobId);

impl<S: Send + Sync> FromRequestParts<S> for PathJob {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathJob, Problem> {
        let PathParameter(id) = PathParameter::from_request_parts(parts, state).await?;
        Ok(PathJob(Uuid::try_parse(&id).map_err(|_| service::Error::NoJob)?.into()))
    }
}

/// An export of a job: the job from the path, and the dataset from the query, if it is given.
pub(crate) struct PathExport {
    pub(crate) job: JobId,
    pub(crate) dataset: Option<String>,
}

/// The query of a call for an export of a job.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ExportDatasetQuery {
    /// The dataset of the export. Optional if the job has only one export
    #[param(value_type = Option<DatasetName>, example = "users")]
    dataset: Option<String>,
}

impl<S: Send + Sync> FromRequestParts<S> for PathExport {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<PathExport, Problem> {
        let PathJob(job) = PathJob::from_request_parts(parts, state).await?;
        let query = Query::<ExportDatasetQuery>::try_from_uri(&parts.uri);
        let Query(ExportDatasetQuery { dataset }) =
            query.map_err(|_| Problem::new(Code::BadRequest, "the query can't be read"))?;
        Ok(PathExport { job, dataset: dataset.map(self::dataset).transpose()? })
    }
}

impl IntoParams for PathExport {
    fn into_params(place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        PathJob::into_params(&place).into_iter().chain(ExportDatasetQuery::into_params(&place)).collect()
    }
}
