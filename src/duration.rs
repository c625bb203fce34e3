//! Parses and displays durations in the syntax of the configuration: `90s`, `5m`, `1h 30m`, `7d`.

use std::time::Duration;

/// Parses a duration. Returns `None` if it contains months written as `M`, because such an operator probably means
/// minutes.
pub fn parse(text: &str) -> Option<Duration> {
    if text.split(|letter: char| !letter.is_ascii_alphabetic()).any(|unit| unit == "M") {
        return None;
    }
    humantime::parse_duration(text).ok()
}

/// Displays a duration. Its longest unit is the day, because a month is no fixed number of days.
pub fn display(duration: Duration) -> String {
    let days = duration.as_secs() / 86_400;
    let rest = humantime::format_duration(duration - Duration::from_secs(days * 86_400)).to_string();
    match (days, &*rest) {
        (0, _) => rest,
        (_, "0s") => format!("{days}d"),
        _ => format!("{days}d {rest}"),
    }
}
