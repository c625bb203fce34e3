//! The answer of a service to a call: the value that was asked for, or the reason why the service refused.

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use crate::http::answer_from_json;
use crate::service;
use crate::telemetry::chain;
use crate::tls;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::http::header;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use uuid::Uuid;

/// The longest JSON answer that is read: a page of jobs has some 200 kB.
const MOST_BYTES: usize = 16 << 20;
/// How long the bytes of a JSON answer may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(45);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{server} can't be reached: {why}; is a service running there?")]
    Unreachable { server: String, why: String },
    #[error("the connection to {server} broke: {why}")]
    Broken { server: String, why: String },
    #[error("{detail}{}", next_step(.code))]
    Refused { status: u16, code: PlainText, detail: PlainText, jobs: Vec<NamedJob>, retry_after: Option<Duration> },
    #[error("{server} answers {status}, and not as cdc-export does: is the address right?")]
    Foreign { server: String, status: u16 },
}

/// What the caller can do about a refusal, where the detail doesn't say it.
fn next_step(code: &str) -> &'static str {
    match code {
        "key_required" => {
            "; put a key into CDC_EXPORT_KEY: `cdc-export keys create`, run where the service is, prints one"
        }
        "key_invalid" => {
            "; the key in CDC_EXPORT_KEY is of no use: `cdc-export keys list`, run where the service is, says why"
        }
        "host_not_local" => "; with AUTH=keys, the service is open to callers that have a key",
        _ => "",
    }
}

impl Error {
    /// Whether the job's state doesn't allow the call (409): it was too late.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, Error::Refused { status: 409, .. })
    }

    /// Whether the service refused the call with this code.
    pub(crate) fn is_of(&self, word: &str) -> bool {
        matches!(self, Error::Refused { code, .. } if &**code == word)
    }

    /// Whether the same call may get another answer later.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Error::Unreachable { .. } | Error::Broken { .. } => true,
            Error::Refused { status, .. } => matches!(status, 429 | 503),
            // A proxy's answer while the service behind it restarts.
            Error::Foreign { status, .. } => matches!(status, 502..=504),
        }
    }
}

/// A text from a service, without the control characters that a terminal would obey.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub(crate) struct PlainText(String);

impl From<String> for PlainText {
    fn from(text: String) -> PlainText {
        PlainText(text.chars().filter(|c| !c.is_control()).collect())
    }
}

impl std::ops::Deref for PlainText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Display for PlainText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The members of a problem that commands use.
#[derive(Deserialize)]
struct Problem {
    code: PlainText,
    detail: PlainText,
    #[serde(default)]
    jobs: Vec<NamedJob>,
}

/// An export that a refusal names.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NamedJob {
    pub(crate) job_id: Uuid,
    pub(crate) status: PlainText,
}

/// An answer, and the name of who gave it.
pub(crate) struct Answer {
    pub(crate) server: String,
    pub(crate) response: Response,
}

impl Answer {
    /// The answer, if its status is a success.
    pub(crate) async fn accepted(self) -> Result<Answer, Error> {
        if self.response.status().is_success() {
            return Ok(self);
        }
        let foreign = self.foreign();
        let status = self.response.status().as_u16();
        let (mut head, body) = self.response.into_parts();
        let body = body_of(body).await.unwrap_or_default();
        let Some(Problem { code, mut detail, jobs }) = answer_from_json(&body) else { return Err(foreign) };
        // Only a service of this process hands its error over: clients elsewhere learn no inner cause.
        if let Some(cause) = head.extensions.remove::<Arc<service::Error>>() {
            detail = chain(&cause).into();
        }
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        Err(Error::Refused { status, code, detail, jobs, retry_after: retry_after.map(Duration::from_secs) })
    }

    /// The JSON of the answer.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let answer = self.accepted().await?;
        let foreign = answer.foreign();
        match body_of(answer.response.into_body()).await {
            Ok(body) => answer_from_json(&body).ok_or(foreign),
            Err(cause) if cause.is::<LengthLimitError>() => Err(foreign),
            Err(cause) => Err(Error::Unreachable { server: answer.server, why: tls::reason(cause.as_ref()) }),
        }
    }

    /// The answer, if it has a part of a file.
    pub(crate) async fn part_of_a_file(self) -> Result<Answer, Error> {
        let answer = self.accepted().await?;
        if answer.response.status().as_u16() == 206 { Ok(answer) } else { Err(answer.foreign()) }
    }

    fn foreign(&self) -> Error {
        Error::Foreign { server: self.server.clone(), status: self.response.status().as_u16() }
    }
}

/// An answer's whole body, if it isn't too long.
async fn body_of(body: Body) -> Result<Bytes, Box<dyn StdError + Send + Sync>> {
    Ok(timeout(BODY_TIMEOUT, Limited::new(body, MOST_BYTES).collect()).await??.to_bytes())
}
