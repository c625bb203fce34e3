//! The span of an attempt, and where it belongs.

use std::time::SystemTime;

use crate::store::lease::Lease;
use crate::telemetry::chain;
use crate::telemetry::spans::{Kind, Span};
use crate::worker::Worker;

impl Worker {
    /// The span of an attempt at a job whose claim began at this time. A job that nobody has seen in a trace is in this
    /// attempt's from then on.
    pub(super) async fn span(&self, lease: &Lease, claimed: SystemTime) -> Span {
        let job = &lease.job;
        let span = Span::start_at("attempt", Kind::Consumer, job.trace.as_ref(), Some(claimed));
        let Some(place) = span.place() else { return span };
        span.step_since("claim", claimed);
        span.set("cdc_export.job.id", job.id.to_string());
        span.set("cdc_export.dataset", job.dataset.clone());
        span.set("cdc_export.export_type", job.export_type.as_str());
        span.set("cdc_export.attempt", i64::from(job.attempt));
        if let Some(consumer) = &job.consumer {
            span.set("cdc_export.consumer", consumer.as_str().to_owned());
        }
        if job.trace.is_none()
            && let Err(error) = self.store.begin_trace(lease, place).await
        {
            // What is lost is that its other attempts, and its publication, are found in the same trace.
            tracing::debug!(event = "trace_unsaved", jobId = %job.id, error = chain(&error));
        }
        span
    }
}
