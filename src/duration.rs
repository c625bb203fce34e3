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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capital_m_is_rejected() {
        for (text, seconds) in [("90s", 90), ("5m", 300), ("1h 30m", 5400), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(parse(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "5", "5M", "1h 30M", "30M1s", "x"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn days_are_the_longest_unit() {
        for (seconds, text) in [(0, "0s"), (5400, "1h 30m"), (90 * 86_400, "90d"), (400 * 86_400 + 1, "400d 1s")] {
            assert_eq!(display(Duration::from_secs(seconds)), text);
        }
    }
}
