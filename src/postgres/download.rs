//! Downloads the programs of the private server.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use reqwest::Body;
use reqwest::redirect::Policy;
use tokio::runtime;

use crate::tls;

/// The maximum number of redirects of an https URL. Files of a release are on other hosts than its page.
const MAX_REDIRECTS: usize = 5;

/// The timeout of the next byte, and of the whole download.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads a file, as [`private_postgres::Fetch`] specifies.
///
/// # Errors
/// The reason why the download failed.
pub fn fetch(url: &str, max_bytes: usize) -> Result<Vec<u8>, String> {
    // This runtime is separate, so that the process can end while a server hangs.
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    runtime.block_on(bytes(url, max_bytes))
}

async fn bytes(url: &str, max_bytes: usize) -> Result<Vec<u8>, String> {
    let failed = |error: reqwest::Error| tls::reason(&error);
    let redirects = Policy::custom(|redirect| match redirect.url().scheme() {
        "https" if redirect.previous().len() <= MAX_REDIRECTS => redirect.follow(),
        "https" => redirect.error("there are too many redirects"),
        _ => redirect.error("a redirect leads away from https"),
    });
    let client = tls::client(url).read_timeout(ANSWER_TIMEOUT).timeout(DOWNLOAD_TIMEOUT);
    // An http URL is on this machine, and a redirect could lead to another one.
    let client = if url.starts_with("https:") { client.redirect(redirects) } else { client };
    let answer = client.build().map_err(failed)?.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(format!("the answer is {}", answer.status()));
    }
    let bytes = Limited::new(Body::from(answer), max_bytes).collect().await;
    Ok(bytes.map_err(|error| tls::reason(error.as_ref()))?.to_bytes().into())
}
