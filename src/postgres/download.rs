//! Downloads the programs of the private server.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use reqwest::Body;
use reqwest::redirect::Policy;
use tokio::runtime;

use crate::tls;

/// How many redirects of an https URL are followed: releases are on other hosts than their pages.
const MAX_REDIRECTS: usize = 5;

/// How long a server may take to begin or to go on, and to send it all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const DOWNLOAD_TIMEOUT: Duration = Duration::from_secs(600);

/// Downloads as [`private_postgres::Fetch`] says.
///
/// # Errors
/// A text that says why there are no bytes.
pub fn fetch(url: &str, max_bytes: usize) -> Result<Vec<u8>, String> {
    // A runtime of its own, so that the process can end while a server hangs.
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
    // An http URL is one of this machine; a redirect could lead away from it.
    let client = if url.starts_with("https:") { client.redirect(redirects) } else { client };
    let answer = client.build().map_err(failed)?.get(url).send().await.map_err(failed)?;
    if !answer.status().is_success() {
        return Err(format!("the answer is {}", answer.status()));
    }
    let bytes = Limited::new(Body::from(answer), max_bytes).collect().await;
    Ok(bytes.map_err(|error| tls::reason(error.as_ref()))?.to_bytes().into())
}
