//! `/`: the page for operators and for developers of clients, and its files.
//!
//! The page is an ordinary client of the API. Its files contain no data, need no key and do not use `service`. The
//! binary embeds them, so the page and the API always have the same version.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pg_rows::encoding::Format;
use serde_json::json;

use crate::http::input::{self, PathParameter};
use crate::http::problem::Problem;

/// Content security policy: only scripts, styles and calls of this origin. A name or an error text cannot run as a
/// script, leave the page or appear in a foreign frame. Trusted types block the functions that parse text as HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

pub(crate) struct Asset {
    media_type: &'static str,
    text: Cow<'static, str>,
    etag: HeaderValue,
    policy: &'static str,
}

macro_rules! assets {
    ($($name:literal),* $(,)?) => {
        BTreeMap::from([$(($name, Asset::new($name, include_str!(concat!("page/", $name)), POLICY))),*])
    };
}

/// The page's files by their names under `/page/`; `/` serves `index.html`.
static ASSETS: LazyLock<Assets> = LazyLock::new(|| {
    let mut assets = assets![
        "actions.js",
        "api.js",
        "app.js",
        "aside.js",
        "banner.js",
        "chart.js",
        "consumer.js",
        "consumers.js",
        "curl.js",
        "dataset.js",
        "datasets.js",
        "deliveries.js",
        "dom.js",
        "download.js",
        "exports.js",
        "figures.js",
        "frame.css",
        "icon.svg",
        "index.html",
        "job.js",
        "jobexports.js",
        "jobrow.js",
        "jobs.js",
        "key.js",
        "overview.js",
        "pages.js",
        "present.js",
        "pulse.js",
        "question.js",
        "schedules.js",
        "start.js",
        "style.css",
        "symptoms.css",
        "words.js",
    ];
    assets.insert("compressions.js", Asset::new("compressions.js", compressions(), POLICY));
    assets
});

/// Returns the script with the compressions of each format, the default first. Those of Parquet are inside the file.
fn compressions() -> String {
    let all: BTreeMap<_, _> = Format::ALL.iter().map(|format| (format.as_str(), format.spec().compressions)).collect();
    format!("export const COMPRESSIONS = {};\n", json!(all))
}

/// The name of the page itself among its files.
pub(crate) const INDEX: &str = "index.html";

pub(crate) type Assets = BTreeMap<&'static str, Asset>;

impl Asset {
    /// Creates a file with this name. Browsers display it under the given content security policy.
    pub(crate) fn new(name: &str, text: impl Into<Cow<'static, str>>, policy: &'static str) -> Asset {
        let text = text.into();
        let media_type = match name.rsplit_once('.').map(|(_, extension)| extension) {
            Some("html") => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/javascript; charset=utf-8",
        };
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        let etag = format!("\"{}\"", hex::encode(&digest.as_ref()[..12]));
        let etag = etag.parse().expect("hexadecimal digits are a valid header value");
        Asset { media_type, text, etag, policy }
    }

    pub(crate) fn answer(&'static self, headers: &HeaderMap) -> Response {
        let own = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.media_type)),
            (header::ETAG, self.etag.clone()),
            // Browsers may store these files, because they contain no data. Browsers must revalidate them, because
            // modules of two versions are incompatible.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(self.policy)),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        ];
        if input::matches_etag(headers, self.etag.as_bytes()) {
            return (StatusCode::NOT_MODIFIED, own).into_response();
        }
        (own, &*self.text).into_response()
    }
}

/// `GET /`: returns the page, regardless of the `Accept` header. The data for programs is at other paths.
pub(crate) async fn index(headers: HeaderMap) -> Response {
    ASSETS[INDEX].answer(&headers)
}

pub(crate) async fn asset(PathParameter(name): PathParameter, headers: HeaderMap) -> Result<Response, Problem> {
    file_of(&ASSETS, &name, &headers)
}

/// Returns the response with this file of a page. The page itself has its own path.
pub(crate) fn file_of(assets: &'static Assets, name: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let asset = assets.get(name).filter(|_| name != INDEX);
    Ok(asset.ok_or_else(|| Problem::not_found("the page has no such file"))?.answer(headers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{FailureCode, Status};
    use crate::schedule::Refusal;
    use cdc_capture::Continuity;
    use pg_rows::export_type::ExportType;

    /// Returns the names that follow `mark` in a text, up to the next quote.
    fn named<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
        text.split(mark).skip(1).map(|rest| rest.split(['"', '\'']).next().unwrap())
    }

    #[test]
    fn page_references_exactly_the_embedded_files() {
        let pages = [&ASSETS[INDEX], &crate::http::symptoms::PAGE];
        let mut used: Vec<&str> = pages.iter().flat_map(|page| named(&page.text, "\"/page/")).collect();
        for asset in ASSETS.values().filter(|asset| asset.media_type == "text/javascript; charset=utf-8") {
            used.extend(named(&asset.text, "from \"./"));
        }
        for name in &used {
            assert!(ASSETS.contains_key(name), "{name}");
        }
        for name in ASSETS.keys().filter(|name| **name != INDEX) {
            assert!(used.contains(name), "no file references {name}");
        }
    }

    #[test]
    fn page_explains_every_word_of_the_api() {
        let has = |file: &str, word: &str| {
            let text = &ASSETS[file].text;
            let quoted = format!("\"{word}\"");
            text.contains(&quoted) || text.contains(&format!("  {word}:"))
        };
        let explained = Continuity::ALL.iter().map(|word| word.as_str());
        let explained = explained.chain(FailureCode::ALL.iter().map(|word| word.as_str()));
        let explained = explained.chain(Status::ALL.iter().map(|word| word.as_str()));
        let explained = explained.chain(Refusal::ALL.iter().map(|word| word.as_str()));
        for word in explained.chain(ExportType::ALL.iter().map(|word| word.as_str())) {
            assert!(has("words.js", word), "words.js does not explain {word}");
        }
    }

    #[test]
    fn page_has_no_inline_code_and_parses_no_html() {
        for (name, asset) in &*ASSETS {
            for word in
                ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser", "style=\""]
            {
                assert!(!asset.text.contains(word), "{name} has {word}");
            }
            let foreign = asset.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!foreign.contains("http://") && !foreign.contains("https://"), "{name} references another host");
        }
        let index = &ASSETS[INDEX].text;
        assert_eq!(index.matches("<script").count(), 1);
        assert!(index.contains("<script type=\"module\" src=\"/page/app.js\"></script>") && !index.contains("<style"));
    }
}
