//! `/exports/{jobId}/manifest`: the files of an export and a reference to the previous export.

use axum::extract::Query;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::http::code::Code;
use crate::http::input::PathExport;
use crate::http::problem::Problem;
use crate::service::Service;
use cdc_manifest::Manifest;

/// The query of a manifest.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ManifestQuery {
    /// `uris` returns only the addresses of the files, one per line, as BigQuery and Athena accept them
    #[serde(rename = "as")]
    #[param(value_type = Option<String>, pattern = "^uris$", example = "uris")]
    form: Option<String>,
}

/// Get an export's manifest
///
/// Returns the same text that the service writes beside the files if `MANIFESTS` is on. It begins with `entries` for
/// Redshift. Then follow the export's properties, its files with their SHA-256, and the digest of the previous export.
#[utoipa::path(
    get, path = "/exports/{jobId}/manifest", operation_id = "getExportManifest", tag = "exports",
    params(PathExport, ManifestQuery),
    responses((status = 200, description = "The manifest.", content(
        (serde_json::Value = "application/json"), (String = "text/plain"),
    ))),
    extensions(("x-codes" = json!([Code::SeveralDatasets, Code::NotCompleted, Code::NoFile, Code::NoManifest]))),
)]
pub(crate) async fn manifest(
    service: Service,
    PathExport { job, dataset }: PathExport,
    Query(ManifestQuery { form }): Query<ManifestQuery>,
) -> Result<Response, Problem> {
    let wants_uris = match form.as_deref() {
        None => false,
        Some("uris") => true,
        Some(_) => return Err(Problem::bad_parameter("as", "`uris` is expected, or nothing")),
    };
    let text = service.manifest(job, dataset.as_deref()).await?;
    if !wants_uris {
        return Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response());
    }
    let uris = Manifest::read(text.as_bytes()).map_err(|_| Problem::internal())?.uris();
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], uris).into_response())
}
