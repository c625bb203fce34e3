//! The view that a user has of a client's work.

use std::io;

use crate::client::job_view::JobView;
use crate::job::JobId;

/// Shows a user what a client does, while the client does it. The command line prints and draws it.
pub(crate) trait Observer: Send + Sync {
    /// Returns true if progress is drawn as it moves. The client then asks the service for it more often.
    fn is_drawn(&self) -> bool;

    /// Shows a result on a line of its own: a file that has arrived, or an export that was applied.
    ///
    /// # Errors
    /// If nobody can read it.
    fn result(&self, line: &str) -> io::Result<()>;

    /// Shows a fact that the user may have to act on, such as a service that doesn't answer.
    fn notice(&self, text: &str);

    /// Begins to show the progress of a job.
    fn begin_job(&self, id: JobId);

    /// Shows the progress of the job that was begun last.
    fn job(&self, job: &JobView);

    /// Shows how many bytes of all are fetched or checked.
    fn bytes(&self, done: u64, all: u64);

    /// Shows how many manifests are read.
    fn manifests(&self, count: u64);

    /// Ends the progress that is shown.
    fn end(&self);
}
