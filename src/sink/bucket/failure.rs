//! What a store's errors mean. No text has a key or a secret: callers show it to clients.

use crate::sink::Error;

/// The codes by which stores tell that an upload was completed or aborted. A 404 without one may be anybody's, as that of a proxy whose store
/// is being exchanged.
const NO_SUCH_UPLOAD: [&str; 3] = ["NoSuchUpload", "InvalidBlockList", "InvalidPart"];

/// The codes by which they tell that the bucket itself isn't there.
const NO_BUCKET: [&str; 4] =
    ["NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "InvalidBucketName"];

/// Whether a store says that it has no such upload (any more).
pub(super) fn is_no_such_upload(error: &object_store::Error) -> bool {
    let text = whole(error);
    says(&text, &NO_SUCH_UPLOAD) && !says(&text, &NO_BUCKET)
}

/// Whether the same request may succeed a while later.
pub(super) fn may_pass(error: &object_store::Error) -> bool {
    use object_store::Error as Store;
    match error {
        Store::Generic { .. } => !whole(error).contains("status code: 400"),
        Store::JoinError { .. } => true,
        _ => false,
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Error {
        let text = whole(&error);
        let cause = std::io::Error::other(told(&text));
        match error {
            _ if says(&text, &NO_BUCKET) => Error::Missing(cause),
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::ReadOnly(cause)
            }
            _ if text.contains("QuotaExceeded") => Error::Full(cause),
            _ => Error::Unavailable(cause),
        }
    }
}

fn says(text: &str, codes: &[&str]) -> bool {
    codes.iter().any(|code| text.contains(code))
}

/// The error and its causes, as one text.
fn whole(error: &dyn std::error::Error) -> String {
    crate::telemetry::chain(error)
}

/// What an operator needs of it: the store's code and message where its answer has them, else the end of the chain of causes, which has the
/// system's own words.
fn told(text: &str) -> String {
    let element = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        Some(rest.split_once("</")?.0.to_owned())
    };
    let found = match (element("Code"), element("Message")) {
        (Some(code), Some(message)) => format!("{code}: {message}"),
        (Some(code), None) => code,
        _ => text.to_owned(),
    };
    let found = match found.contains("URL scheme is not allowed") {
        true => found + "; AWS_ALLOW_HTTP=true, or GOOGLE_ALLOW_HTTP or AZURE_ALLOW_HTTP, allows http://",
        false => found,
    };
    let line: String = found.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    const MOST: usize = 400;
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
