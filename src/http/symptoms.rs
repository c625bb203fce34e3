//! `/symptoms`: each word of an error, a job or a consumer, with its cause and its remedy.
//!
//! The page is `docs/SYMPTOMS.md`, which `build.rs` turns into HTML. The binary embeds it, so it works without a
//! network.

use std::sync::LazyLock;

use axum::http::HeaderMap;
use axum::response::Response;

use crate::http::page::Asset;

/// Content security policy. The page has text and the styles of this origin, and no script.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

pub(super) static PAGE: LazyLock<Asset> =
    LazyLock::new(|| Asset::new("symptoms.html", include_str!(concat!(env!("OUT_DIR"), "/symptoms.html")), POLICY));

/// Show the cause and the remedy of each word
///
/// Each word of an error, a job or a consumer has a place of its own, such as `/symptoms#storage_full`.
#[utoipa::path(
    get, path = "/symptoms", operation_id = "getSymptoms", tag = "service",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub(crate) async fn page(headers: HeaderMap) -> Response {
    PAGE.answer(&headers)
}
