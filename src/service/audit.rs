//! The audit log.

use crate::audit::{Action, AuditEntry, AuditFilter};
use crate::job::JobId;
use crate::service::deadline::with_timeout;
use crate::service::{Error, Service};

impl Service {
    /// Returns up to `limit` rows of the audit log that match a filter, newest first.
    pub async fn audit_entries(&self, filter: &AuditFilter, limit: u32) -> Result<Vec<AuditEntry>, Error> {
        with_timeout(self.store.audit_entries(filter, limit)).await
    }

    /// Records that a download begins. Must succeed before the first byte is sent.
    pub async fn record_download(&self, job: JobId, part: Option<u32>) -> Result<(), Error> {
        with_timeout(self.store.record_download(job, part)).await
    }

    /// Records that the request was refused with this code. The refusal stands, even if it can't be recorded.
    pub(crate) async fn record_refusal(&self, action: Action, code: &str) {
        if let Err(error) = with_timeout(self.store.record_refusal(action, code)).await {
            tracing::warn!(event = "refusal_not_recorded", action = action.as_str(), code, error = %error);
        }
    }
}
