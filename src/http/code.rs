//! Problem codes and the HTTP status of each.

use axum::http::StatusCode;

use crate::http::schemas::document_words;

pg_rows::words! {
    /// The kind of a problem. Codes are stable, whereas the sentences of `detail` may change.
    pub(crate) Code, "a problem code" {
        /// The request is malformed.
        BadRequest = "bad_request",
        /// The body is not one JSON object.
        InvalidBody = "invalid_body",
        /// The call needs a consumer, but `X-Consumer-ID` is missing.
        ConsumerRequired = "consumer_required",
        /// `X-Consumer-ID` or the path contains an invalid consumer id, or the header is given twice.
        ConsumerInvalid = "consumer_invalid",
        /// `Idempotency-Key` is not 1 to 255 visible ASCII characters, or is given twice.
        IdempotencyKeyInvalid = "idempotency_key_invalid",
        /// A parameter of the query has a bad value, is missing, or is given twice; `field` names it.
        ParameterInvalid = "parameter_invalid",
        /// The query has a parameter that this call does not accept; `field` names it.
        ParameterUnknown = "parameter_unknown",
        /// A member of the body has a bad value, is missing, or is given twice; `field` names it.
        MemberInvalid = "member_invalid",
        /// The body has a member that this call does not accept; `field` names it.
        MemberUnknown = "member_unknown",
        /// The request would select rows by the values of a masked column.
        ColumnMasked = "column_masked",
        /// The header `Authorization: Bearer` is missing.
        KeyRequired = "key_required",
        /// The key is malformed, unknown, revoked or expired.
        KeyInvalid = "key_invalid",
        /// Without keys, only callers on this machine are allowed, and `Host` must name this machine.
        HostNotLocal = "host_not_local",
        /// Without keys, proxies are refused, because they would publish everything. `field` names the header that
        /// shows the proxy.
        ProxyNotAllowed = "proxy_not_allowed",
        /// The web page's origin is not allowed to call the API.
        OriginNotAllowed = "origin_not_allowed",
        /// The key lacks the call's scope, which `WWW-Authenticate` names.
        ScopeMissing = "scope_missing",
        /// The key is for other consumers.
        ConsumerNotAllowed = "consumer_not_allowed",
        /// The key is for other datasets.
        DatasetNotAllowed = "dataset_not_allowed",
        /// There is nothing at this path, or it belongs to a consumer that the key is not for.
        NotFound = "not_found",
        /// There is no dataset with this name.
        NoDataset = "no_dataset",
        /// The consumer has no watermark yet.
        NoWatermark = "no_watermark",
        /// The path does not support this method; `Allow` lists the supported ones.
        MethodNotAllowed = "method_not_allowed",
        /// The body did not arrive in time.
        RequestTimeout = "request_timeout",
        /// The dataset's table does not exist.
        TableMissing = "table_missing",
        /// The service's database role may not read the dataset's table, or row-level security may hide rows of it.
        PermissionDenied = "permission_denied",
        /// The dataset's changes are not captured: `cdc-export track` was not run, or not since the key changed.
        NotTracked = "not_tracked",
        /// The dataset has `capture = "none"`, so it has full exports alone.
        FullOnly = "full_only",
        /// The export has no file yet, and may never have one.
        NotCompleted = "not_completed",
        /// The export found nothing and was to make no file then, so it never has one.
        NoFile = "no_file",
        /// The export belongs to no consumer, so it cannot be acknowledged.
        AdHoc = "ad_hoc",
        /// None of the datasets that the key may export is ready.
        NothingReady = "nothing_ready",
        /// An export is being committed.
        Committing = "committing",
        /// The export, or one of the consumer, has not ended yet.
        StillOpen = "still_open",
        /// The export has ended in another way than by cancellation.
        AlreadyEnded = "already_ended",
        /// The consumer's last export is not the one in `after`. `jobs` contains the exports since then and the open
        /// ones.
        OutOfStep = "out_of_step",
        /// The completed export in `after`, or a later one, is unknown. The database was restored, or retention removed
        /// the exports.
        DatabaseRestored = "database_restored",
        /// Only a failed or cancelled export can be retried.
        NotFailed = "not_failed",
        /// The file is in a folder, so it has no URL.
        NoUrl = "no_url",
        /// The job has exports of several datasets, and the parameter `dataset` names none of them. `detail` has their
        /// names.
        SeveralDatasets = "several_datasets",
        /// The export has several files, each with its own path.
        SeveralFiles = "several_files",
        /// The export has no file with this part number.
        NoPart = "no_part",
        /// The export has no manifest, because it is ad hoc.
        NoManifest = "no_manifest",
        /// The delivery's receiver is no longer in the operator's file.
        NoEndpoint = "no_endpoint",
        /// The file was removed or replaced.
        FileGone = "file_gone",
        /// The body is larger than 1 MB.
        BodyTooLarge = "body_too_large",
        /// The path and its query are longer than 8 KB.
        UriTooLong = "uri_too_long",
        /// The body's content type is not `application/json`.
        UnsupportedMediaType = "unsupported_media_type",
        /// `If-Match` names another `ETag` than the file has.
        PreconditionFailed = "precondition_failed",
        /// The range begins beyond the end of the file; `Content-Range` contains the file's size.
        RangeNotSatisfiable = "range_not_satisfiable",
        /// The idempotency key was already used for another request.
        IdempotencyKeyReused = "idempotency_key_reused",
        /// The rate limit is exceeded; `Retry-After` contains the time to wait.
        RateLimited = "rate_limited",
        /// The maximum number of open exports is reached.
        TooManyOpenJobs = "too_many_open_jobs",
        /// The request has more than 100 headers, or more than 32 KB of them.
        HeadersTooLarge = "headers_too_large",
        /// A defect of the service. The log contains the cause under the response's `X-Request-Id`.
        Internal = "internal",
        /// Postgres is currently unavailable.
        DatabaseUnavailable = "database_unavailable",
        /// The table cannot be read at the moment.
        TableUnreadable = "table_unreadable",
        /// The table does not match its dataset's definition.
        DatasetMismatch = "dataset_mismatch",
        /// The output folder or bucket is full.
        StorageFull = "storage_full",
        /// The output folder or bucket is read-only.
        StorageReadonly = "storage_readonly",
        /// The output folder or bucket is missing.
        OutputMissing = "output_missing",
        /// The output folder or bucket cannot be used.
        OutputFailed = "output_failed",
        /// The file is in another `OUTPUT_DIR`, or on another host.
        FileOnOtherHost = "file_on_other_host",
        /// The file belongs to the database that this database was copied from.
        FileOfOtherDatabase = "file_of_other_database",
        /// The maximum number of clients that follow or wait for exports is reached: for the key, the address or in
        /// total.
        TooManyFollowers = "too_many_followers",
        /// The maximum number of connections or open requests is reached: for the key, the address or in total.
        TooManyConnections = "too_many_connections",
    }
}

impl Code {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Code::BadRequest
            | Code::InvalidBody
            | Code::ConsumerRequired
            | Code::ConsumerInvalid
            | Code::IdempotencyKeyInvalid
            | Code::ParameterInvalid
            | Code::ParameterUnknown
            | Code::MemberInvalid
            | Code::MemberUnknown
            | Code::ColumnMasked => StatusCode::BAD_REQUEST,
            Code::KeyRequired | Code::KeyInvalid => StatusCode::UNAUTHORIZED,
            Code::HostNotLocal
            | Code::ProxyNotAllowed
            | Code::OriginNotAllowed
            | Code::ScopeMissing
            | Code::ConsumerNotAllowed
            | Code::DatasetNotAllowed => StatusCode::FORBIDDEN,
            Code::NotFound | Code::NoDataset | Code::NoWatermark | Code::NoPart => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::TableMissing
            | Code::PermissionDenied
            | Code::NotTracked
            | Code::FullOnly
            | Code::NotCompleted
            | Code::NoFile
            | Code::AdHoc
            | Code::NothingReady
            | Code::Committing
            | Code::StillOpen
            | Code::AlreadyEnded
            | Code::OutOfStep
            | Code::DatabaseRestored
            | Code::NotFailed
            | Code::NoUrl
            | Code::SeveralDatasets
            | Code::SeveralFiles
            | Code::NoManifest
            | Code::NoEndpoint
            | Code::FileOfOtherDatabase => StatusCode::CONFLICT,
            Code::FileGone => StatusCode::GONE,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UriTooLong => StatusCode::URI_TOO_LONG,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Code::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Code::RateLimited | Code::TooManyOpenJobs => StatusCode::TOO_MANY_REQUESTS,
            Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Code::DatabaseUnavailable
            | Code::TableUnreadable
            | Code::DatasetMismatch
            | Code::StorageFull
            | Code::StorageReadonly
            | Code::OutputMissing
            | Code::OutputFailed
            | Code::FileOnOtherHost
            | Code::TooManyFollowers
            | Code::TooManyConnections => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

document_words! {
    Code, "ProblemCode", "The kind of a problem";
}
