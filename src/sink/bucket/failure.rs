//! The meaning of an object store's errors.
//!
//! The text of an [`Error`] has no key, secret or address, because clients see it. The error's source has the operation
//! and the key.

use crate::sink::Error;

/// The codes of an upload that was completed or aborted.
const NO_SUCH_UPLOAD: [&str; 3] = ["NoSuchUpload", "InvalidBlockList", "InvalidPart"];

/// The codes of a missing object.
const NO_OBJECT: [&str; 2] = ["NoSuchKey", "BlobNotFound"];

/// The codes of a missing bucket.
const NO_BUCKET: [&str; 3] = ["NoSuchBucket", "ContainerNotFound", "InvalidBucketName"];

/// The codes of status 400 for bytes that were lost or changed on the way, or arrived too slowly.
const HARMED_ON_THE_WAY: [&str; 5] =
    ["BadDigest", "IncompleteBody", "RequestTimeout", "XAmzContentSHA256Mismatch", "Md5Mismatch"];

/// The beginning of the message of Azure's client for a failed deletion. The object's key follows.
const DELETION: &str = "Bulk delete request failed for key ";

/// Returns true if the store says by its code that it has no such upload. A 404 without a code may be that of a proxy.
pub(super) fn is_no_such_upload(error: &object_store::Error) -> bool {
    has_code(error, &NO_SUCH_UPLOAD)
}

/// Returns true if the store says by its code that it has no such object.
pub(super) fn is_no_object(error: &object_store::Error) -> bool {
    has_code(error, &NO_OBJECT)
}

/// Returns true if the same request may succeed later.
pub(super) fn may_pass(error: &object_store::Error) -> bool {
    match error {
        object_store::Error::Generic { .. } => {
            !cause(error).contains("status code: 400") || has_code(error, &HARMED_ON_THE_WAY)
        }
        object_store::Error::NotFound { .. } => code(&cause(error)).is_none(),
        object_store::Error::JoinError { .. } => true,
        _ => false,
    }
}

/// For errors whose caller names the object: those of an [`Archive`](crate::sink::Archive).
impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Error {
        Error::from_store(&error, std::io::Error::other)
    }
}

/// The answer to a failed request. The text is the store's own, and the source says which request it was.
#[derive(Debug, thiserror::Error)]
#[error("{answer}")]
struct FailedRequest {
    answer: String,
    #[source]
    request: FailedUrl,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} {url}")]
struct FailedUrl {
    verb: &'static str,
    url: String,
}

/// Returns a function that converts the error of a failed request about the object at `url`.
pub(super) fn cannot(verb: &'static str, url: String) -> impl FnOnce(object_store::Error) -> Error {
    move |error| {
        Error::from_store(&error, |answer| {
            std::io::Error::other(FailedRequest { answer, request: FailedUrl { verb, url } })
        })
    }
}

impl Error {
    /// Returns the variant for a store's error. `source` makes the source of the store's answer.
    fn from_store(error: &object_store::Error, source: impl FnOnce(String) -> std::io::Error) -> Error {
        let cause = cause(error);
        let text = source(told(&cause));
        match error {
            _ if has_code(error, &NO_BUCKET) => Error::Missing(text),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::ReadOnly(text)
            }
            _ if cause.starts_with(DELETION) && cause.ends_with("(code: 403)") => Error::ReadOnly(text),
            _ if has_code(error, &["QuotaExceeded"]) => Error::Full(text),
            _ => Error::Unavailable(text),
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

/// Returns the code of a store's answer.
fn code(answer: &str) -> Option<String> {
    element(answer, "Code")
}

fn element(answer: &str, name: &str) -> Option<String> {
    let (_, rest) = answer.split_once(&format!("<{name}>"))?;
    Some(rest.split_once("</")?.0.to_owned())
}

/// Returns the part of an answer that an operator needs: the store's code and message if the answer has them.
fn told(answer: &str) -> String {
    const MOST: usize = 300;
    // The key has names that others chose.
    let answer = answer.strip_prefix(DELETION).and_then(|rest| rest.split_once(": ")).map_or(answer, |(_, told)| told);
    let found = match (code(answer), element(answer, "Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        // The page of some proxy.
        _ => answer.split('<').next().unwrap_or_default().trim_end_matches(['-', ':', ' ', '\n']).to_owned(),
    };
    let found = match found.contains("URL scheme is not allowed") {
        true => found + "; AWS_ALLOW_HTTP=true, or GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP, allows http://",
        false => found,
    };
    found.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MOST).collect()
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
        assert!(matches!(error, Error::ReadOnly(_)) && text == "This request is not authorized. (code: 403)", "{text}");
    }

    #[test]
    fn a_name_in_an_address_is_no_answer() {
        let busy = answered(
            "Server returned non-2xx status code: 503: <Error><Code>SlowDown</Code><Key>NoSuchUpload</Key></Error>",
        );
        assert!(!is_no_such_upload(&busy) && may_pass(&busy));
        let text = Error::from(busy).to_string();
        assert!(text.ends_with(": SlowDown") && !text.contains("secret"), "{text}");
        assert!(is_no_such_upload(&answered("status code: 404: <Code>NoSuchUpload</Code>")));
        // A part that changed on the way is sent again; what was asked for wrongly stays wrong.
        assert!(may_pass(&answered("Server returned non-2xx status code: 400 Bad Request: <Code>BadDigest</Code>")));
        assert!(!may_pass(&answered("Server returned non-2xx status code: 400 Bad Request: <Code>InvalidPart</Code>")));
        // A proxy's.
        assert!(!is_no_object(&answered("Server returned non-2xx status code: 404 Not Found: <html>\n<h1>nginx")));
    }
}
