//! `/datasets`: what may be exported.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::dataset::{Capture, Column, Description};
use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::service::Service;

/// Every dataset.
#[derive(Serialize)]
pub(crate) struct Datasets {
    items: Vec<DatasetBody>,
}

/// A dataset as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DatasetBody {
    name: String,
    table: String,
    /// Columns and key; null where the table isn't as the operator says.
    columns: Option<Vec<ColumnBody>>,
    key: Option<Vec<String>>,
    updated_at: Option<String>,
    created_at: Option<String>,
    deleted: Option<String>,
    capture: &'static str,
    /// Whether an export could start now.
    ready: bool,
    /// Why not.
    problems: Vec<String>,
    /// About how many rows the table has; null until somebody has counted.
    rows: Option<u64>,
    bytes: u64,
}

/// A column of a file as JSON.
#[derive(Serialize)]
pub(crate) struct ColumnBody {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
}

/// `GET /datasets`, in the order of the catalogue.
pub(crate) async fn list(State(service): State<Service>) -> Result<Json<Datasets>, Problem> {
    let datasets = service.datasets().await?;
    Ok(Json(Datasets { items: datasets.into_iter().map(DatasetBody::from).collect() }))
}

/// `GET /datasets/{name}`
pub(crate) async fn get(
    State(service): State<Service>,
    PathParameter(name): PathParameter,
) -> Result<Json<DatasetBody>, Problem> {
    let dataset = service.dataset(&name)?;
    Ok(Json(service.describe(dataset).await?.into()))
}

impl From<Description> for DatasetBody {
    fn from(description: Description) -> DatasetBody {
        let Description { dataset, shape, rows, bytes, captured } = description;
        let faults = shape.as_ref().err().map(|faults| faults.0.as_slice()).unwrap_or_default();
        let mut problems: Vec<_> = faults.iter().map(ToString::to_string).collect();
        if !captured {
            problems.push(format!("its changes are not captured: `cdc-export track {}`", dataset.name));
        }
        let shape = shape.ok();
        let columns = shape.as_ref().map(|shape| {
            let column =
                |column: &Column| ColumnBody { name: column.name.to_string(), type_name: column.type_name.to_string() };
            shape.columns.iter().map(column).collect()
        });
        DatasetBody {
            name: dataset.name.clone(),
            table: dataset.table.to_string(),
            columns,
            key: shape.map(|shape| shape.key.into_iter().map(|column| column.name.into_owned()).collect()),
            updated_at: dataset.updated_at.clone(),
            created_at: dataset.created_at.clone(),
            deleted: dataset.deleted.clone(),
            capture: match dataset.capture {
                Capture::Triggers => "triggers",
                Capture::Timestamp { .. } => "timestamp",
            },
            ready: problems.is_empty(),
            problems,
            rows,
            bytes,
        }
    }
}
