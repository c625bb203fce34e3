//! Shows the work of a client to the user.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::job_view::JobProgress;
use cdc_manifest::JobId;

/// Returns the time after which the user is told what a call waits for.
pub(crate) fn quiet_wait() -> Duration {
    failpoint::time("client.quiet", Duration::from_secs(10))
}

/// Shows results, notices and progress of a client to the user. The command line prints and draws them. A method that
/// is not implemented shows nothing.
#[expect(unused_variables, reason = "the names of arguments are for implementations")]
pub trait Observer: Send + Sync {
    /// Returns true if progress is drawn continuously. The client then polls the service more often.
    fn draws_progress(&self) -> bool {
        false
    }

    /// Prints a result on its own line: an applied export.
    fn result(&self, line: &str) -> io::Result<()> {
        Ok(())
    }

    /// Prints the path of a downloaded file and the number of its rows on their own line.
    fn file(&self, path: &Path, rows: u64) -> io::Result<()> {
        Ok(())
    }

    /// Shows a fact that may require action, such as a service that doesn't answer.
    fn notice(&self, text: &str) {}

    fn begin_job(&self, id: JobId) {}

    /// Updates the progress of the job that was started last.
    fn job(&self, progress: &JobProgress<'_>) {}

    /// Shows how many of `all` bytes are downloaded or checked.
    fn bytes(&self, done: u64, all: u64) {}

    fn manifests(&self, count: u64) {}

    fn end(&self) {}
}
