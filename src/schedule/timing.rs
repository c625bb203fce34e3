//! Computes the slots of a schedule: at a fixed interval, or by a cron pattern in a time zone.

use std::fmt;

use chrono::{DateTime, NaiveDateTime, SubsecRound, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds, Year};
use croner::{Cron, JobType};

use crate::duration;

/// The allowed intervals, in seconds: up to a leap year.
const INTERVALS: std::ops::RangeInclusive<u64> = 1..=366 * 24 * 60 * 60;

/// Longer than the clocks of any time zone skip or repeat: Samoa skipped a day in 2011.
const LONGEST_SHIFT: TimeDelta = TimeDelta::days(2);

#[derive(Clone, Debug)]
pub enum Timing {
    /// Slots at the multiples of an interval since the beginning of 1970, UTC. The slots of `1h` are the full hours.
    Every { seconds: u64 },
    /// Slots at the local times of a cron pattern in a time zone. A change to or from daylight saving time is handled
    /// as in cron:
    ///
    /// - A pattern with one time of day has a slot right after the gap if that time is skipped, and a single slot if
    ///   that time occurs twice.
    /// - A pattern with many times has no slot in the gap, and slots in both repeated hours.
    Cron { text: String, pattern: Box<Cron>, zone: Tz },
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadTiming {
    #[error("a time from 1s to 366d in whole seconds is expected, such as 5m or 1h")]
    Every,
    /// Contains the reason if it is known.
    #[error("not five fields of cron (minute, hour, day of month, month, day of week), such as 15 2 * * 1-5{0}")]
    Cron(String),
    #[error("no date matches this pattern")]
    Never,
    #[error("there is no time zone of this name, such as Europe/Berlin")]
    Zone,
}

impl Timing {
    pub fn every(text: &str) -> Result<Timing, BadTiming> {
        // The parser of durations reads a month as 30.44 days and a year as 365.25 days.
        let mut units = text.split(|letter: char| !letter.is_ascii_alphabetic());
        let has_months_or_years = units.any(|unit| unit.starts_with("mo") || unit.starts_with('y'));
        if has_months_or_years {
            return Err(BadTiming::Every);
        }
        let interval = duration::parse(text).ok_or(BadTiming::Every)?;
        if interval.subsec_nanos() != 0 || !INTERVALS.contains(&interval.as_secs()) {
            return Err(BadTiming::Every);
        }
        Ok(Timing::Every { seconds: interval.as_secs() })
    }

    /// Parses a cron pattern of five fields, whose times are those of a time zone.
    ///
    /// # Errors
    /// The error has the faults of all fields.
    pub fn cron(text: &str, zone: Tz) -> Result<Timing, BadTiming> {
        let faults = field_faults(text);
        if !faults.is_empty() {
            return Err(BadTiming::Cron(format!(": {}", faults.join("; "))));
        }
        let pattern = parser().parse(text).map_err(|why| BadTiming::Cron(reason(why).unwrap_or_default()))?;
        let timing = Timing::Cron { text: text.to_owned(), pattern: Box::new(pattern), zone };
        // The parser accepts 30 February. Only a search shows that no date matches.
        let some_time = DateTime::from_timestamp_secs(1_767_225_600).ok_or(BadTiming::Never)?;
        if timing.latest(some_time).is_some() && timing.next(some_time).is_some() {
            Ok(timing)
        } else {
            Err(BadTiming::Never)
        }
    }

    /// Returns the latest slot at or before `now`.
    pub fn latest(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Timing::Every { seconds } => multiple(*seconds, now, 0),
            Timing::Cron { pattern, zone, .. } if pattern.determine_job_type() == JobType::FixedTime => {
                let local = now.with_timezone(zone).naive_local() + LONGEST_SHIFT;
                pattern.iter_before(local).filter_map(|local| slot_at(*zone, local)).find(|slot| *slot <= now)
            }
            Timing::Cron { pattern, zone, .. } => {
                let now = now.trunc_subsecs(0).with_timezone(zone);
                Some(pattern.find_previous_occurrence(&now, true).ok()?.with_timezone(&Utc))
            }
        }
    }

    /// Returns the first slot after `then`.
    pub fn next(&self, then: DateTime<Utc>) -> Option<DateTime<Utc>> {
        match self {
            Timing::Every { seconds } => multiple(*seconds, then, 1),
            Timing::Cron { pattern, zone, .. } if pattern.determine_job_type() == JobType::FixedTime => {
                let local = then.with_timezone(zone).naive_local() - LONGEST_SHIFT;
                pattern.iter_after(local).filter_map(|local| slot_at(*zone, local)).find(|slot| *slot > then)
            }
            Timing::Cron { pattern, zone, .. } => {
                let then = then.trunc_subsecs(0).with_timezone(zone);
                Some(pattern.find_next_occurrence(&then, false).ok()?.with_timezone(&Utc))
            }
        }
    }

    /// Returns the interval as text. Returns `None` for a cron pattern.
    pub fn interval(&self) -> Option<String> {
        match self {
            Timing::Every { seconds } => Some(interval_text(*seconds)),
            Timing::Cron { .. } => None,
        }
    }

    /// Returns the cron pattern and the name of its time zone. Returns `None` for an interval.
    pub fn pattern(&self) -> Option<(&str, &'static str)> {
        match self {
            Timing::Every { .. } => None,
            Timing::Cron { text, zone, .. } => Some((text, zone.name())),
        }
    }
}

/// Parses the name of a time zone in the IANA database.
pub fn zone(name: &str) -> Result<Tz, BadTiming> {
    name.parse().map_err(|_| BadTiming::Zone)
}

/// Returns the slot of a local time: its first occurrence if it occurs twice, and the end of the gap if it is skipped.
/// The library would lose a slot in a gap that ends on another day, if the pattern names the day.
fn slot_at(zone: Tz, local: NaiveDateTime) -> Option<DateTime<Utc>> {
    let mut minutes = (0..=LONGEST_SHIFT.num_minutes()).map(TimeDelta::minutes);
    let slot = minutes.find_map(|minutes| zone.from_local_datetime(&(local + minutes)).earliest())?;
    Some(slot.to_utc())
}

fn parser() -> CronParser {
    CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build()
}

/// Returns the reason of the parser, if it has more than the number of fields.
fn reason(why: CronError) -> Option<String> {
    match why {
        CronError::ComponentError(why) | CronError::IllegalCharacters(why) => Some(why),
        _ => None,
    }
}

/// Returns the faults of the fields of a pattern. A pattern of another number of fields has none, and is invalid as a
/// whole.
fn field_faults(text: &str) -> Vec<String> {
    const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
    const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    const NAMES: [&[&str]; 5] = [&[], &[], &["l"], &MONTHS, &DAYS];
    const LONGEST_STEPS: [u32; 5] = [59, 23, 31, 12, 7];
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let Ok(fields) = <[&str; 5]>::try_from(fields) else { return Vec::new() };
    let mut faults = Vec::new();
    for (at, field) in fields.into_iter().enumerate() {
        let unsupported = unsupported_pieces(field, NAMES[at]);
        let is_supported = unsupported.is_empty();
        faults.extend(unsupported.into_iter().map(|piece| format!("`{piece}` is not a number, a name or *")));
        faults.extend(
            too_long_steps(field, LONGEST_STEPS[at])
                .map(|step| format!("a step of {step} is longer than its field and would match only once")),
        );
        let mut alone = ["*"; 5];
        alone[at] = field;
        if is_supported && let Err(why) = parser().parse(&alone.join(" ")) {
            let why = reason(why).unwrap_or_else(|| "not a field of cron".to_owned());
            faults.push(format!("`{field}`: {}", why.trim_end_matches('.')));
        }
    }
    faults
}

/// Finds the pieces of a field that the parser accepts and cron does not know: `+1`, `15W`, `MON#2`, `?`. Allows `L`,
/// the last day of a month.
fn unsupported_pieces<'f>(field: &'f str, names: &[&str]) -> Vec<&'f str> {
    let is_unsupported = |piece: &&str| {
        let is_number = !piece.is_empty() && piece.bytes().all(|byte| byte.is_ascii_digit());
        !is_number && *piece != "*" && !names.contains(&piece.to_ascii_lowercase().as_str())
    };
    field.split([',', '-', '/']).filter(is_unsupported).collect()
}

/// Finds the steps of a field that are longer than it. The parser reads `*/90` minutes as each full hour, not as every
/// 90 minutes.
fn too_long_steps(field: &str, longest: u32) -> impl Iterator<Item = u32> {
    let steps = field.split(',').filter_map(|part| part.split_once('/')?.1.parse().ok());
    steps.filter(move |step| *step > longest)
}

pub fn zones() -> impl Iterator<Item = &'static str> {
    chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name())
}

/// Formats an interval in days, hours, minutes and seconds.
fn interval_text(seconds: u64) -> String {
    let units = [(86_400, u64::MAX, "d"), (3_600, 24, "h"), (60, 60, "m"), (1, 60, "s")];
    let parts = units.map(|(size, most, unit)| (seconds / size % most, unit));
    parts.iter().filter(|(number, _)| *number > 0).map(|(number, unit)| format!("{number}{unit}")).collect()
}

/// Returns the last multiple of an interval at or before a time, or the multiple `further` intervals after that one.
fn multiple(seconds: u64, time: DateTime<Utc>, further: i64) -> Option<DateTime<Utc>> {
    let seconds = i64::try_from(seconds).ok()?;
    DateTime::from_timestamp_secs((time.timestamp().div_euclid(seconds) + further).checked_mul(seconds)?)
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.interval(), self.pattern()) {
            (Some(interval), _) => write!(f, "every {interval}"),
            (None, Some((pattern, zone))) => write!(f, "{pattern} {zone}"),
            (None, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin(pattern: &str) -> Timing {
        Timing::cron(pattern, Tz::Europe__Berlin).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        format!("{text}:00Z").parse().unwrap()
    }

    /// Returns the slots between two times, in UTC. Asserts that `latest` returns each slot until the next one.
    fn slots(timing: &Timing, from: &str, to: &str) -> Vec<String> {
        let (mut then, to) = (at(from), at(to));
        let mut found = Vec::new();
        while let Some(next) = timing.next(then).filter(|next| *next < to) {
            found.push(next);
            then = next;
        }
        for (i, slot) in found.iter().enumerate() {
            let end = found.get(i + 1).copied().unwrap_or(to);
            let mut now = *slot;
            while now < end {
                assert_eq!(timing.latest(now), Some(*slot), "the latest at {now}");
                now += TimeDelta::minutes(1);
            }
            assert_eq!(timing.latest(end - TimeDelta::milliseconds(1)), Some(*slot), "the latest right before {end}");
        }
        found.iter().map(|slot| slot.format("%dT%H:%M").to_string()).collect()
    }

    #[test]
    fn single_time_of_day_has_one_slot_a_day_despite_daylight_saving() {
        // In Berlin the clocks went from 02:00 to 03:00 on 29 March 2026, and go from 03:00 to 02:00 on 25 October.
        let half_past_two = berlin("30 2 * * *");
        assert_eq!(slots(&half_past_two, "2026-03-27T12:00", "2026-03-30T12:00"), ["28T01:30", "29T01:00", "30T00:30"]);
        assert_eq!(slots(&half_past_two, "2026-10-23T12:00", "2026-10-26T12:00"), ["24T00:30", "25T00:30", "26T01:30"]);
        let quarter_past_three = berlin("15 3 * * *");
        assert_eq!(slots(&quarter_past_three, "2026-03-28T12:00", "2026-03-30T12:00"), ["29T01:15", "30T01:15"]);
        assert_eq!(slots(&quarter_past_three, "2026-10-24T12:00", "2026-10-26T12:00"), ["25T02:15", "26T02:15"]);
        let midnight = berlin("@daily");
        assert_eq!(slots(&midnight, "2026-03-28T12:00", "2026-03-30T12:00"), ["28T23:00", "29T22:00"]);
    }

    /// Some of these time zones change their clocks at midnight, by half an hour, or by two hours.
    #[test]
    fn no_slot_is_lost_or_repeated_in_any_time_zone() {
        let zones = [
            "Africa/Cairo",
            "Africa/Casablanca",
            "America/Havana",
            "America/New_York",
            "America/Santiago",
            "Antarctica/Troll",
            "Asia/Beirut",
            "Asia/Gaza",
            "Atlantic/Azores",
            "Australia/Lord_Howe",
            "Europe/Berlin",
            "UTC",
        ];
        for zone in zones {
            for (pattern, of_a_day) in
                [("0 0 * * *", Some(1)), ("30 2 * * *", Some(1)), ("15 1,3 * * *", None), ("*/20 * * * *", None)]
            {
                let timing = Timing::cron(pattern, super::zone(zone).unwrap()).unwrap();
                let (mut then, end) = (at("2026-01-01T12:00"), at("2027-01-01T12:00"));
                let mut found = 0;
                while then < end {
                    let context = || format!("{pattern} {zone} after {then}");
                    let next = timing.next(then).unwrap_or_else(|| panic!("{}", context()));
                    assert!(next > then, "{}", context());
                    assert_eq!(timing.latest(next), Some(next), "{}", context());
                    if found > 0 {
                        assert_eq!(timing.latest(next - TimeDelta::seconds(1)), Some(then), "{}", context());
                    }
                    found += 1;
                    then = next;
                }
                assert!(
                    of_a_day.is_none_or(|number| (365 * number..=365 * number + 1).contains(&found)),
                    "{pattern} {zone}: {found}"
                );
            }
        }
    }

    #[test]
    fn intervals_are_counted_from_1970() {
        let hour = Timing::every("1h").unwrap();
        assert_eq!(
            slots(&hour, "2026-03-28T23:30", "2026-03-29T03:30"),
            ["29T00:00", "29T01:00", "29T02:00", "29T03:00"]
        );
        let (now, second) = ("2026-11-22T10:00:00.999Z".parse().unwrap(), Timing::every("1s").unwrap());
        assert_eq!(second.latest(now), Some(at("2026-11-22T10:00")));
        assert_eq!(second.next(now), Some("2026-11-22T10:00:01Z".parse().unwrap()));
        let before: DateTime<Utc> = "1969-12-31T23:59:30Z".parse().unwrap();
        assert_eq!(Timing::every("1m").unwrap().latest(before), Some("1969-12-31T23:59:00Z".parse().unwrap()));
    }

    #[test]
    fn invalid_timing_is_rejected() {
        for bad in [
            "",
            "5",
            "0s",
            "999ms",
            "1500ms",
            "367d",
            "5 parsecs",
            "-5m",
            "18446744073709551615s",
            "5M",
            "1month",
            "2 months",
            "1y",
            "1year",
        ] {
            assert_eq!(Timing::every(bad).unwrap_err(), BadTiming::Every, "{bad}");
        }
        for bad in [
            "",
            "* * * *",
            "*/90 * * * *",
            "0 1,*/24 * * *",
            "0 15 2 * * *",
            "60 2 * * *",
            "15 2 * * 8",
            "15 2 * * 1-5 2026",
            "soon",
            "15 2 32 * *",
            "15 2 +1 * *",
            "15 2 15W * *",
            "15 2 ? * *",
            "15 2 * * MON#2",
            "15 2 * * 5L",
            "15 L * * *",
        ] {
            let why = Timing::cron(bad, Tz::UTC).unwrap_err();
            assert!(matches!(why, BadTiming::Cron(_)), "{bad}: {why}");
        }
        assert_eq!(Timing::cron("0 0 30 2 *", Tz::UTC).unwrap_err(), BadTiming::Never);
        assert_eq!(super::zone("Europe/Atlantis").unwrap_err(), BadTiming::Zone);
    }

    #[test]
    fn timing_is_displayed_in_its_canonical_form() {
        for (text, written) in [("90s", "1m30s"), ("5min", "5m"), ("48h", "2d"), ("366d", "366d"), ("1day 1s", "1d1s")]
        {
            assert_eq!(Timing::every(text).unwrap().to_string(), format!("every {written}"));
        }
        assert_eq!(berlin("15 2 * * 1-5").to_string(), "15 2 * * 1-5 Europe/Berlin");
    }
}
