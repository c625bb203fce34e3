//! Telemetry: logs on standard error with one line per event, `metrics` and `spans`. None of them contains values of
//! rows, passwords or keys.

pub mod log_throttle;
pub mod metrics;
pub mod spans;

use std::io::{self, IsTerminal, Write};

use pg_session::pool::LOG_TARGETS;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, filter::Targets, fmt};

use pg_session::wait;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object with `event` and the fields at the top level.
    Json,
    Pretty,
}

impl Format {
    /// Returns `Pretty` if standard error is a terminal, otherwise `Json`.
    pub fn for_stderr() -> Format {
        if std::io::stderr().is_terminal() { Format::Pretty } else { Format::Json }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The least severe level that is logged.
    pub level: LevelFilter,
    pub format: Format,
}

/// Target of events about keys. Commands that otherwise log only errors include them.
pub const KEYS: &str = "cdc_export::keys";

/// Starts logging. An event is logged if it is at least as severe as `least` and as the level in the settings.
/// [`KEYS`] events and those about waits need only the latter. The events of `audit` are always logged.
///
/// Must be called once per process.
pub fn start(settings: &Settings, least: LevelFilter) {
    // Lower levels of the libraries would hide the events of this program.
    let level = settings.level.min(least);
    // The names of most of our crates begin with `cdc_`.
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("cdc_", level);
    let targets = targets
        .with_target(KEYS, settings.level)
        .with_target(wait::TARGET, settings.level)
        .with_target("private_postgres", level)
        .with_target("failpoint", level);
    let targets = targets.with_target("cdc_export::audit", LevelFilter::INFO);
    // A command prints the errors of its own calls.
    let is_command = least == LevelFilter::ERROR;
    let targets = if is_command { targets.with_target("cdc_export::http", LevelFilter::OFF) } else { targets };
    // lapin logs a warning with the full content for each returned message.
    let targets = targets.with_target("lapin", LevelFilter::OFF);
    // The lines of the driver's pool have no `event`. Callers log its errors, and `session_refused` has the others.
    let targets = targets.with_targets(LOG_TARGETS.map(|target| (target, LevelFilter::OFF)));
    // This library logs each rejected certificate at each attempt. Its returned error contains the same information.
    let targets = targets.with_target("rustls_platform_verifier", LevelFilter::OFF);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.format {
        Format::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        Format::Pretty => layer.with_target(false).with_writer(|| OneLine).boxed(),
    };
    // The filter is applied to the registry instead of the layer. A layer filter would lose an event after each
    // `enabled!` check of a library, such as those of sqlx.
    tracing_subscriber::registry().with(layer).with(targets).init();
}

/// Writes each event to standard error as one line. A value with a line end could forge a line otherwise.
struct OneLine;

impl Write for OneLine {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        io::stderr().write_all(one_line(&String::from_utf8_lossy(event)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn one_line(event: &str) -> String {
    event.trim_end_matches('\n').replace('\n', "\\n").replace('\r', "\\r") + "\n"
}

/// Logs an event of a job at a level, with the job's id, consumer, dataset and type, and with further fields.
macro_rules! job_event {
    ($level:ident, $export:expr, $event:literal $(, $($more:tt)*)?) => {
        tracing::$level!(
            event = $event,
            jobId = %$export.job,
            consumerId = $export.consumer.as_ref().map(|consumer| consumer.as_str()),
            dataset = $export.dataset,
            exportType = %$export.export_type,
            $($($more)*)?
        )
    };
}
pub(crate) use job_event;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_one_line() {
        assert_eq!(one_line("INFO a=\"x\r\n{y}\"\n"), "INFO a=\"x\\r\\n{y}\"\n");
    }
}
