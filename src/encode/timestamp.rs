//! `timestamptz` as RFC 3339, UTC, microseconds: `2026-02-26T04:30:00.123456Z`.
//!
//! A general formatter costs several times the rest of a row, so the digits are written here. What RFC 3339 has no form for
//! is written as Postgres reads it back: `infinity`, five-digit years, and ` BC` behind the years before 1.

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01, where the calendar's cycle begins, to 2000-01-01, Postgres's epoch.
const EPOCH_DAYS: i64 = 730_425;

/// Appends a time given in microseconds since 2000-01-01 UTC, Postgres's binary form.
pub(crate) fn rfc3339(micros: i64, out: &mut Vec<u8>) {
    match micros {
        i64::MAX => return out.extend_from_slice(b"infinity"),
        i64::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let (year, month, day) = civil(micros.div_euclid(MICROS_PER_DAY));
    let time = micros.rem_euclid(MICROS_PER_DAY) as u64;
    let (seconds, fraction) = (time / 1_000_000, time % 1_000_000);

    let shown_year = if year > 0 { year } else { 1 - year } as u64;
    if shown_year > 9999 {
        out.extend_from_slice(itoa::Buffer::new().format(shown_year).as_bytes());
    } else {
        digits::<4>(shown_year, out);
    }
    let mut part = |mark: u8, value: u64| {
        out.push(mark);
        digits::<2>(value, out);
    };
    part(b'-', month);
    part(b'-', day);
    part(b'T', seconds / 3600);
    part(b':', seconds / 60 % 60);
    part(b':', seconds % 60);
    out.push(b'.');
    digits::<6>(fraction, out);
    out.push(b'Z');
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

/// Year, month and day of a day counted from 2000-01-01. Year 0 is 1 BC.
///
/// Counts years from March, which puts the leap day last: 400 years are 146,097 days, and the months from March on repeat
/// the lengths 31 30 31 30 31, which `153 days in 5 months` hits with integer division.
fn civil(day: i64) -> (i64, u64, u64) {
    let day = day + EPOCH_DAYS;
    let era = day.div_euclid(146_097);
    let of_era = day.rem_euclid(146_097) as u64;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era as i64 + i64::from(month <= 2), month, day_of_month)
}

fn digits<const N: usize>(mut value: u64, out: &mut Vec<u8>) {
    let mut text = [b'0'; N];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, SecondsFormat, Utc};
    use proptest::prelude::*;

    const POSTGRES_EPOCH: i64 = 946_684_800_000_000;

    fn written(micros: i64) -> String {
        let mut out = Vec::new();
        rfc3339(micros, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn edges() {
        assert_eq!(written(0), "2000-01-01T00:00:00.000000Z");
        assert_eq!(written(-1), "1999-12-31T23:59:59.999999Z");
        assert_eq!(written(i64::MAX), "infinity");
        assert_eq!(written(i64::MIN), "-infinity");
        assert_eq!(written(59 * MICROS_PER_DAY), "2000-02-29T00:00:00.000000Z");
        // Year 10000, and the day before year 1.
        assert_eq!(written(2_921_940 * MICROS_PER_DAY), "10000-01-01T00:00:00.000000Z");
        assert_eq!(written(-730_120 * MICROS_PER_DAY), "0001-12-31T00:00:00.000000Z BC");
    }

    proptest! {
        #[test]
        fn agrees_with_chrono(micros in -62_135_596_800_000_000i64 - POSTGRES_EPOCH..253_402_300_800_000_000 - POSTGRES_EPOCH) {
            let time: DateTime<Utc> = DateTime::from_timestamp_micros(micros + POSTGRES_EPOCH).unwrap();
            prop_assert_eq!(written(micros), time.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
    }
}
