//! The span of an attempt and its position in a trace.

use std::time::SystemTime;

use crate::store::lease::Lease;
use crate::telemetry::chain;
use crate::telemetry::spans::{Kind, Span};
use crate::worker::Worker;

impl Worker {
    /// Starts the span of an attempt, beginning at the claim. A job without a trace joins the trace of this attempt.
    pub(super) async fn span(&self, lease: &Lease, claimed: SystemTime) -> Span {
        let job = lease.first();
        let span = Span::start_at("attempt", Kind::Consumer, job.trace.as_ref(), Some(claimed));
        let Some(place) = span.place() else { return span };
        span.step_since("claim", claimed);
        span.set("cdc_export.job.id", job.id.to_string());
        match lease.members.len() {
            1 => span.set("cdc_export.dataset", job.dataset.clone()),
            members => span.set("cdc_export.batch.members", members as i64),
        }
        span.set("cdc_export.export_type", job.export_type.as_str());
        span.set("cdc_export.attempt", i64::from(job.attempt));
        if let Some(consumer) = &job.consumer {
            span.set("cdc_export.consumer", consumer.as_str().to_owned());
        }
        if job.trace.is_none()
            && let Err(error) = self.store.begin_trace(lease, place).await
        {
            // Other attempts and the publication of the job will not be in the same trace.
            tracing::debug!(event = "trace_unsaved", jobId = %job.id, error = chain(&error));
        }
        span
    }
}
