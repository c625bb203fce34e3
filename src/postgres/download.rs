//! Downloads the programs of the private server.

use std::pin::Pin;
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use reqwest::Body;
use reqwest::redirect::Policy;

/// The maximum number of redirects. Files of a release are on other hosts than its page.
const MAX_REDIRECTS: usize = 5;

/// The maximum size of a file. The current archives have about 12 MB.
const MAX_BYTES: usize = 256 << 20;

/// The timeout of the next byte, and of the whole download.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads a file, as [`private_postgres::Fetch`] specifies. Follows no redirect away from https.
pub fn fetch(url: String) -> Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>> {
    Box::pin(async move {
        let failed = |error: reqwest::Error| http_client::reason(&error);
        let client = http_client::client(&url).https_only(true).redirect(Policy::limited(MAX_REDIRECTS));
        let client = client.read_timeout(ANSWER_TIMEOUT).timeout(DOWNLOAD_TIMEOUT).build().map_err(failed)?;
        let answer = client.get(&url).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(format!("the answer is {}", answer.status()));
        }
        let bytes = Limited::new(Body::from(answer), MAX_BYTES).collect().await;
        Ok(bytes.map_err(|error| http_client::reason(error.as_ref()))?.to_bytes().into())
    })
}
