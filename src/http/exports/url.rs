//! `/exports/{jobId}/url`: a presigned URL to download the file directly from the bucket.

use axum::Json;
use axum::http::header;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::code::Code;
use crate::http::input::PathExport;
use crate::http::problem::Problem;
use crate::job::json::rfc3339;
use crate::service::Service;
use crate::service::files::FileUrl;

/// An address of a file at its store.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = FileUrl, example = json!({
    "url": "https://acme-exports.s3.eu-central-1.amazonaws.com/shop/users/search/full_search_20261120T091315Z_4f1c9a02.csv?X-Amz-Signature=…",
    "expiresAt": "2026-11-20T09:18:15.958121Z"
}))]
pub(crate) struct FileUrlBody {
    /// The URL of the file for GET requests; needs no key
    url: String,
    /// The time at which the URL expires
    #[schema(format = DateTime)]
    expires_at: String,
}

/// Get a presigned URL of an export's file
///
/// Use it to download the file from the bucket instead of through the service. The URL needs no key: anyone who has it
/// may download the file until it expires.
#[utoipa::path(
    get, path = "/exports/{jobId}/url", operation_id = "getExportUrl", tag = "exports",
    params(PathExport),
    responses((status = 200, description = "The URL.", body = FileUrlBody, headers(
        ("Cache-Control" = String, description = "`no-store`"),
    ))),
    extensions(("x-codes" = json!([
        Code::SeveralDatasets, Code::NotCompleted, Code::NoFile, Code::NoUrl, Code::SeveralFiles, Code::FileGone,
        Code::FileOnOtherHost, Code::OutputMissing, Code::OutputFailed, Code::StorageFull, Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn url(
    service: Service,
    PathExport { job, dataset }: PathExport,
) -> Result<impl IntoResponse, Problem> {
    let FileUrl { url, expires_at } = service.file_url(job, dataset.as_deref()).await?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(FileUrlBody { url, expires_at: rfc3339(expires_at) })))
}
