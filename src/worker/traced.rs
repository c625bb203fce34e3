//! The span of an attempt and its position in a trace.

use std::time::SystemTime;

use crate::store::lease::Lease;
use crate::telemetry::spans::{Kind, Span};
use crate::worker::Worker;
use pg_session::failure::chain;

impl Worker {
    /// Starts the span of an attempt, beginning at the claim. A job without a trace joins the trace of this attempt.
    pub(super) async fn span(&self, lease: &Lease, claimed: SystemTime) -> Span {
        let export = lease.first();
        let span = Span::start_at("attempt", Kind::Consumer, export.trace.as_ref(), Some(claimed));
        let Some(place) = span.place() else { return span };
        span.step_since("claim", claimed);
        span.set("cdc_export.job.id", lease.id().to_string());
        match lease.exports.len() {
            1 => span.set("cdc_export.dataset", export.dataset.clone()),
            datasets => span.set("cdc_export.datasets", datasets as i64),
        }
        span.set("cdc_export.export_type", export.export_type.as_str());
        span.set("cdc_export.attempt", i64::from(export.attempt));
        if let Some(consumer) = &export.consumer {
            span.set("cdc_export.consumer", consumer.as_str().to_owned());
        }
        if export.trace.is_none()
            && let Err(error) = self.store.begin_trace(lease, place).await
        {
            // Other attempts and the publication of the job will not be in the same trace.
            tracing::debug!(event = "trace_unsaved", jobId = %export.job, error = chain(&error));
        }
        span
    }
}
