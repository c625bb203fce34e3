//! Logs: one line an event, on standard error; `metrics`; and `spans`. Never a row's values, a password or a key.

pub mod log_throttle;
pub mod metrics;
pub mod spans;

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, filter::Targets, fmt};

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object, its `event` and fields at the top level.
    Json,
    /// A line for people to read.
    Pretty,
}

impl Format {
    /// Pretty where standard error is a terminal, otherwise JSON.
    pub fn for_stderr() -> Format {
        if std::io::stderr().is_terminal() { Format::Pretty } else { Format::Json }
    }
}

/// The log's settings.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// The form of the lines.
    pub format: Format,
}

/// What is told of who may call, by commands too that log nothing else but errors.
pub const AUDIT: &str = "cdc_export::audit";

/// Begins to log what is at least as severe as `least` and as the settings say; of [`AUDIT`], what the settings say.
/// Called once in a process.
pub fn start(settings: &Settings, least: LevelFilter) {
    // Lower levels of the libraries would bury this program's events.
    let level = settings.level.min(least);
    let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("cdc_export", level);
    let targets = targets.with_target(AUDIT, settings.level).with_target("private_postgres", level);
    // It warns of each message that comes back, with all that is in it.
    let targets = targets.with_target("lapin", LevelFilter::OFF);
    // It reports each certificate that it refuses, at each try; the error that it returns says the same.
    let targets = targets.with_target("rustls_platform_verifier", LevelFilter::OFF);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.format {
        Format::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        Format::Pretty => layer.with_target(false).boxed(),
    };
    // The filter is the whole registry's. A filter of the layer alone would lose the event after each one that a
    // library has asked about and not written (tracing's `enabled!`, which sqlx uses).
    tracing_subscriber::registry().with(layer).with(targets).init();
}

/// Logs an event of a job at a level, with whose and what the job is, and with further fields.
macro_rules! job_event {
    ($level:ident, $job:expr, $event:literal $(, $($more:tt)*)?) => {
        tracing::$level!(
            event = $event,
            jobId = %$job.id,
            consumerId = $job.consumer.as_ref().map(|consumer| consumer.as_str()),
            dataset = $job.dataset,
            exportType = %$job.export_type,
            $($($more)*)?
        )
    };
}
pub(crate) use job_event;

/// An error and its causes in one line, each text once: some libraries put the cause into the text of an error, beside
/// its source.
pub fn chain(error: &dyn std::error::Error) -> String {
    let (mut line, mut last) = (String::new(), String::new());
    for error in std::iter::successors(Some(error), |error| error.source()) {
        let text = error.to_string();
        if line.is_empty() {
            line.push_str(plain(&text));
        } else if !last.ends_with(&text) {
            line.extend([": ", plain(&text)]);
        }
        last = text;
    }
    line
}

/// The text of an error, without what sqlx adds to Postgres's message: that it is one, and the line of Postgres's own
/// source.
fn plain(text: &str) -> &str {
    if let Some(told) = text.strip_prefix("error communicating with database: ") {
        return told;
    }
    let Some(told) = text.strip_prefix("error returned from database: ") else { return text };
    match told.rsplit_once(" at line ") {
        Some((message, line)) if line.bytes().all(|byte| byte.is_ascii_digit()) => message,
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn a_chain_says_each_thing_once() {
        let chained = |texts: &[&'static str]| {
            let error = texts.iter().rev().fold(None, |source, text| Some(Box::new(Told(text, source))));
            chain(&error.unwrap())
        };
        assert_eq!(chained(&["can't", "no room", "No space (os error 28)"]), "can't: no room: No space (os error 28)");
        let refused = "error returned from database: relation \"a at line 7\" is not there at line 334";
        let cause = "relation \"a at line 7\" is not there at line 334";
        assert_eq!(chained(&["can't", refused, cause]), "can't: relation \"a at line 7\" is not there");
        assert_eq!(chained(&["error communicating with database: refused", "refused"]), "refused");
    }
}
