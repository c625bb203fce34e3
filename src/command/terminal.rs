//! Terminal output: results on standard output, notices and progress bars on standard error.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use crate::command::plain::plain;
use cdc_client::{JobProgress, Observer};
use cdc_manifest::JobId;

/// The interval of progress lines if standard error is not a terminal.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Prints the results, notices and progress of a client.
#[derive(Default)]
pub(super) struct Terminal {
    /// The start of each line: the name of a dataset and a colon, or nothing.
    prefix: String,
    /// The end of a line that begins with a path: the same name, or nothing.
    suffix: String,
    bars: MultiProgress,
    progress: Mutex<Option<ProgressDisplay>>,
}

struct ProgressDisplay {
    /// Draws nothing if standard error is not a terminal.
    bar: ProgressBar,
    printed_at: Instant,
}

impl Terminal {
    pub(super) fn shared() -> Arc<Terminal> {
        Arc::default()
    }

    /// Returns a terminal for a dataset: its lines name the dataset. It has a progress bar of its own, below those of
    /// the other datasets.
    pub(super) fn of_dataset(&self, dataset: &str) -> Arc<Terminal> {
        let (prefix, suffix) = (format!("{}: ", plain(dataset)), format!(" of {}", plain(dataset)));
        Arc::new(Terminal { prefix, suffix, bars: self.bars.clone(), progress: Mutex::default() })
    }

    /// Hides the progress bars, calls `print`, and draws the bars again.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bars.suspend(print)
    }

    fn progress(&self) -> MutexGuard<'_, Option<ProgressDisplay>> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, bar: ProgressBar) -> ProgressDisplay {
        let bar = self.bars.add(bar.with_prefix(self.prefix.clone()));
        ProgressDisplay { bar, printed_at: Instant::now() }
    }
}

impl Observer for Terminal {
    fn draws_progress(&self) -> bool {
        io::stderr().is_terminal()
    }

    fn result(&self, line: &str) -> io::Result<()> {
        self.suspend(|| writeln!(io::stdout(), "{}{}", self.prefix, plain(line)))
    }

    fn file(&self, path: &Path, rows: u64) -> io::Result<()> {
        let line = format!("{}  {rows} rows{}", path.display(), self.suffix);
        self.suspend(|| writeln!(io::stdout(), "{}", plain(&line)))
    }

    fn notice(&self, text: &str) {
        self.suspend(|| print_notice(&format!("{}{text}", self.prefix)));
    }

    fn begin_job(&self, id: JobId) {
        *self.progress() = Some(self.begin(row_progress_bar(100).with_message(id.to_string())));
    }

    fn job(&self, JobProgress { job, phase, rows }: &JobProgress<'_>) {
        let mut progress = self.progress();
        let Some(ProgressDisplay { bar, printed_at }) = &mut *progress else { return };
        if self.draws_progress() {
            // The bar counts rows. Their total is estimated from the percentage.
            let all = rows.saturating_mul(100).checked_div(u64::from(job.progress)).unwrap_or(0);
            bar.set_length(all.max(*rows).max(1));
            bar.set_position(*rows);
            bar.set_message(format!("{}{}", job.id, job.remark()));
        } else if printed_at.elapsed() >= PROGRESS_INTERVAL {
            eprintln!("{}{phase} {}% {rows} rows{}", self.prefix, job.progress, job.remark());
            *printed_at = Instant::now();
        }
    }

    fn bytes(&self, done: u64, all: u64) {
        let template = "{prefix}{bar:30} {percent:>3}%  {binary_bytes}  {binary_bytes_per_sec}  {eta} left";
        let begin = || self.begin(styled(template, Some(all)));
        self.progress().get_or_insert_with(begin).bar.set_position(done);
    }

    fn manifests(&self, count: u64) {
        let begin = || self.begin(styled("{prefix}{human_pos} manifests  {per_sec}", None));
        self.progress().get_or_insert_with(begin).bar.set_position(count);
    }

    fn end(&self) {
        if let Some(progress) = self.progress().take() {
            progress.bar.finish_and_clear();
            self.bars.remove(&progress.bar);
        }
    }
}

pub(super) fn is_closed_stdout(error: &anyhow::Error) -> bool {
    let cause = match error.downcast_ref() {
        Some(cdc_client::Error::Output(cause)) => Some(cause),
        _ => error.downcast_ref::<io::Error>(),
    };
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

pub(super) fn print_notice(text: &str) {
    eprintln!("cdc-export: {}", plain(text));
}

/// Creates a progress bar that counts rows. It draws nothing if standard error is not a terminal.
pub(super) fn row_progress_bar(length: u64) -> ProgressBar {
    styled("{prefix}{bar:30} {percent:>3}%  {human_pos} rows  {per_sec}  {eta} left  {msg}", Some(length))
}

fn styled(template: &str, length: Option<u64>) -> ProgressBar {
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    length.map_or_else(ProgressBar::no_length, ProgressBar::new).with_style(style)
}
