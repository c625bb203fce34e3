//! `timestamptz` as RFC 3339, UTC, microseconds: `2026-02-26T04:30:00.123456Z`.
//!
//! A general formatter costs several times the rest of a row, so the digits are written here. What RFC 3339 has no form for
//! is written as Postgres reads it back: `infinity`, five-digit years, and ` BC` behind the years before 1.

const MICROS_PER_DAY: i64 = 86_400_000_000;
/// Days from 0000-03-01, where the calendar's cycle begins, to 2000-01-01, Postgres's epoch.
const EPOCH_DAYS: i64 = 730_425;
/// The calendar repeats every 400 years.
const DAYS_OF_CYCLE: i64 = 146_097;
/// As many as lie before the first day there can be.
const CYCLES: i64 = 1_000;
const TEMPLATE: &[u8; 27] = b"0000-00-00T00:00:00.000000Z";

/// Appends a time given in microseconds since 2000-01-01 UTC, Postgres's binary form.
pub(crate) fn rfc3339(micros: i64, out: &mut Vec<u8>) {
    match micros {
        i64::MAX => return out.extend_from_slice(b"infinity"),
        i64::MIN => return out.extend_from_slice(b"-infinity"),
        _ => {}
    }
    let (year, month, day) = civil(micros.div_euclid(MICROS_PER_DAY));
    let time = micros.rem_euclid(MICROS_PER_DAY) as u64;
    let (seconds, fraction) = ((time / 1_000_000) as u32, (time % 1_000_000) as u32);
    let (minutes, hours) = (seconds / 60, seconds / 3600);

    let shown_year = if year > 0 { year } else { 1 - year } as u64;
    if shown_year > 9999 {
        out.extend_from_slice(itoa::Buffer::new().format(shown_year / 10_000).as_bytes());
    }
    let last_four = (shown_year % 10_000) as u32;
    // Filled in where it stands: a copy would have to wait for the many small writes.
    out.extend_from_slice(TEMPLATE);
    let text = out.last_chunk_mut::<{ TEMPLATE.len() }>().expect("it was just appended");
    let mut put = |at: usize, number: u32| text[at..at + 2].copy_from_slice(two_digits(number));
    put(0, last_four / 100);
    put(2, last_four % 100);
    put(5, month);
    put(8, day);
    put(11, hours);
    put(14, minutes % 60);
    put(17, seconds % 60);
    put(20, fraction / 10_000);
    put(22, fraction / 100 % 100);
    put(24, fraction % 100);
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

/// Year, month and day of a day counted from 2000-01-01. Year 0 is 1 BC.
///
/// Counts years from March, which puts the leap day last. Where a quotient and its remainder are wanted, both come from one
/// multiplication (C. Neri and L. Schneider, "Euclidean affine functions and their application to calendar algorithms", 2022):
/// divisions one after the other were half the cost of a row.
fn civil(day: i64) -> (i64, u32, u32) {
    // A `timestamptz` has 107 million days at most on either side, so that nothing here is negative or overflows.
    let day = (day + EPOCH_DAYS + CYCLES * DAYS_OF_CYCLE) as u32;
    let (century, of_century) = ((4 * day + 3) / 146_097, (4 * day + 3) % 146_097 / 4);
    let product = 2_939_745 * u64::from(4 * of_century + 3);
    let (year_of_century, day_of_year) = ((product >> 32) as u32, (product as u32) / 2_939_745 / 4);
    let product = 2_141 * day_of_year + 197_913;
    let (month, day_of_month) = (product >> 16, (product & 0xffff) / 2_141 + 1);
    let year = i64::from(100 * century + year_of_century) - 400 * CYCLES;
    // January and February, the months 13 and 14.
    if day_of_year >= 306 { (year + 1, month - 12, day_of_month) } else { (year, month, day_of_month) }
}

/// A number below 100 in two digits.
fn two_digits(number: u32) -> &'static [u8; 2] {
    const PAIRS: [[u8; 2]; 100] = {
        let mut pairs = [[0; 2]; 100];
        let mut n = 0;
        while n < 100 {
            pairs[n] = [b'0' + n as u8 / 10, b'0' + n as u8 % 10];
            n += 1;
        }
        pairs
    };
    &PAIRS[number as usize]
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
        // The first and the last moment that Postgres has (`MIN_TIMESTAMP` and `END_TIMESTAMP` in its sources).
        assert_eq!(written(-211_813_488_000_000_000), "4714-11-24T00:00:00.000000Z BC");
        assert_eq!(written(9_223_371_331_200_000_000 - 1), "294276-12-31T23:59:59.999999Z");
        // Nothing overflows beyond them.
        assert_eq!(written(i64::MAX - 1), "294277-01-09T04:00:54.775806Z");
        assert_eq!(written(i64::MIN + 1), "290279-12-22T19:59:05.224193Z BC");
    }

    proptest! {
        #[test]
        fn agrees_with_chrono(micros in -62_135_596_800_000_000i64 - POSTGRES_EPOCH..253_402_300_800_000_000 - POSTGRES_EPOCH) {
            let time: DateTime<Utc> = DateTime::from_timestamp_micros(micros + POSTGRES_EPOCH).unwrap();
            prop_assert_eq!(written(micros), time.to_rfc3339_opts(SecondsFormat::Micros, true));
        }
    }
}
