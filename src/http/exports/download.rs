//! `/exports/{jobId}/download` and `/exports/{jobId}/files/{part}/download`: serves a file, whole or a range of it.

use std::collections::BTreeMap;

use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::{self, RefOr, ResponseBuilder};
use utoipa::{IntoParams, IntoResponses, PartialSchema};

use crate::http::code::Code;
use crate::http::input::{self, PathExport};
use crate::http::problem::Problem;
use crate::service::Service;
use crate::service::files::{DownloadableFile, FileUrl};
use pg_rows::encoding::{Compression, Format, FormatSpec};

/// Number of bytes per read from a file. A response whose client does not read buffers a few times as many.
const READ_BYTES: usize = 64 * 1024;

/// Download an export's file
///
/// Returns the whole file or one range of it. A request for several ranges gets the whole file, as RFC 9110 allows. A
/// compressed file is sent as it is, without `Content-Encoding`. `HEAD` returns only the headers.
#[utoipa::path(
    get, path = "/exports/{jobId}/download", operation_id = "downloadExport", tag = "exports",
    params(PathExport, FileHeaders), responses(FileAnswer),
    extensions(("x-codes" = json!([
        Code::SeveralDatasets, Code::NotCompleted, Code::NoFile, Code::SeveralFiles, Code::FileGone,
        Code::RangeNotSatisfiable, Code::PreconditionFailed, Code::FileOnOtherHost, Code::OutputMissing,
        Code::OutputFailed, Code::StorageFull, Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn download(
    service: Service,
    PathExport { job, dataset }: PathExport,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    answer(&service, service.open_file(job, dataset.as_deref(), None).await?, &method, &headers).await
}

/// Download one of an export's files
///
/// Like `downloadExport`, for an export that may have several files. Each file is complete by itself.
#[utoipa::path(
    get, path = "/exports/{jobId}/files/{part}/download", operation_id = "downloadExportFile", tag = "exports",
    params(
        PathExport,
        ("part" = u32, Path, description = "The file's number among the export's files, from 1"),
        FileHeaders,
    ),
    responses(FileAnswer),
    extensions(("x-codes" = json!([
        Code::SeveralDatasets, Code::NotCompleted, Code::NoFile, Code::NoPart, Code::FileGone,
        Code::RangeNotSatisfiable, Code::PreconditionFailed, Code::FileOnOtherHost, Code::OutputMissing,
        Code::OutputFailed, Code::StorageFull, Code::StorageReadonly,
    ]))),
)]
pub(crate) async fn download_part(
    service: Service,
    PathExport { job, dataset }: PathExport,
    Path((_, text)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    // A segment that is not a number matches no file.
    let part = text.parse().ok().filter(|part: &u32| part.to_string() == text).unwrap_or(0);
    answer(&service, service.open_file(job, dataset.as_deref(), Some(part)).await?, &method, &headers).await
}

/// The request headers of a download.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the API's document uses it: `answer` reads them from the request")]
struct FileHeaders {
    /// The requested range; an invalid range is ignored
    #[param(rename = "Range", example = "bytes=0-1023")]
    range: Option<String>,
    /// The `ETag` that the file must have. If the file differs, the answer is 412
    #[param(rename = "If-Match")]
    if_match: Option<String>,
    /// The `ETag` of the file that the client has a part of. If the file differs, the range is ignored
    #[param(rename = "If-Range")]
    if_range: Option<String>,
    /// The `ETag` of a file that the client already has
    #[param(rename = "If-None-Match")]
    if_none_match: Option<String>,
}

/// The responses of a download, for the API's document.
struct FileAnswer;

impl IntoResponses for FileAnswer {
    fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
        let etag = ("ETag", "The file's SHA-256, in quotes");
        let whole = described(
            "The file.",
            &[
                etag,
                ("Content-Disposition", "The file's name"),
                ("Accept-Ranges", "`bytes`"),
                ("Last-Modified", "When the export ended"),
                (
                    "Cache-Control",
                    "`no-store`: a copy is the client's own; the `ETag` says whether it is still the file",
                ),
            ],
        );
        let part = described(
            "The part of the file.",
            &[etag, ("Content-Range", "The range of this part, and the file's size")],
        );
        let elsewhere = described(
            "The file is fetched from its store (`DOWNLOADS=redirect`).",
            &[("Location", "An address of the file that needs no key, for a short time")],
        );
        let known = described("The client has the file already.", &[etag]);
        let answers = [("200", with_a_file(whole)), ("206", with_a_file(part)), ("307", elsewhere), ("304", known)];
        answers.into_iter().map(|(status, answer)| (status.to_owned(), answer.build().into())).collect()
    }
}

fn described(description: &str, headers: &[(&str, &str)]) -> ResponseBuilder {
    let header = |text: &str| HeaderBuilder::new().schema(Some(String::schema())).description(Some(text)).build();
    let answer = ResponseBuilder::new().description(description);
    headers.iter().fold(answer, |answer, (name, text)| answer.header(*name, header(text)))
}

fn with_a_file(answer: ResponseBuilder) -> ResponseBuilder {
    let formats = Format::ALL.iter().map(|format| {
        let FormatSpec { media_type, is_binary, .. } = format.spec();
        // The document lists media types without their parameters.
        let media_type = media_type.split(';').next().unwrap_or(media_type);
        (media_type, if *is_binary { Vec::<u8>::schema() } else { String::schema() })
    });
    let compressed = Compression::ALL.iter().filter_map(|compression| compression.media_type());
    let content = formats.chain(compressed.map(|media_type| (media_type, Vec::<u8>::schema())));
    content.fold(answer, |answer, (media_type, schema)| answer.content(media_type, openapi::Content::new(Some(schema))))
}

async fn answer(
    service: &Service,
    file: DownloadableFile,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let size = file.bytes;
    let etag = format!("\"{}\"", file.sha256);
    let mut response_headers = HeaderMap::new();
    let mut set = |name, value: String| {
        // These values come from the database. Other writers may have stored characters that a header cannot contain.
        if let Ok(value) = value.parse() {
            response_headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, file.encoding.media_type().to_owned());
    set(header::CONTENT_DISPOSITION, format!("attachment; filename=\"{}\"", file.name));
    set(header::ETAG, etag.clone());
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    if let Some(time) = file.finished_at {
        set(header::LAST_MODIFIED, time.format("%a, %d %b %Y %H:%M:%S GMT").to_string());
    }

    // A tag with `W/` never matches (RFC 9110, section 13.1.1).
    let is_wanted = |tags: &str| tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag);
    if text(headers, header::IF_MATCH).is_some_and(|tags| !is_wanted(tags)) {
        return Err(Problem::bad_input(Code::PreconditionFailed, "If-Match", format!("the file's ETag is {etag}")));
    }
    if input::matches_etag(headers, etag.as_bytes()) {
        return Ok((StatusCode::NOT_MODIFIED, response_headers).into_response());
    }
    // A client must not combine ranges of two versions of a file, so the tags must be equal.
    let unchanged = text(headers, header::IF_RANGE).is_none_or(|tag| tag == etag);
    // Ranges apply to GET only (RFC 9110, section 14.2).
    let range = text(headers, header::RANGE)
        .filter(|_| unchanged && *method == Method::GET)
        .map_or(RequestedRange::Whole, |range| requested_range(range, size));
    let (status, from, length) = match range {
        RequestedRange::Whole => (StatusCode::OK, 0, size),
        RequestedRange::PastTheEnd => return Ok(Problem::range_not_satisfiable(size)),
        RequestedRange::Part { first, last } => {
            set(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}"));
            (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
        }
    };
    set(header::CONTENT_LENGTH, length.to_string());
    if *method == Method::GET {
        service.log_download(&file);
    }
    // A presigned URL is valid for GET only. The client sends the `Range` header again when it follows the redirect.
    if *method == Method::GET
        && let Some(FileUrl { url, .. }) = service.redirection(&file).await?
    {
        let headers = [(header::LOCATION, url), (header::CACHE_CONTROL, "no-store".to_owned())];
        return Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response());
    }
    let body = ReaderStream::with_capacity(file.part(from, length).await?, READ_BYTES);
    Ok((status, response_headers, Body::from_stream(body)).into_response())
}

#[derive(Debug, PartialEq, Eq)]
enum RequestedRange {
    Whole,
    Part { first: u64, last: u64 },
    PastTheEnd,
}

/// Resolves a `Range` header for a file of `size` bytes. A header that is invalid, or that has several ranges, requests
/// the whole file (RFC 9110, section 14.2).
fn requested_range(range: &str, size: u64) -> RequestedRange {
    let Some((first, last)) = range.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return RequestedRange::Whole;
    };
    let number = |digits: &str| digits.parse::<u64>().ok().filter(|_| !digits.starts_with('+'));
    let end = size.saturating_sub(1);
    let (first, last) = match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => (first, last.min(end)),
        (Some(first), None) if last.is_empty() => (first, end),
        (None, Some(0)) if first.is_empty() => return RequestedRange::PastTheEnd,
        (None, Some(length)) if first.is_empty() => (size.saturating_sub(length), end),
        _ => return RequestedRange::Whole,
    };
    if first < size { RequestedRange::Part { first, last } } else { RequestedRange::PastTheEnd }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
