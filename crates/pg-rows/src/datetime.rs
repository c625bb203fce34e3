//! Writes dates and times as RFC 3339 in UTC with microseconds: `2026-02-26T04:30:00.123456Z`.
//!
//! A time without a zone has no `Z`; a date or a time of day is the corresponding part. A general formatter costs
//! several times the rest of a row, so the digits are written here. Values beyond RFC 3339 are written as Postgres
//! reads them back: `infinity`, years of five and more digits, ` BC` behind years before 1, and the time `24:00:00`.

use crate::digits;

/// The microseconds of a day, which is also the last time of day in Postgres, `24:00:00`.
pub(crate) const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01, where the calendar's cycle begins, to 2000-01-01, Postgres's epoch.
const EPOCH_DAYS: i64 = 730_425;
const YEARS_OF_CYCLE: i64 = 400;
const DAYS_OF_CYCLE: i64 = 146_097;
/// Cycles of the calendar that lie before the first day of a timestamp.
const CYCLES: i64 = 1_000;

/// Appends a `timestamptz`: microseconds since 2000-01-01 UTC, Postgres's binary form.
pub(crate) fn timestamptz(micros: i64, out: &mut Vec<u8>) {
    moment(b"0000-00-00T00:00:00.000000Z", micros, out);
}

/// Appends a `timestamp`: microseconds since 2000-01-01 on a clock of no known zone.
pub(crate) fn timestamp(micros: i64, out: &mut Vec<u8>) {
    moment(b"0000-00-00T00:00:00.000000", micros, out);
}

/// Appends a `date`: days since 2000-01-01.
pub(crate) fn date(day: i32, out: &mut Vec<u8>) {
    match day {
        i32::MAX => return out.extend_from_slice(b"infinity"),
        i32::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let (year, month, day_of_month) = civil_date(day);
    dated(b"0000-00-00", (year, month, day_of_month), out);
    end_year(year, out);
}

/// Appends a `time`: microseconds since midnight, at most [`MICROS_PER_DAY`].
pub(crate) fn time(micros: i64, out: &mut Vec<u8>) {
    put_time(0, micros as u64, template(b"00:00:00.000000", out));
}

/// Returns the year of a `date`, as `extract` of Postgres has it: there is no year 0. `None` for infinity.
pub(crate) fn year_of_date(day: i32) -> Option<i32> {
    if day == i32::MAX || day == i32::MIN {
        return None;
    }
    let (year, ..) = civil_date(day);
    i32::try_from(if year > 0 { year } else { year - 1 }).ok()
}

pub(crate) fn year_of_moment(micros: i64) -> Option<i32> {
    let is_finite = micros != i64::MAX && micros != i64::MIN;
    let day = is_finite.then(|| i32::try_from(micros.div_euclid(MICROS_PER_DAY)).ok()).flatten();
    day.and_then(year_of_date)
}

fn moment<const N: usize>(form: &[u8; N], micros: i64, out: &mut Vec<u8>) {
    match micros {
        i64::MAX => return out.extend_from_slice(b"infinity"),
        i64::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let (year, month, day) = civil(micros.div_euclid(MICROS_PER_DAY));
    let text = dated(form, (year, month, day), out);
    put_time("0000-00-00T".len(), micros.rem_euclid(MICROS_PER_DAY) as u64, text);
    end_year(year, out);
}

/// Appends a form that begins with `0000-00-00`, and fills in the date.
fn dated<'o, const N: usize>(
    form: &[u8; N],
    (year, month, day): (i64, u32, u32),
    out: &'o mut Vec<u8>,
) -> &'o mut [u8; N] {
    let shown_year = if year > 0 { year } else { 1 - year } as u64;
    if shown_year > 9999 {
        out.extend_from_slice(itoa::Buffer::new().format(shown_year / 10_000).as_bytes());
    }
    let last_four = (shown_year % 10_000) as u32;
    let text = template(form, out);
    put(0, last_four / 100, text);
    put(2, last_four % 100, text);
    put(5, month, text);
    put(8, day, text);
    text
}

/// Fills in a time, `00:00:00.000000`, that begins there.
fn put_time<const N: usize>(at: usize, micros: u64, text: &mut [u8; N]) {
    // Seconds of a whole day, and of no more, fit 32 bits, which divide faster.
    let (seconds, fraction) = ((micros / 1_000_000) as u32, (micros % 1_000_000) as u32);
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    put(at, hours, text);
    put(at + 3, minutes % 60, text);
    put(at + 6, seconds % 60, text);
    put(at + 9, fraction / 10_000, text);
    put(at + 11, fraction / 100 % 100, text);
    put(at + 13, fraction % 100, text);
}

fn end_year(year: i64, out: &mut Vec<u8>) {
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

/// Appends a form to be filled in where it stands: a copy would have to wait for the many small writes.
fn template<'o, const N: usize>(form: &[u8; N], out: &'o mut Vec<u8>) -> &'o mut [u8; N] {
    out.extend_from_slice(form);
    out.last_chunk_mut().expect("it was just appended")
}

fn put<const N: usize>(at: usize, number: u32, text: &mut [u8; N]) {
    text[at..at + 2].copy_from_slice(digits::two(number));
}

/// Year, month and day of a date. A date has twenty times the range of a timestamp, so only the day's place in its
/// cycle is converted.
fn civil_date(day: i32) -> (i64, u32, u32) {
    let day = i64::from(day);
    let (year, month, day_of_month) = civil(day.rem_euclid(DAYS_OF_CYCLE));
    (year + YEARS_OF_CYCLE * day.div_euclid(DAYS_OF_CYCLE), month, day_of_month)
}

/// Year, month and day of a day of a timestamp, counted from 2000-01-01. Year 0 is 1 BC.
///
/// Counts years from March, which puts the leap day last. Where a quotient and its remainder are wanted, both come from
/// one multiplication (C. Neri and L. Schneider, "Euclidean affine functions and their application to calendar
/// algorithms", 2022): divisions one after the other were half the cost of a row.
fn civil(day: i64) -> (i64, u32, u32) {
    // A timestamp has 107 million days at most on either side, so that nothing here is negative or overflows.
    let day = (day + EPOCH_DAYS + CYCLES * DAYS_OF_CYCLE) as u32;
    let (century, of_century) = ((4 * day + 3) / 146_097, (4 * day + 3) % 146_097 / 4);
    let product = 2_939_745 * u64::from(4 * of_century + 3);
    let (year_of_century, day_of_year) = ((product >> 32) as u32, (product as u32) / 2_939_745 / 4);
    let product = 2_141 * day_of_year + 197_913;
    let (month, day_of_month) = (product >> 16, (product & 0xffff) / 2_141 + 1);
    let year = i64::from(100 * century + year_of_century) - YEARS_OF_CYCLE * CYCLES;
    // January and February, the months 13 and 14.
    if day_of_year >= 306 { (year + 1, month - 12, day_of_month) } else { (year, month, day_of_month) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::written;
    use chrono::{DateTime, Datelike, NaiveDate, NaiveTime, SecondsFormat, TimeDelta, Utc};
    use proptest::prelude::*;

    const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

    #[test]
    fn edges() {
        for (micros, text) in [
            (0, "2000-01-01T00:00:00.000000Z"),
            (-1, "1999-12-31T23:59:59.999999Z"),
            (i64::MAX, "infinity"),
            (i64::MIN, "-infinity"),
            (59 * MICROS_PER_DAY, "2000-02-29T00:00:00.000000Z"),
            // Year 10000, and the day before year 1.
            (2_921_940 * MICROS_PER_DAY, "10000-01-01T00:00:00.000000Z"),
            (-730_120 * MICROS_PER_DAY, "0001-12-31T00:00:00.000000Z BC"),
            // The first and the last moment that Postgres has (`MIN_TIMESTAMP` and `END_TIMESTAMP` in its sources).
            (-211_813_488_000_000_000, "4714-11-24T00:00:00.000000Z BC"),
            (9_223_371_331_200_000_000 - 1, "294276-12-31T23:59:59.999999Z"),
            // Nothing overflows beyond them.
            (i64::MAX - 1, "294277-01-09T04:00:54.775806Z"),
            (i64::MIN + 1, "290279-12-22T19:59:05.224193Z BC"),
        ] {
            assert_eq!(written(timestamptz, micros), text);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_chrono(micros in -62_135_596_800_000_000i64 - POSTGRES_EPOCH..253_402_300_800_000_000 - POSTGRES_EPOCH) {
            let at: DateTime<Utc> = DateTime::from_timestamp_micros(micros + POSTGRES_EPOCH).unwrap();
            let expected = at.to_rfc3339_opts(SecondsFormat::Micros, true);
            prop_assert_eq!(written(timestamp, micros), expected.trim_end_matches('Z'));
            prop_assert_eq!(written(timestamptz, micros), expected);
            prop_assert_eq!(written(date, micros.div_euclid(MICROS_PER_DAY) as i32), at.format("%Y-%m-%d").to_string());
        }

        #[test]
        fn a_time_agrees_with_chrono(micros in 0..MICROS_PER_DAY) {
            let expected = NaiveTime::MIN + TimeDelta::microseconds(micros);
            prop_assert_eq!(written(time, micros), expected.format("%H:%M:%S%.6f").to_string());
        }

        #[test]
        fn a_date_agrees_with_chrono(day in i32::MIN + 1..i32::MAX) {
            // Chrono has fewer years, but the calendar repeats every 400 years.
            let day_of_cycle = TimeDelta::days(i64::from(day).rem_euclid(DAYS_OF_CYCLE));
            let in_cycle = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap() + day_of_cycle;
            let year = i64::from(in_cycle.year()) + YEARS_OF_CYCLE * i64::from(day).div_euclid(DAYS_OF_CYCLE);
            let (year, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
            prop_assert_eq!(written(date, day), format!("{year:04}-{}{era}", in_cycle.format("%m-%d")));
        }
    }
}
