//! The codes of problems, and the status that an answer with each of them has.

use axum::http::StatusCode;

use crate::http::schemas::document_words;

pg_rows::words! {
    /// What went wrong, as a stable word: the sentences of `detail` may change, these words don't.
    pub(crate) Code, "a problem code" {
        /// The request can't be read.
        BadRequest = "bad_request",
        /// The body is not one JSON object.
        InvalidBody = "invalid_body",
        /// The call is a consumer's, and `X-Consumer-ID` is missing.
        ConsumerRequired = "consumer_required",
        /// Not the id of a consumer, or two of them.
        ConsumerInvalid = "consumer_invalid",
        /// `Idempotency-Key` is not 1 to 255 visible ASCII characters, or is given twice.
        IdempotencyKeyInvalid = "idempotency_key_invalid",
        /// A parameter of the query has a bad value, is missing, or is given twice; `field` names it.
        ParameterInvalid = "parameter_invalid",
        /// The query has a parameter that this call doesn't have; `field` names it.
        ParameterUnknown = "parameter_unknown",
        /// A member of the body has a bad value, is missing, or is given twice; `field` names it.
        MemberInvalid = "member_invalid",
        /// The body has a member that this call doesn't have; `field` names it.
        MemberUnknown = "member_unknown",
        /// No `Authorization: Bearer`.
        KeyRequired = "key_required",
        /// The key is malformed, unknown, revoked or expired.
        KeyInvalid = "key_invalid",
        /// Without keys only callers on this machine are served, and `Host` has to be this machine's.
        HostNotLocal = "host_not_local",
        /// Without keys a proxy is not served, since it would publish everything; `field` names the header that shows
        /// the proxy.
        ProxyNotAllowed = "proxy_not_allowed",
        /// A web page of an origin that may not call.
        OriginNotAllowed = "origin_not_allowed",
        /// The key lacks the call's scope, which `WWW-Authenticate` names.
        ScopeMissing = "scope_missing",
        /// The key is for other consumers.
        ConsumerNotAllowed = "consumer_not_allowed",
        /// There is nothing here, or it belongs to another consumer than the key is for.
        NotFound = "not_found",
        /// There is no dataset of this name.
        NoDataset = "no_dataset",
        /// The consumer has no watermark yet.
        NoWatermark = "no_watermark",
        /// The path has no such method; `Allow` names those it has.
        MethodNotAllowed = "method_not_allowed",
        /// The body did not arrive in time.
        RequestTimeout = "request_timeout",
        /// The dataset has no times that a watermark could be compared with.
        NoUpdatedAt = "no_updated_at",
        /// The dataset's table isn't there.
        TableMissing = "table_missing",
        /// The service's database role may not read the dataset's table, or row-level security may hide rows of it.
        PermissionDenied = "permission_denied",
        /// Nobody ran `cdc-export track` for the dataset, or not since it has another key: its changes are not
        /// captured.
        NotTracked = "not_tracked",
        /// The export has no file yet, and may never have one.
        NotCompleted = "not_completed",
        /// The export belongs to no consumer, so nobody acknowledges it.
        AdHoc = "ad_hoc",
        /// An export is being committed right now.
        Committing = "committing",
        /// The export has not ended yet.
        StillOpen = "still_open",
        /// The export has ended, and not by a cancel.
        AlreadyEnded = "already_ended",
        /// The consumer's last export is not the one that `after` names; `jobs` has the exports since, and the open
        /// ones.
        OutOfStep = "out_of_step",
        /// The database doesn't have the export that `after` names as completed, or exports that came after it: the
        /// database was restored, or the exports are not kept any more.
        DatabaseRestored = "database_restored",
        /// Only a failed or cancelled export is tried again.
        NotFailed = "not_failed",
        /// The file is in a folder, where it has no address.
        NoUrl = "no_url",
        /// The export has several files, each of which has an address of its own.
        SeveralFiles = "several_files",
        /// The export has no such part.
        NoPart = "no_part",
        /// The export has no manifest: it is an ad-hoc one, or a version made it that made none.
        NoManifest = "no_manifest",
        /// The delivery's receiver is not in the operator's file any more.
        NoEndpoint = "no_endpoint",
        /// The file was removed, or is not the one that was exported.
        FileGone = "file_gone",
        /// The body has more than 1 MB.
        BodyTooLarge = "body_too_large",
        /// The path and its query have more than 8 KB.
        UriTooLong = "uri_too_long",
        /// The body doesn't say that it is `application/json`.
        UnsupportedMediaType = "unsupported_media_type",
        /// The range begins past the end of the file; `Content-Range` has its size.
        RangeNotSatisfiable = "range_not_satisfiable",
        /// The key was sent with another request before.
        IdempotencyKeyReused = "idempotency_key_reused",
        /// Too many requests; `Retry-After` says how long to wait.
        RateLimited = "rate_limited",
        /// As many exports are open as there may be.
        TooManyOpenJobs = "too_many_open_jobs",
        /// More than 100 headers, or 32 KB of them.
        HeadersTooLarge = "headers_too_large",
        /// A defect of the service; its log has the cause under the answer's `X-Request-Id`.
        Internal = "internal",
        /// Postgres can't be reached now.
        DatabaseUnavailable = "database_unavailable",
        /// The table can't be read now.
        TableUnreadable = "table_unreadable",
        /// The table isn't as its dataset says.
        DatasetMismatch = "dataset_mismatch",
        /// The output folder or bucket has no room left.
        StorageFull = "storage_full",
        /// The output folder or bucket can't be written.
        StorageReadonly = "storage_readonly",
        /// The output folder or bucket is missing.
        OutputMissing = "output_missing",
        /// The output folder or bucket can't be used.
        OutputFailed = "output_failed",
        /// The file is in another `OUTPUT_DIR`, or on another host.
        FileOnOtherHost = "file_on_other_host",
        /// The file is of the database that this one is a copy of.
        FileOfOtherDatabase = "file_of_other_database",
        /// As many clients follow or wait for exports as may: of the key, of the address, or of all.
        TooManyFollowers = "too_many_followers",
        /// As many requests are under way as may be: of the address, or of all.
        TooManyConnections = "too_many_connections",
    }
}

impl Code {
    /// The status that an answer with this code has.
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
            | Code::MemberUnknown => StatusCode::BAD_REQUEST,
            Code::KeyRequired | Code::KeyInvalid => StatusCode::UNAUTHORIZED,
            Code::HostNotLocal
            | Code::ProxyNotAllowed
            | Code::OriginNotAllowed
            | Code::ScopeMissing
            | Code::ConsumerNotAllowed => StatusCode::FORBIDDEN,
            Code::NotFound | Code::NoDataset | Code::NoWatermark | Code::NoPart => StatusCode::NOT_FOUND,
            Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Code::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Code::NoUpdatedAt
            | Code::TableMissing
            | Code::PermissionDenied
            | Code::NotTracked
            | Code::NotCompleted
            | Code::AdHoc
            | Code::Committing
            | Code::StillOpen
            | Code::AlreadyEnded
            | Code::OutOfStep
            | Code::DatabaseRestored
            | Code::NotFailed
            | Code::NoUrl
            | Code::SeveralFiles
            | Code::NoManifest
            | Code::NoEndpoint
            | Code::FileOfOtherDatabase => StatusCode::CONFLICT,
            Code::FileGone => StatusCode::GONE,
            Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::UriTooLong => StatusCode::URI_TOO_LONG,
            Code::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
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
    Code, "ProblemCode", "What went wrong";
}
