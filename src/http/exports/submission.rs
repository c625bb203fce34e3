//! The input of a call that creates an export: consumer, idempotency key and body. This module converts it into a
//! [`Request`] for `service`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use axum::extract::{FromRequest, FromRequestParts, Request as HttpRequest};
use serde::Deserialize;
use serde::de::{Deserializer, Error};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::openapi::path::{Parameter, ParameterIn};
use utoipa::openapi::schema::{ArrayBuilder, KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::http::body::{JsonBody, given, invalid, unknown};
use crate::http::code::Code;
use crate::http::input::{Key, MaybeConsumer, dataset_or_implied};
use crate::http::problem::Problem;
use crate::http::schemas::{DatasetName, OperatorSchema};
use crate::http::traces;
use crate::job::datasets::MOST_DATASETS;
use crate::job::json::{CompressionSchema, ExportTypeSchema, FormatSchema};
use crate::job::{FILE_BYTES, IdempotencyKey, Request};
use crate::service::Service;
use crate::service::datasets_order::{DatasetsOrder, NamedDatasets};
use crate::trace::TraceParent;
use cdc_dataset::{Condition, Operator, Selection};
use cdc_manifest::{After, ConsumerId};
use pg_rows::encoding::{Compression, Encoding, Format};
use pg_rows::export_type::ExportType;

/// Maximum number of columns of a Postgres table.
const MAX_COLUMNS: usize = 1_600;
const MAX_CONDITIONS: usize = 100;

/// The input of a call that creates an export. `C` extracts the consumer or the job that the export is for. `B` is the
/// body.
pub(crate) struct Submission<C, B> {
    pub(crate) target: C,
    pub(crate) key: Option<IdempotencyKey>,
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

/// The exports that a call asks for.
pub(crate) enum RequestedExports {
    Export(Request),
    Datasets(DatasetsOrder),
}

impl<C: Into<ConsumerId>> Submission<C, ExportOptions> {
    /// Returns the exports that a call asks for whose path has the type.
    pub(crate) fn requested(self, service: &Service, export_type: ExportType) -> Result<RequestedExports, Problem> {
        let Submission { target, key, trace, body: ExportOptions(body) } = self;
        body.refuse(&["exportType"])?;
        body.refuse(&AD_HOC_MEMBERS)?;
        body.requested(service, Some(target.into()), export_type, key, trace)
    }
}

impl Submission<MaybeConsumer, NewExport> {
    /// Returns the exports that a call for exports of any type asks for.
    pub(crate) fn requested(self, service: &Service) -> Result<RequestedExports, Problem> {
        let Submission { target: MaybeConsumer(consumer), key, trace, body } = self;
        body.refuse(if consumer.is_some() { &AD_HOC_MEMBERS } else { &CONSUMER_MEMBERS })?;
        let export_type = body.export_type.unwrap_or(ExportType::Full);
        if consumer.is_none() && export_type != ExportType::Full {
            let detail = format!("X-Consumer-ID: the header is missing, and {export_type} is relative to a consumer");
            return Err(Problem::bad_input(Code::ConsumerRequired, "X-Consumer-ID", detail));
        }
        body.requested(service, consumer, export_type, key, trace)
    }
}

/// Members accepted only for an ad-hoc export.
const AD_HOC_MEMBERS: [&str; 3] = ["columns", "filter", "limit"];
/// Members accepted only for a consumer's export.
const CONSUMER_MEMBERS: [&str; 5] = ["after", "afterSha256", "datasets", "heal", "skipEmpty"];

/// The body of `POST /exports`. All members are optional.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schema(example = json!({
    "columns": ["id", "email"], "filter": [{ "column": "id", "op": "gte", "value": 100 }], "limit": 1000
}))]
pub(crate) struct NewExport {
    /// The set of rows; without a consumer, only `full` is allowed. The default is `full`
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = ExportTypeSchema)]
    export_type: Option<ExportType>,
    /// The dataset to export. The default is `users`, or the only dataset
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = DatasetName)]
    dataset: Option<String>,
    /// With a consumer, in place of `dataset`: the datasets, up to 1,000, or `"*"` for each one that is ready. All are
    /// read at one snapshot, and all exports are completed in one transaction or none
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = DatasetsBody)]
    datasets: Option<DatasetsBody>,
    /// With `datasets`: true to make a full export of each dataset that needs one, in the same job. The default is
    /// false: such a dataset fails the job
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = bool)]
    heal: Option<bool>,
    /// The file's format. The default is `csv`
    #[serde(default = "csv")]
    #[schema(required = false, value_type = FormatSchema)]
    format: Format,
    /// The file's compression: `none`, `gzip` or `zstd`; with `parquet`, inside the file, `zstd`, `snappy`, `lz4` or
    /// `none`. The default is the first of these
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = CompressionSchema)]
    compression: Option<Compression>,
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
    /// consumer's last export; a full export is never refused. If omitted, nothing is checked. With `datasets`, an
    /// object of such values by the names of datasets
    #[serde(default, deserialize_with = "given")]
    #[schema(required = false, value_type = AfterBody)]
    after: Option<AfterBody>,
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
    #[schema(value_type = OperatorSchema)]
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

/// The member `datasets`: a list of names, or `"*"`.
struct DatasetsBody(NamedDatasets);

impl ToSchema for DatasetsBody {
    fn name() -> Cow<'static, str> {
        "NamedDatasets".into()
    }
}

impl PartialSchema for DatasetsBody {
    fn schema() -> RefOr<Schema> {
        let all = ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["*"]));
        let names = ArrayBuilder::new().items(DatasetName::schema()).min_items(Some(1)).max_items(Some(MOST_DATASETS));
        Schema::from(OneOfBuilder::new().item(all).item(names.unique_items(true))).into()
    }
}

impl<'de> Deserialize<'de> for DatasetsBody {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<DatasetsBody, D::Error> {
        let value = Box::<RawValue>::deserialize(from)?;
        if serde_json::from_str::<String>(value.get()).is_ok_and(|text| text == "*") {
            return Ok(DatasetsBody(NamedDatasets::All));
        }
        let names = serde_json::from_str(value.get());
        names
            .map(|names| DatasetsBody(NamedDatasets::Listed(names)))
            .map_err(|_| D::Error::custom("a list of datasets, or \"*\", is expected"))
    }
}

/// The member `after`: an export or null, or an object of them by datasets.
enum AfterBody {
    One(Option<Uuid>),
    ByDataset(BTreeMap<String, Option<Uuid>>),
}

impl ToSchema for AfterBody {
    fn name() -> Cow<'static, str> {
        "LoadedLast".into()
    }
}

impl PartialSchema for AfterBody {
    fn schema() -> RefOr<Schema> {
        let uuid = SchemaFormat::KnownFormat(KnownFormat::Uuid);
        let one = || {
            let types = SchemaType::from_iter([Type::String, Type::Null]);
            ObjectBuilder::new().schema_type(types).format(Some(uuid.clone()))
        };
        let by_dataset = ObjectBuilder::new().additional_properties(Some(one()));
        Schema::from(OneOfBuilder::new().item(one()).item(by_dataset)).into()
    }
}

impl<'de> Deserialize<'de> for AfterBody {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<AfterBody, D::Error> {
        let value = Box::<RawValue>::deserialize(from)?;
        let read = match value.get().starts_with('{') {
            true => serde_json::from_str(value.get()).map(AfterBody::ByDataset),
            false => serde_json::from_str(value.get()).map(AfterBody::One),
        };
        read.map_err(|_| D::Error::custom("the id of an export, or null, is expected"))
    }
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
    fn refuse(&self, members: &[&str]) -> Result<(), Problem> {
        let given = [
            ("exportType", self.export_type.is_some()),
            ("columns", self.columns.is_some()),
            ("filter", self.filter.is_some()),
            ("limit", self.limit.is_some()),
            ("datasets", self.datasets.is_some()),
            ("heal", self.heal.is_some()),
            ("after", self.after.is_some()),
            ("afterSha256", self.after_sha256.is_some()),
            ("skipEmpty", self.skip_empty.is_some()),
        ];
        match given.iter().find(|(name, is_given)| *is_given && members.contains(name)) {
            Some((name, _)) => Err(unknown(name, &[])),
            None => Ok(()),
        }
    }

    /// Converts the body, with the values from the headers.
    fn requested(
        mut self,
        service: &Service,
        consumer: Option<ConsumerId>,
        export_type: ExportType,
        key: Option<IdempotencyKey>,
        trace: Option<TraceParent>,
    ) -> Result<RequestedExports, Problem> {
        let Some(DatasetsBody(datasets)) = self.datasets.take() else {
            if self.heal.is_some() {
                return Err(invalid("heal", "allowed only together with `datasets`"));
            }
            return Ok(RequestedExports::Export(Request {
                key,
                trace,
                ..self.request(service, consumer, export_type)?
            }));
        };
        if self.dataset.is_some() {
            return Err(invalid("datasets", "not allowed together with `dataset`"));
        }
        if self.after_sha256.is_some() {
            return Err(invalid("afterSha256", "not allowed together with `datasets`"));
        }
        if let NamedDatasets::Listed(names) = &datasets {
            check_names("datasets", names, MOST_DATASETS, "datasets")?;
            names.iter().try_for_each(|name| service.require_dataset(name))?;
        }
        let after = after_by_dataset(self.after, &datasets)?;
        let encoding = encoding_of(self.format, self.compression)?;
        let (max_file_bytes, skip_empty, heals) = (self.max_file_bytes, self.skip_empty, self.heal == Some(true));
        let of_each = Request::new(consumer, String::new(), export_type, encoding);
        let of_each = Request { max_file_bytes, skip_empty, heals, key, trace, ..of_each };
        Ok(RequestedExports::Datasets(DatasetsOrder { of_each, datasets, after }))
    }

    /// Converts the body into a request for one export. The caller adds the values from the headers.
    fn request(
        self,
        service: &Service,
        consumer: Option<ConsumerId>,
        export_type: ExportType,
    ) -> Result<Request, Problem> {
        let dataset = dataset_or_implied(service, self.dataset, invalid)?;
        if let Some(columns) = &self.columns {
            check_names("columns", columns, MAX_COLUMNS, "strings")?;
        }
        let selection = Selection {
            columns: self.columns,
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

fn encoding_of(format: Format, compression: Option<Compression>) -> Result<Encoding, Problem> {
    Encoding::new(format, compression).map_err(|why| invalid(why.member(), why))
}

/// Combines `after` and `afterSha256`. Returns `None` if both are missing.
fn after_of(after: Option<AfterBody>, sha256: Option<String>) -> Result<Option<After>, Problem> {
    let after = match after {
        None => None,
        Some(AfterBody::One(after)) => Some(after),
        Some(AfterBody::ByDataset(_)) => return Err(invalid("after", "the id of an export, or null, is expected")),
    };
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

fn after_by_dataset(after: Option<AfterBody>, datasets: &NamedDatasets) -> Result<BTreeMap<String, After>, Problem> {
    let by_dataset = match after {
        None => BTreeMap::new(),
        Some(AfterBody::ByDataset(by_dataset)) => by_dataset,
        Some(AfterBody::One(_)) => {
            return Err(invalid(
                "after",
                "with `datasets`, an object is expected: for each dataset an export, or null",
            ));
        }
    };
    let is_requested = |name: &String| match datasets {
        NamedDatasets::All => true,
        NamedDatasets::Listed(names) => names.contains(name),
    };
    if let Some(other) = by_dataset.keys().find(|name| !is_requested(name)) {
        return Err(invalid("after", format!("`{other}` is none of `datasets`")));
    }
    let after = |job: Option<Uuid>| job.map_or(After::Nothing, |job| After::Export { job: job.into(), sha256: None });
    Ok(by_dataset.into_iter().map(|(dataset, job)| (dataset, after(job))).collect())
}

/// Checks that a list has 1 to `most` names, and none of them twice.
fn check_names(member: &str, names: &[String], most: usize, what: &str) -> Result<(), Problem> {
    if !(1..=most).contains(&names.len()) {
        return Err(invalid(member, format!("a list of 1 to {most} {what} is expected")));
    }
    match names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
        Some((i, name)) => Err(invalid(&format!("{member}[{i}]"), format!("`{name}` is listed twice"))),
        None => Ok(()),
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
