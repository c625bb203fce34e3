//! A request for exports of several datasets, which are read at one snapshot and completed together or not at all.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use pg_rows::export_type::ExportType;

pub const MOST_DATASETS: usize = 1_000;

/// A request with `datasets`, apart from what belongs to its exports. It is saved with its job in this JSON form.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DatasetsRequest {
    /// The members of the request's body, as the client sent them, and the datasets that `"*"` stood for at most. A
    /// repetition must have the same.
    pub request: Value,
    /// The type of the exports. One that was healed has another one.
    pub export_type: ExportType,
    /// The datasets of all exports. Some of the exports may be removed before the others.
    pub datasets: Vec<String>,
    /// The datasets that `"*"` does not export.
    pub left_out: Vec<Omitted>,
}

/// A dataset that `"*"` does not export.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = LeftOut)]
pub struct Omitted {
    /// Its name
    pub dataset: String,
    /// The reason as a word, as `GET /datasets` has it
    pub reason: String,
}
