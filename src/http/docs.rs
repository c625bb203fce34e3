//! `/docs`: Swagger UI, which displays the API's document. The binary embeds all files, so the page works without a
//! network.

use std::io::Read;
use std::sync::LazyLock;

use axum::http::HeaderMap;
use axum::response::Response;
use flate2::read::DeflateDecoder;

use crate::http::input::PathParameter;
use crate::http::page::{Asset, Assets, INDEX, file_of};
use crate::http::problem::Problem;

/// Content security policy. Swagger UI needs only scripts, styles, images and calls of this origin.
///
/// Trusted types are not required: Swagger UI generates HTML from the document's Markdown and sanitizes it with
/// DOMPurify.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The embedded files by their names under `/docs/`; `/docs` serves `index.html`.
static ASSETS: LazyLock<Assets> = LazyLock::new(|| {
    let own = [
        ("docs.css", include_str!("docs/docs.css")),
        ("docs.js", include_str!("docs/docs.js")),
        (INDEX, include_str!("docs/index.html")),
    ];
    let own = own.map(|(name, text)| (name, Asset::new(name, text, POLICY)));
    let of_swagger_ui: [(&str, &[u8]); 2] = [
        ("swagger-ui-bundle.js", include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui-bundle.js.deflated"))),
        ("swagger-ui.css", include_bytes!(concat!(env!("OUT_DIR"), "/swagger-ui.css.deflated"))),
    ];
    let of_swagger_ui = of_swagger_ui.map(|(name, deflated)| (name, Asset::new(name, inflated(deflated), POLICY)));
    own.into_iter().chain(of_swagger_ui).collect()
});

fn inflated(deflated: &[u8]) -> String {
    let mut text = String::new();
    DeflateDecoder::new(deflated).read_to_string(&mut text).expect("build.rs has deflated a text");
    text
}

/// Show this description as a page
#[utoipa::path(
    get, path = "/docs", operation_id = "getDocs", tag = "service",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")),
)]
pub(crate) async fn page(headers: HeaderMap) -> Response {
    ASSETS[INDEX].answer(&headers)
}

pub(crate) async fn asset(PathParameter(name): PathParameter, headers: HeaderMap) -> Result<Response, Problem> {
    file_of(&ASSETS, &name, &headers)
}
