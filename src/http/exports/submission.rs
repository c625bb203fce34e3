//! The input of a call that creates an export: consumer, idempotency key and body. This module converts it into a
//! [`Request`] for `service`.

use std::borrow::Cow;
use std::ops::RangeInclusive;

use axum::extract::{FromRequest, FromRequestParts, Request as HttpRequest};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::http::body::{JsonBody, given, invalid, unknown};
use crate::http::code::Code;
use crate::http::input::{Key, MaybeConsumer};
use crate::http::problem::Problem;
use crate::http::schemas::DatasetName;
use crate::http::traces;
use crate::job::json::{CompressionSchema, FormatSchema};
use crate::job::selection::{Condition, Operator, Selection};
use crate::job::{After, ConsumerId, ExportType, FILE_BYTES, IdempotencyKey, Request};
use crate::service::Service;
use crate::trace::TraceParent;
use pg_rows::encoding::{Compression, Encoding, Format};

/// Maximum number of columns of a Postgres table.
const MAX_COLUMNS: usize = 1_600;
const MAX_CONDITIONS: usize = 100;

/// The input of a call that creates an export. `C` extracts the consumer or the job that the export is for. `B` is the
/// body.
pub(crate) struct Submission<C, B> {
    pub(crate) target: C,
    pub(crate) key: Option<IdempotencyKey>,
    /// The position of the call in a trace.
    pub(crate) trace: Option<TraceParent>,
    pub(crate) body: B,
}

impl<S, C, B> FromRequest<S> for Submission<C, B>
where
    S: Send + Sync,
    C: FromRequestParts<S, Rejection = Problem> + Send,
    JsonBody<B>: FromRequest<S, Rejection = Problem>,
{
    type Rejection = Problem;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Submission<C, B>, Problem> {
        let (mut parts, body) = request.into_parts();
        let target = C::from_request_parts(&mut parts, state).await?;
        let Key(key) = Key::from_request_parts(&mut parts, state).await?;
        let trace = traces::place_of(&parts.headers);
        let JsonBody(body) = JsonBody::from_request(HttpRequest::from_parts(parts, body), state).await?;
        Ok(Submission { target, key, trace, body })
    }
}

impl<C: IntoParams, B> IntoParams for Submission<C, B> {
    fn into_params(place: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        C::into_params(&place).into_iter().chain(Key::into_params(&place)).collect()
    }
}

impl<C: Into<ConsumerId>> Submission<C, ExportOptions> {
    /// Returns the request for an export of the type given by the call's path.
    pub(crate) fn request(self, service: &Service, export_type: ExportType) -> Result<Request, Problem> {
        let Submission { target, key, trace, body: ExportOptions(body) } = self;
        body.refuse(&["exportType"])?;
        body.refuse(&AD_HOC_MEMBERS)?;
        Ok(Request { key, trace, ..body.request(service, Some(target.into()), export_type)? })
    }
}

impl Submission<MaybeConsumer, NewExport> {
    /// Returns the request for an export of any type, or for an ad-hoc export.
    pub(crate) fn request(self, service: &Service) -> Result<Request, Problem> {
        let Submission { target: MaybeConsumer(consumer), key, trace, body } = self;
        body.refuse(if consumer.is_some() { &AD_HOC_MEMBERS } else { &CONSUMER_MEMBERS })?;
        let export_type = body.export_type.unwrap_or(ExportType::Full);
        if consumer.is_none() && export_type != ExportType::Full {
            let detail = format!("X-Consumer-ID: the header is missing, and {export_type} is relative to a consumer");
            return Err(Problem::bad_input(Code::ConsumerRequired, "X-Consumer-ID", detail));
        }
        Ok(Request { key, trace, ..body.request(service, consumer, export_type)? })
    }
}

/// Members accepted only for an ad-hoc export.
const AD_HOC_MEMBERS: [&str; 3] = ["columns", "filter", "limit"];
/// Members accepted only for a consumer's export.
const CONSUMER_MEMBERS: [&str; 3] = ["after", "afterSha256", "skipEmpty"];

/// The body of `POST /exports`. All members are optional.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({
    "columns": ["id", "email"], "filter": [{ "column": "id", "op": "gte", "value": 100 }], "limit": 1000
}))]
pub(crate) struct NewExport {
    /// The set of rows; without a consumer, only `full` is allowed. The default is `full`
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = ExportType)]
    export_type: Option<ExportType>,
    /// The dataset to export. The default is `users`, or the only dataset
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = DatasetName)]
    dataset: Option<String>,
    /// The file's format. The default is `csv`
    #[serde(default = "csv")]
    #[schema(required = false, value_type = FormatSchema)]
    format: Format,
    /// The file's compression; not allowed with `parquet`. The default is `none`
    #[serde(default = "uncompressed")]
    #[schema(required = false, value_type = CompressionSchema)]
    compression: Compression,
    /// The size in bytes at which the service starts another file. Each file is complete by itself. The default is the
    /// value of the dataset; without one, there is a single file
    #[serde(default, deserialize_with = "file_bytes")]
    #[schema(required = false, value_type = u64, minimum = 16777216, maximum = 5368709120i64)]
    max_file_bytes: Option<u64>,
    /// With a consumer: true to make no file if an incremental export or a delta finds nothing. The default is the
    /// value of the dataset, or false
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = bool)]
    skip_empty: Option<bool>,
    /// With a consumer: the export that the caller loaded last; null for none. The call is refused if it is not the
    /// consumer's last export; a full export is never refused. If omitted, nothing is checked
    #[serde(default, deserialize_with = "job_or_null")]
    #[schema(required = false, value_type = Option<Uuid>)]
    after: Option<Option<Uuid>>,
    /// With an id in `after`: the SHA-256 of the loaded file; for several files, the export's `digest`
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = String, pattern = "^[0-9a-f]{64}$")]
    after_sha256: Option<String>,
    /// The columns of the file, in this order; only without a consumer
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = Vec<String>, min_items = 1, max_items = 1600)]
    columns: Option<Vec<String>>,
    /// Conditions that a row must all meet; only without a consumer
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = Vec<ConditionBody>, max_items = 100)]
    filter: Option<Vec<ConditionBody>>,
    /// The maximum number of rows, in the order of the key; only without a consumer
    #[serde(default, deserialize_with = "row_limit")]
    #[schema(required = false, value_type = u64, minimum = 1, maximum = 9223372036854775807i64)]
    limit: Option<u64>,
}

/// The body of a call whose path determines the type: a [`NewExport`] with fewer members.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct ExportOptions(NewExport);

impl ToSchema for ExportOptions {
    fn name() -> Cow<'static, str> {
        "Options".into()
    }
}

impl PartialSchema for ExportOptions {
    fn schema() -> RefOr<Schema> {
        let RefOr::T(Schema::Object(mut schema)) = NewExport::schema() else { unreachable!("NewExport is a struct") };
        schema.properties.retain(|name, _| name != "exportType" && !AD_HOC_MEMBERS.contains(&name.as_str()));
        let description = "The body of a call whose path determines the type. All members are optional.";
        schema.description = Some(description.to_owned());
        schema.example = Some(json!({ "format": "ndjson", "compression": "zstd" }));
        schema.into()
    }
}

/// A condition on a column.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object of column, op and value")]
#[schema(as = Condition, example = json!({ "column": "id", "op": "in", "value": [1, 2, 3] }))]
struct ConditionBody {
    /// The column
    column: String,
    /// The operator that compares the column with `value`
    op: Operator,
    /// A string, a number or a boolean that the column's type accepts; for `in` a list of those; for `isNull` a boolean
    #[schema(value_type = Value)]
    value: Operand,
}

/// The operand of a condition. All variants hold text, which Postgres parses with the column's type. So a number keeps
/// all of its digits.
enum Operand {
    Boolean(&'static str),
    Scalar(String),
    List(Vec<String>),
}

/// An empty object.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Nothing)]
pub(crate) struct EmptyBody {}

fn csv() -> Format {
    Format::Csv
}

fn uncompressed() -> Compression {
    Compression::None
}

fn job_or_null<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<Uuid>>, D::Error> {
    let job = |text: String| text.parse::<Uuid>().ok();
    let read = Option::<String>::deserialize(from).ok().and_then(|text| match text {
        Some(text) => job(text).map(Some),
        None => Some(None),
    });
    read.map(Some).ok_or_else(|| D::Error::custom("the id of an export, or null, is expected"))
}

fn row_limit<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    number_in(1..=i64::MAX as u64, from)
}

fn file_bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    number_in(FILE_BYTES, from)
}

fn number_in<'de, D: Deserializer<'de>>(range: RangeInclusive<u64>, from: D) -> Result<Option<u64>, D::Error> {
    // `16777216.0` is also a whole number. Above 2^53, a float may differ from the intended number.
    let whole = |number: f64| (number.fract() == 0.0 && (0.0..=9e15).contains(&number)).then_some(number as u64);
    let text = Box::<RawValue>::deserialize(from)?;
    let number = text.get().parse().ok().or_else(|| text.get().parse().ok().and_then(whole));
    let number = number.filter(|number| range.contains(number));
    let expected = || format!("a whole number from {} to {} is expected", range.start(), range.end());
    number.map(Some).ok_or_else(|| D::Error::custom(expected()))
}

impl<'de> Deserialize<'de> for Operand {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Operand, D::Error> {
        let value = Box::<RawValue>::deserialize(from)?;
        let operand = match value.get() {
            "true" => Some(Operand::Boolean("true")),
            "false" => Some(Operand::Boolean("false")),
            text if text.starts_with('[') => texts_of(text).map(Operand::List),
            _ => scalar(&value).map(Operand::Scalar),
        };
        operand.ok_or_else(|| {
            D::Error::custom(
                "a string, a number or a boolean is expected, or for `in` a list of those; use isNull for NULL",
            )
        })
    }
}

fn texts_of(list: &str) -> Option<Vec<String>> {
    let values: Vec<&RawValue> = serde_json::from_str(list).ok()?;
    values.into_iter().map(scalar).collect()
}

/// Returns a string, a number or a boolean as text for the column's type to parse.
fn scalar(value: &RawValue) -> Option<String> {
    match value.get() {
        // Text in Postgres cannot contain NUL.
        text if text.starts_with('"') => serde_json::from_str(text).ok().filter(|text: &String| !text.contains('\0')),
        text if text.starts_with(['[', '{', 'n']) => None,
        text => Some(text.to_owned()),
    }
}

impl NewExport {
    /// Refuses the body if it has one of these members.
    fn refuse(&self, members: &[&str]) -> Result<(), Problem> {
        let given = [
            ("exportType", self.export_type.is_some()),
            ("columns", self.columns.is_some()),
            ("filter", self.filter.is_some()),
            ("limit", self.limit.is_some()),
            ("after", self.after.is_some()),
            ("afterSha256", self.after_sha256.is_some()),
            ("skipEmpty", self.skip_empty.is_some()),
        ];
        match given.iter().find(|(name, is_given)| *is_given && members.contains(name)) {
            Some((name, _)) => Err(unknown(name, &[])),
            None => Ok(()),
        }
    }

    /// Converts the body into a request. The caller adds the values from the headers.
    fn request(
        self,
        service: &Service,
        consumer: Option<ConsumerId>,
        export_type: ExportType,
    ) -> Result<Request, Problem> {
        let dataset = dataset_of(service, self.dataset)?;
        let selection = Selection {
            columns: self.columns.map(checked_columns).transpose()?,
            filter: conditions_of(self.filter.unwrap_or_default())?,
            limit: self.limit,
        };
        let encoding = encoding_of(self.format, self.compression)?;
        let after = after_of(self.after, self.after_sha256)?;
        let request = Request::new(consumer, dataset, export_type, encoding);
        let (max_file_bytes, skip_empty) = (self.max_file_bytes, self.skip_empty);
        Ok(Request { selection, max_file_bytes, skip_empty, after, ..request })
    }
}

fn dataset_of(service: &Service, name: Option<String>) -> Result<String, Problem> {
    match name {
        Some(name) => service.require_dataset(&name).map(|()| name).map_err(Problem::from),
        None => Ok(service.implied_dataset().map_err(|why| invalid("dataset", why))?.name.clone()),
    }
}

fn encoding_of(format: Format, compression: Compression) -> Result<Encoding, Problem> {
    Encoding::new(format, compression).map_err(|why| invalid(why.member(), why))
}

/// Combines `after` and `afterSha256`. Returns `None` if both are missing.
fn after_of(after: Option<Option<Uuid>>, sha256: Option<String>) -> Result<Option<After>, Problem> {
    match (after, sha256) {
        (None, None) => Ok(None),
        (Some(None), None) => Ok(Some(After::Nothing)),
        (Some(Some(_)), Some(text)) if !After::is_sha256(&text) => {
            Err(invalid("afterSha256", "64 hexadecimal digits in lower case are expected"))
        }
        (Some(Some(job)), sha256) => Ok(Some(After::Export { job: job.into(), sha256 })),
        (_, Some(_)) => Err(invalid("afterSha256", "`after` must contain the id of an export")),
    }
}

fn checked_columns(names: Vec<String>) -> Result<Vec<String>, Problem> {
    if !(1..=MAX_COLUMNS).contains(&names.len()) {
        return Err(invalid("columns", format!("a list of 1 to {MAX_COLUMNS} strings is expected")));
    }
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((i, name)) => Err(invalid(&format!("columns[{i}]"), format!("`{name}` is listed twice"))),
        None => Ok(names),
    }
}

fn conditions_of(conditions: Vec<ConditionBody>) -> Result<Vec<Condition>, Problem> {
    if conditions.len() > MAX_CONDITIONS {
        return Err(invalid("filter", format!("a list of up to {MAX_CONDITIONS} objects is expected")));
    }
    let read = |(i, condition): (usize, ConditionBody)| {
        condition.read().map_err(|expected| invalid(&format!("filter[{i}].value"), expected))
    };
    conditions.into_iter().enumerate().map(read).collect()
}

impl ConditionBody {
    /// Converts the body into a condition. Returns a description of the accepted values as `Err`.
    fn read(self) -> Result<Condition, &'static str> {
        let ConditionBody { column, op: operator, value } = self;
        let value = match (operator, value) {
            (Operator::In, Operand::List(texts)) => json!(texts).to_string(),
            (Operator::In, _) => return Err("a list of strings, numbers or booleans is expected"),
            (Operator::IsNull, Operand::Boolean(word)) => word.to_owned(),
            (Operator::IsNull, _) => return Err("true or false is expected"),
            (_, Operand::Boolean(word)) => word.to_owned(),
            (_, Operand::Scalar(text)) => text,
            (_, Operand::List(_)) => return Err("a string, a number or a boolean is expected"),
        };
        Ok(Condition { column, operator, value })
    }
}
