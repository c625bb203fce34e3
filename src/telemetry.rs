//! Logs: one line an event, on standard error; and `metrics`. Never a row's values, a password or a key.

pub mod complaints;
pub mod metrics;

use std::io::IsTerminal;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, filter::Targets, fmt};

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A JSON object, its `event` and fields at the top level.
    Json,
    /// For people.
    Pretty,
}

impl Format {
    /// Pretty where a person sees it, JSON otherwise.
    pub fn for_stderr() -> Format {
        if std::io::stderr().is_terminal() { Format::Pretty } else { Format::Json }
    }
}

/// What an operator may set.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The least severe level that is written.
    pub level: LevelFilter,
    /// How it looks.
    pub format: Format,
}

/// Begins to log, once a process.
pub fn start(settings: &Settings) {
    // The libraries' own chatter would bury the events.
    let targets =
        Targets::new().with_default(settings.level.min(LevelFilter::WARN)).with_target("cdc_export", settings.level);
    let layer = fmt::layer().with_writer(std::io::stderr);
    let layer = match settings.format {
        Format::Json => layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed(),
        Format::Pretty => layer.with_target(false).boxed(),
    };
    // The filter is for the whole registry: one for the layer alone loses the event that follows a library's question whether
    // its own would be written (tracing's `enabled!`, which sqlx asks).
    tracing_subscriber::registry().with(layer).with(targets).init();
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
