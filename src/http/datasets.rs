//! `/datasets`: the datasets of the catalog and the current state of their tables.

use std::time::Duration;

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::catalog::pattern::LeftOut;
use crate::http::code::Code;
use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::http::schemas::{DatasetName, MetaColumnSchema};
use crate::job::json::rfc3339;
use crate::service::{CachedRead, Service};
use cdc_dataset::{Description, Fault, MaskRule, TableColumn};
use pg_rows::meta::MetaColumn;
use pg_session::table_name::Table;

/// All datasets.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Datasets {
    /// The datasets, in the order of the catalog. Then come the tables that a pattern matches and that are not datasets
    items: Vec<DatasetBody>,
    /// The tables whose changes are captured although no dataset needs them. Remove the capture with `cdc-export
    /// untrack --table`
    tables_without_dataset: Vec<String>,
    /// The time when the tables were looked at. With many datasets that may be up to a minute ago
    #[schema(format = DateTime)]
    as_of: String,
}

/// A dataset.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Dataset)]
pub(crate) struct DatasetBody {
    /// The dataset's name in all calls
    name: String,
    /// The dataset's table
    table: String,
    /// The columns of a file; null if the table does not match the catalog
    #[schema(required)]
    columns: Option<Vec<ColumnBody>>,
    /// The name of the first column of a delta; null as `columns`
    #[schema(required)]
    operation_column: Option<String>,
    /// The columns of a file behind those of the table; null as `columns`
    #[schema(required)]
    #[schema(value_type = Option<Vec<MetaColumnSchema>>)]
    meta: Option<Vec<MetaColumn>>,
    /// The columns that identify a row
    #[schema(required)]
    key: Option<Vec<String>>,
    /// The column with the time of a row's last change
    #[schema(required)]
    updated_at: Option<String>,
    /// The column with the time of a row's creation
    #[schema(required)]
    created_at: Option<String>,
    /// The column that marks a row as deleted: a boolean, or the time of the deletion
    #[schema(required)]
    deleted: Option<String>,
    /// The method of change capture: `triggers`, `timestamp` or `none`; null if the table is not a dataset
    #[schema(required, pattern = "^(triggers|timestamp|none)$")]
    capture: Option<&'static str>,
    /// True if an export could start now
    ready: bool,
    /// The reason why an export could not start now, as a word; null if it could
    #[schema(
        required,
        pattern = "^(not_tracked|permission_denied|dataset_mismatch|mask_column_missing|mask_removed|needs_block|partition|unlogged|another_owner|no_key|no_updated_at|name_invalid|name_clash|name_taken)$"
    )]
    reason: Option<&'static str>,
    /// The reasons why an export could not start now, as sentences
    problems: Vec<String>,
    /// The approximate number of rows in the table; null until Postgres has analyzed it
    #[schema(required)]
    rows: Option<u64>,
    /// The table's size on disk in bytes, without its indexes
    bytes: u64,
}

/// A column of a file.
#[derive(Serialize, ToSchema)]
#[schema(as = TableColumn)]
pub(crate) struct ColumnBody {
    /// The column's name
    name: String,
    /// The column's type in Postgres
    #[serde(rename = "type")]
    type_name: String,
    /// The column's name in files; null if it is the same
    #[schema(required)]
    rename: Option<String>,
    /// The rule by which the files replace its values; null if they have them as they are
    #[schema(required)]
    mask: Option<String>,
}

/// List the datasets
#[utoipa::path(
    get, path = "/datasets", operation_id = "listDatasets", tag = "datasets",
    responses((status = 200, description = "The datasets that the key may see.", body = Datasets)),
    extensions(("x-codes" = json!([Code::TableUnreadable, Code::DatasetMismatch]))),
)]
pub(crate) async fn list(service: Service) -> Result<Json<Datasets>, Problem> {
    let CachedRead { value, as_of } = service.datasets(Duration::ZERO).await?;
    let described = value.datasets.iter().cloned().map(DatasetBody::from);
    Ok(Json(Datasets {
        items: described.chain(service.left_out().iter().map(DatasetBody::from)).collect(),
        tables_without_dataset: value.without_dataset.iter().map(Table::to_string).collect(),
        as_of: rfc3339(as_of),
    }))
}

/// Get a dataset
#[utoipa::path(
    get, path = "/datasets/{name}", operation_id = "getDataset", tag = "datasets",
    params(("name" = DatasetName, Path, description = "Its name", example = "users")),
    responses((status = 200, description = "The dataset.", body = DatasetBody)),
    extensions(("x-codes" = json!([Code::NoDataset, Code::DatasetNotAllowed, Code::TableUnreadable, Code::DatasetMismatch]))),
)]
pub(crate) async fn get(service: Service, PathParameter(name): PathParameter) -> Result<Json<DatasetBody>, Problem> {
    let dataset = service.dataset(&name)?;
    Ok(Json(service.describe(dataset).await?.into()))
}

/// Returns the reasons why consumers cannot export a dataset. The list is empty if the dataset is ready.
pub(crate) fn problems(description: &Description) -> Vec<String> {
    let Description { dataset, schema, unreadable, captured, log_obstacle, why_untracked, .. } = description;
    let faults = schema.as_ref().err().map(|faults| faults.0.as_slice()).unwrap_or_default();
    let mut problems: Vec<_> =
        faults.iter().chain(unreadable).map(|Fault { member, why, .. }| format!("{member}: {why}")).collect();
    if !captured {
        problems.push(match why_untracked {
            Some(why) => format!("its changes are not captured, and its table can't be tracked: {why}"),
            None => format!("its changes are not captured: `cdc-export track {}`", dataset.name),
        });
    }
    problems.extend(log_obstacle.clone());
    problems
}

impl From<&LeftOut> for DatasetBody {
    fn from(left_out: &LeftOut) -> DatasetBody {
        DatasetBody {
            name: left_out.name.clone(),
            table: left_out.table.to_string(),
            columns: None,
            operation_column: None,
            meta: None,
            key: None,
            updated_at: None,
            created_at: None,
            deleted: None,
            capture: None,
            ready: false,
            reason: Some(left_out.reason.as_str()),
            problems: vec![left_out.to_string()],
            rows: None,
            bytes: 0,
        }
    }
}

impl From<Description> for DatasetBody {
    fn from(description: Description) -> DatasetBody {
        let (problems, reason) = (problems(&description), description.reason());
        let Description { dataset, schema, rows, bytes, .. } = description;
        let schema = schema.ok();
        let columns = schema.as_ref().map(|schema| {
            let column = |column: &TableColumn| ColumnBody {
                name: column.name.to_string(),
                type_name: column.type_name.to_string(),
                rename: column.rename.clone(),
                mask: column.mask.as_ref().map(MaskRule::to_string),
            };
            schema.columns.iter().map(column).collect()
        });
        DatasetBody {
            name: dataset.name.clone(),
            table: dataset.table.to_string(),
            columns,
            operation_column: schema.as_ref().map(|schema| schema.operation.name.to_string()),
            meta: schema.as_ref().map(|schema| schema.meta.clone()),
            key: schema.map(|schema| schema.key.into_iter().map(|part| part.column.name.into_owned()).collect()),
            updated_at: dataset.updated_at.clone(),
            created_at: dataset.created_at.clone(),
            deleted: dataset.deleted.clone(),
            capture: Some(dataset.capture.as_str()),
            reason,
            ready: problems.is_empty(),
            problems,
            rows,
            bytes,
        }
    }
}
