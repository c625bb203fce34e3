//! The meaning of an object store's errors.
//!
//! The text of an [`Error`] has no key, secret or address, because clients see it. The error's source has the operation
//! and the key.

use crate::Error;

/// The codes of an upload that was completed or aborted.
const NO_SUCH_UPLOAD: [&str; 3] = ["NoSuchUpload", "InvalidBlockList", "InvalidPart"];

const NO_OBJECT: [&str; 2] = ["NoSuchKey", "BlobNotFound"];

const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"];

/// The codes of status 400 for bytes that were lost or changed on the way, or arrived too slowly.
const HARMED_ON_THE_WAY: [&str; 5] =
    ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch", "Md5Mismatch"];

/// The beginning of the message of Azure's client for a failed deletion. The object's key follows.
const DELETION: &str = "Bulk delete request failed for key ";

/// The beginning of the client's message for an answer that is no success. The status and the body follow.
const REFUSAL: &str = "Server returned non-2xx status code: ";
/// The beginning of the client's message for a success with an error in its body, which follows.
const FALSE_SUCCESS: &str = "Server returned error response: ";

/// Returns true if the store says by its code that it has no such upload. A 404 without a code may be that of a proxy.
pub(super) fn is_no_such_upload(error: &object_store::Error) -> bool {
    has_code(error, &NO_SUCH_UPLOAD)
}

pub(super) fn is_no_object(error: &object_store::Error) -> bool {
    has_code(error, &NO_OBJECT)
}

pub(super) fn may_pass(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Generic { .. } => {
            !cause(error).starts_with(&format!("{REFUSAL}400")) || has_code(error, &HARMED_ON_THE_WAY)
        }
        object_store::Error::NotFound { .. } => code(&cause(error)).is_none(),
        object_store::Error::JoinError { .. } => true,
        _ => false,
    }
}

/// For errors whose caller names the object: those of an [`Archive`](crate::Archive). No client of the API sees
/// them, so they have the store's message.
impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Error {
        let cause = cause(&error);
        let told = format!("{}{}", told(&cause), message(&cause));
        Error::from_store(&error, std::io::Error::other(told))
    }
}

/// The answer to a failed request. The source says which request it was, with the store's message.
#[derive(Debug, thiserror::Error)]
#[error("{answer}")]
struct FailedRequest {
    answer: String,
    #[source]
    request: FailedUrl,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {url}{message}")]
struct FailedUrl {
    verb: &'static str,
    url: String,
    message: String,
}

/// Returns a function that converts the error of a failed request about the object at `url`.
pub(super) fn cannot(verb: &'static str, url: String) -> impl FnOnce(object_store::Error) -> Error {
    move |error| {
        let cause = cause(&error);
        let request = FailedUrl { verb, url, message: message(&cause) };
        Error::from_store(&error, std::io::Error::other(FailedRequest { answer: told(&cause), request }))
    }
}

impl Error {
    fn from_store(error: &object_store::Error, source: std::io::Error) -> Error {
        let cause = cause(error);
        match error {
            _ if has_code(error, &NO_BUCKET) => Error::Missing(source),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::ReadOnly(source)
            }
            _ if cause.starts_with(DELETION) && cause.ends_with("(code: 403)") => Error::ReadOnly(source),
            _ if has_code(error, &["QuotaExceeded"]) => Error::Full(source),
            _ => Error::Unavailable(source),
        }
    }
}

fn has_code(error: &object_store::Error, codes: &[&str]) -> bool {
    code(&cause(error)).is_some_and(|code| codes.contains(&code.as_str()))
}

/// Returns the last of an error's causes, which has the answer of the store or the system. The causes above it have the
/// request's address, with names that others chose and perhaps a password.
pub(super) fn cause(error: &object_store::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(next) = last.source() {
        last = next;
    }
    last.to_string()
}

/// Returns the code of a store's answer: a word as `SlowDown`.
fn code(answer: &str) -> Option<String> {
    let is_word = |code: &String| matches!(code.len(), 1..=64) && code.bytes().all(|byte| byte.is_ascii_alphanumeric());
    element(answer, "Code").filter(is_word)
}

fn element(answer: &str, name: &str) -> Option<String> {
    let (_, rest) = answer.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0.to_owned())
}

/// Returns the part of an answer that clients may see: the store's code, else the status. All the rest is text of
/// somebody else: a gateway may repeat the request in it, with a token.
fn told(answer: &str) -> String {
    if let Some(code) = code(answer) {
        return code;
    }
    if let Some(rest) = answer.strip_prefix(REFUSAL) {
        return format!("the store answers {}", rest.split(':').next().unwrap_or_default());
    }
    if let Some(deletion) = answer.strip_prefix(DELETION) {
        let status = deletion.rsplit_once("(code: ").map(|(_, code)| code.trim_end_matches(')'));
        let status = status.filter(|code| code.len() == 3 && code.bytes().all(|byte| byte.is_ascii_digit()));
        return format!("the store refuses the deletion with {}", status.unwrap_or("an error"));
    }
    if answer.starts_with(FALSE_SUCCESS) || !is_quotable(answer) {
        return "the store's answer is not understood".to_owned();
    }
    // An https:// endpoint has no such error, because no redirect is followed.
    let hint = match answer.contains("URL scheme is not allowed") {
        true => "; AWS_ALLOW_HTTP=true, or GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP, allows http://",
        false => "",
    };
    printable(answer) + hint
}

/// Returns the store's message with a colon before it, for the log. Returns nothing for a message that may contain a
/// token.
fn message(answer: &str) -> String {
    let deletion =
        answer.strip_prefix(DELETION).and_then(|rest| rest.split_once(": ")).map(|(_, told)| told.to_owned());
    let message = deletion.or_else(|| element(answer, "Message")).filter(|message| is_quotable(message));
    message.map(|message| format!(": {}", printable(&message))).unwrap_or_default()
}

/// Returns true for a text without a query and without a word that is as long as a token.
fn is_quotable(text: &str) -> bool {
    const LONGEST_WORD: usize = 100;
    !text.contains(['?', '=', '&', '%']) && text.split_whitespace().all(|word| word.len() <= LONGEST_WORD)
}

/// Returns the beginning of a text, without line breaks.
fn printable(text: &str) -> String {
    const MOST: usize = 300;
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("Error performing POST http://user:secret@host/users/NoSuchUpload/x?uploadId=1 in 1ms")]
    struct Request(#[source] std::io::Error);

    fn answered(answer: &str) -> object_store::Error {
        let source = Request(std::io::Error::other(answer.to_owned()));
        object_store::Error::Generic { store: "S3", source: Box::new(source) }
    }

    #[test]
    fn a_deletion_that_failed_is_told_without_its_key() {
        let denied =
            answered(&format!("{DELETION}exports/users/a:b/x.csv: This request is not authorized. (code: 403)"));
        let error = Error::from(denied);
        let text = std::error::Error::source(&error).unwrap().to_string();
        let told = "the store refuses the deletion with 403: This request is not authorized. (code: 403)";
        assert!(matches!(error, Error::ReadOnly(_)) && text == told, "{text}");
    }

    #[test]
    fn text_of_a_gateway_is_not_told() {
        let log =
            |answer: &str| pg_session::failure::chain(&cannot("read", "s3://files/a".to_owned())(answered(answer)));
        let target = "GET /files/a?sv=1&sig=geheim";
        for (answer, told) in [
            (format!("{REFUSAL}400 Bad Request: Refused: {target}"), "the store answers 400 Bad Request"),
            (format!("{REFUSAL}400 Bad Request: <Code>{target}</Code>"), "the store answers 400 Bad Request"),
            (format!("{REFUSAL}403 Forbidden: <Code>No</Code><Message>{target}</Message>"), "No"),
            (format!("{REFUSAL}403 Forbidden: <Code>No</Code><Message>a {}</Message>", "geheim".repeat(20)), "No"),
            (format!("{FALSE_SUCCESS}SlowDown {target}"), "the store's answer is not understood"),
            (
                format!("Failed to parse value for CONTENT_RANGE header: \"{target}\""),
                "the store's answer is not understood",
            ),
            (format!("{DELETION}a/b: {target} (code: {target})"), "the store refuses the deletion with an error"),
        ] {
            let log = log(&answer);
            assert!(log.ends_with(&format!(": {told}: cannot read s3://files/a")), "{log}");
        }
        let log =
            log(&format!("{REFUSAL}403 Forbidden: <Code>No</Code><Message>User: arn:aws:iam::1:a may not.</Message>"));
        assert!(log.ends_with(": No: cannot read s3://files/a: User: arn:aws:iam::1:a may not."), "{log}");
    }

    #[test]
    fn a_name_in_an_address_is_no_answer() {
        let busy = answered(
            "Server returned non-2xx status code: 503: <Error><Code>SlowDown</Code><Key>NoSuchUpload</Key></Error>",
        );
        assert!(!is_no_such_upload(&busy) && may_pass(&busy));
        let text = Error::from(busy).to_string();
        assert!(text.ends_with(": SlowDown") && !text.contains("secret"), "{text}");
        assert!(is_no_such_upload(&answered("Server returned non-2xx status code: 404: <Code>NoSuchUpload</Code>")));
        // A part that changed on the way is sent again; what was asked for wrongly stays wrong.
        assert!(may_pass(&answered("Server returned non-2xx status code: 400 Bad Request: <Code>BadDigest</Code>")));
        assert!(!may_pass(&answered("Server returned non-2xx status code: 400 Bad Request: <Code>InvalidPart</Code>")));
        // A proxy's.
        assert!(!is_no_object(&answered("Server returned non-2xx status code: 404 Not Found: <html>\n<h1>nginx")));
    }
}
