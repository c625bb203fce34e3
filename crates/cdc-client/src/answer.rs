//! The answer of a service to a call: the requested value, or the reason of a refusal.

use std::error::Error as StdError;
use std::fmt::{self, Display};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use uuid::Uuid;

/// The maximum size of a JSON answer in bytes. A job of a thousand datasets has about 1.5 MB.
const MAX_BYTES: usize = 16 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(45);

pub type AnswerBody = UnsyncBoxBody<Bytes, Box<dyn StdError + Send + Sync>>;

/// A service in this process, whose API is called without a network.
#[async_trait]
pub trait LocalService: Send + Sync {
    /// Calls the API. If the service refuses the request, the extensions of the response have its [`Cause`].
    async fn call(&self, call: http::Request<String>) -> http::Response<AnswerBody>;
}

/// The error of a service in this process with its causes.
#[derive(Clone, Debug)]
pub struct Cause(pub String);

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The call contains a part that HTTP doesn't allow.
    #[error(transparent)]
    Invalid(#[from] http::Error),
    #[error("{server} can't be reached: {why}; is a service running there?")]
    Unreachable { server: String, why: String },
    #[error("the connection to {server} broke: {why}")]
    Broken { server: String, why: String },
    #[error("{}{detail}{}", fault_word(*.status, .code), next_step(.code))]
    Refused { status: u16, code: PlainText, detail: PlainText, jobs: Vec<NamedJob>, retry_after: Option<Duration> },
    #[error("the bucket at {host}, to which the service redirects downloads, answers {status}")]
    Bucket { host: String, status: u16 },
    #[error("{server} redirects a download to an address that isn't https://HOST, has a password, or is local")]
    UnsafeRedirect { server: String },
    #[error("{server} answers {status}, and is not a cdc-export service: is the address right?")]
    Foreign { server: String, status: u16 },
}

/// Returns the word of a fault of the service, by which its detail isn't taken for a fault of this machine.
fn fault_word(status: u16, code: &str) -> String {
    if status >= 500 { format!("the service answers {code}: ") } else { String::new() }
}

/// Returns a remedy for a refusal, if its detail doesn't contain one.
fn next_step(code: &str) -> &'static str {
    match code {
        "key_required" => {
            "; put a key into CDC_EXPORT_KEY: `cdc-export keys create`, run where the service is, prints one"
        }
        "key_invalid" => {
            "; the key in CDC_EXPORT_KEY is not valid: `cdc-export keys list`, run where the service is, shows its status"
        }
        "host_not_local" => "; with AUTH=keys, the service is open to callers that have a key",
        _ => "",
    }
}

impl CallError {
    /// Returns true if the job's state doesn't allow the call any more (409).
    pub fn is_conflict(&self) -> bool {
        matches!(self, CallError::Refused { status: 409, .. })
    }

    pub fn has_code(&self, word: &str) -> bool {
        matches!(self, CallError::Refused { code, .. } if &**code == word)
    }

    pub fn may_pass(&self) -> bool {
        match self {
            CallError::Invalid(_) | CallError::UnsafeRedirect { .. } => false,
            CallError::Unreachable { .. } | CallError::Broken { .. } => true,
            // An operator has to bring a missing folder or bucket back, or to decide that a file is lost.
            CallError::Refused { status, code, .. } => {
                matches!(status, 429 | 503) && !matches!(&**code, "output_missing" | "file_on_other_host")
            }
            CallError::Bucket { status, .. } => matches!(status, 429 | 500 | 502..=504),
            // A proxy answers with these while the service behind it restarts.
            CallError::Foreign { status, .. } => matches!(status, 502..=504),
        }
    }
}

/// A text from a service, without the control characters that a terminal would interpret.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub struct PlainText(String);

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

/// The members of a problem document that clients use.
#[derive(Deserialize)]
struct RefusalBody {
    code: PlainText,
    detail: PlainText,
    #[serde(default)]
    jobs: Vec<NamedJob>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedJob {
    pub job_id: Uuid,
    pub status: PlainText,
}

pub(crate) struct ApiAnswer {
    pub server: String,
    pub response: http::Response<AnswerBody>,
}

impl ApiAnswer {
    /// Returns the answer if its status is a success.
    pub(crate) async fn accepted(self) -> Result<ApiAnswer, CallError> {
        if self.response.status().is_success() {
            return Ok(self);
        }
        let foreign = self.foreign();
        let status = self.response.status().as_u16();
        let (mut head, body) = self.response.into_parts();
        let body = read_body(body).await.unwrap_or_default();
        let Some(RefusalBody { code, mut detail, jobs }) = strict_json::parsed(&body) else { return Err(foreign) };
        // Only a service inside this process attaches the internal cause.
        if let Some(Cause(cause)) = head.extensions.remove() {
            detail = cause.into();
        }
        // Its detail names this header, under which the service's log has the cause.
        if let Some(id) = head.headers.get("x-request-id").filter(|_| &*code == "internal") {
            detail = format!("{detail}: {}", String::from_utf8_lossy(id.as_bytes())).into();
        }
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|after| after.to_str().ok()?.parse().ok());
        Err(CallError::Refused { status, code, detail, jobs, retry_after: retry_after.map(Duration::from_secs) })
    }

    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, CallError> {
        let answer = self.accepted().await?;
        let foreign = answer.foreign();
        match read_body(answer.response.into_body()).await {
            Ok(body) => strict_json::parsed(&body).ok_or(foreign),
            Err(cause) if cause.is::<LengthLimitError>() => Err(foreign),
            Err(cause) => {
                Err(CallError::Unreachable { server: answer.server, why: http_client::reason(cause.as_ref()) })
            }
        }
    }

    /// Returns the answer if it contains a file (status 200) or a range of it (206), or redirects to one (307).
    pub(crate) async fn file(self) -> Result<ApiAnswer, CallError> {
        if self.redirection().is_some() {
            return Ok(self);
        }
        let answer = self.accepted().await?;
        if answer.is_whole() || answer.response.status().as_u16() == 206 { Ok(answer) } else { Err(answer.foreign()) }
    }

    /// Returns true if the answer contains the whole file. A server or proxy may ignore the requested range (RFC 9110,
    /// section 14.2).
    pub(super) fn is_whole(&self) -> bool {
        self.response.status().as_u16() == 200
    }

    /// Returns the address of the file if the answer redirects to it.
    pub(crate) fn redirection(&self) -> Option<String> {
        let is_redirect = self.response.status().as_u16() == 307;
        let location = self.response.headers().get(header::LOCATION).filter(|_| is_redirect)?;
        Some(location.to_str().ok()?.to_owned())
    }

    fn foreign(&self) -> CallError {
        CallError::Foreign { server: self.server.clone(), status: self.response.status().as_u16() }
    }
}

/// Reads the whole body. Fails if the body is longer than [`MAX_BYTES`] or slower than [`BODY_TIMEOUT`].
async fn read_body(body: AnswerBody) -> Result<Bytes, Box<dyn StdError + Send + Sync>> {
    Ok(timeout(BODY_TIMEOUT, Limited::new(body, MAX_BYTES).collect()).await??.to_bytes())
}
