//! Writes a `numeric` with all its digits, including the zeros of its scale.
//!
//! Its binary form is a count of digits, the weight of the first one, the sign and the scale, 16 bits each, then the
//! digits, each from 0 to 9999 (`numeric_send` in Postgres's sources). Zeros at both ends have no digits there.

use crate::digits;

const POSITIVE: u16 = 0x0000;
const NEGATIVE: u16 = 0x4000;
const NAN: u16 = 0xC000;
const INFINITY: u16 = 0xD000;
const MINUS_INFINITY: u16 = 0xF000;
/// The most digits behind the point.
const MOST_SCALE: u16 = 0x3FFF;
/// The decimal digits in one digit of the binary form.
const PLACES: i32 = 4;

/// The parts of a binary form.
struct Parts<'f> {
    weight: i32,
    sign: u16,
    scale: u16,
    digits: &'f [[u8; 2]],
}

impl Parts<'_> {
    /// Reads a field. Returns `None` if it is not the binary form of a `numeric`.
    fn of(field: &[u8]) -> Option<Parts<'_>> {
        let (header, digits) = field.as_chunks::<2>().0.split_at_checked(4)?;
        let [count, weight, sign, scale] = [0, 1, 2, 3].map(|i| u16::from_be_bytes(header[i]));
        let invalid = |digit: &[u8; 2]| u16::from_be_bytes(*digit) > 9999;
        if field.len() != 8 + 2 * usize::from(count) || scale > MOST_SCALE || digits.iter().any(invalid) {
            return None;
        }
        Some(Parts { weight: i32::from(weight as i16), sign, scale, digits })
    }
}

/// A `numeric` as a number of units of its last place.
#[cfg(any(test, feature = "parquet"))]
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unscaled {
    /// The number of units.
    Units(i128),
    /// NaN or an infinity.
    NotANumber,
}

/// Returns a `numeric` in units of `scale` places behind the point: 1.50 with a scale of 2 is 150.
///
/// Returns `None` if the field is not the binary form of a `numeric`, or has more digits than an `i128` or the scale
/// can hold.
#[cfg(any(test, feature = "parquet"))]
pub(crate) fn unscaled(field: &[u8], scale: u8) -> Option<Unscaled> {
    let Parts { weight, sign, digits, .. } = Parts::of(field)?;
    match sign {
        POSITIVE | NEGATIVE => {}
        NAN | INFINITY | MINUS_INFINITY => return Some(Unscaled::NotANumber),
        _ => return None,
    }
    let Some((last, others)) = digits.split_last() else { return Some(Unscaled::Units(0)) };
    let digit = |digit: &[u8; 2]| i128::from(u16::from_be_bytes(*digit));
    let others = others.iter().try_fold(0_i128, |sum, next| sum.checked_mul(10_000)?.checked_add(digit(next)));
    let ten_to = |exponent: u32| 10_i128.checked_pow(exponent);
    // The places behind the point that the last digit ends with, which may be zeros beyond the scale.
    let places = PLACES * (i32::try_from(digits.len()).ok()? - 1 - weight);
    let beyond = u32::try_from((places - i32::from(scale)).max(0)).ok()?;
    if beyond >= PLACES.unsigned_abs() || digit(last) % ten_to(beyond)? != 0 {
        return None;
    }
    let units = others?
        .checked_mul(ten_to(PLACES.unsigned_abs() - beyond)?)?
        .checked_add(digit(last) / ten_to(beyond)?)?
        .checked_mul(ten_to(u32::try_from((i32::from(scale) - places).max(0)).ok()?)?)?;
    Some(Unscaled::Units(if sign == NEGATIVE { -units } else { units }))
}

/// Appends the text of a `numeric`; `None`: the field isn't the binary form of one.
pub(crate) fn text(field: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let Parts { weight, sign, scale, digits } = Parts::of(field)?;
    out.extend_from_slice(match sign {
        POSITIVE => b"",
        NEGATIVE => b"-",
        NAN => b"NaN",
        INFINITY => b"Infinity",
        MINUS_INFINITY => b"-Infinity",
        _ => return None,
    });
    if !matches!(sign, POSITIVE | NEGATIVE) {
        return Some(());
    }
    // Zeros at both ends have no digit in the binary form.
    let digit = |at: i32| {
        let digit = usize::try_from(at).ok().and_then(|at| digits.get(at));
        digit.map_or(0, |digit| u32::from(u16::from_be_bytes(*digit)))
    };
    let mut whole = (0..=weight).map(digit).skip_while(|digit| *digit == 0);
    out.extend_from_slice(itoa::Buffer::new().format(whole.next().unwrap_or(0)).as_bytes());
    whole.for_each(|digit| four(digit, out));
    if scale > 0 {
        out.push(b'.');
        let end = out.len() + usize::from(scale);
        let fraction = weight + 1..=weight + (i32::from(scale) + PLACES - 1) / PLACES;
        fraction.map(digit).for_each(|digit| four(digit, out));
        out.truncate(end);
    }
    Some(())
}

fn four(digit: u32, out: &mut Vec<u8>) {
    out.extend_from_slice(digits::two(digit / 100));
    out.extend_from_slice(digits::two(digit % 100));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(field: &[u8]) -> Option<String> {
        let mut out = Vec::new();
        text(field, &mut out)?;
        Some(String::from_utf8(out).unwrap())
    }

    fn binary(weight: i16, sign: u16, scale: u16, digits: &[u16]) -> Vec<u8> {
        let header = [digits.len() as u16, weight as u16, sign, scale];
        header.iter().chain(digits).flat_map(|number| number.to_be_bytes()).collect()
    }

    /// The binary form of a number in digits, by its definition.
    fn parsed(number: &str) -> Vec<u8> {
        let (sign, number) = number.strip_prefix('-').map_or((POSITIVE, number), |number| (NEGATIVE, number));
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole = format!("{}{whole}", "0".repeat(whole.len().wrapping_neg() % 4));
        let all = format!("{whole}{fraction}{}", "0".repeat(fraction.len().wrapping_neg() % 4));
        let digits: Vec<u16> =
            all.as_bytes().chunks(4).map(|four| std::str::from_utf8(four).unwrap().parse().unwrap()).collect();
        let Some(first) = digits.iter().position(|digit| *digit > 0) else {
            return binary(0, POSITIVE, fraction.len() as u16, &[]);
        };
        let last = digits.iter().rposition(|digit| *digit > 0).unwrap();
        let weight = whole.len() as i16 / 4 - 1 - first as i16;
        binary(weight, sign, fraction.len() as u16, &digits[first..=last])
    }

    #[test]
    fn golden_units() {
        for (field, scale, units) in [
            (parsed("0"), 2, Some(0)),
            (parsed("0.00"), 0, Some(0)),
            (parsed("1.5"), 1, Some(15)),
            (parsed("-7.50"), 2, Some(-750)),
            (parsed("7.5"), 3, Some(7_500)),
            (parsed("10000000"), 0, Some(10_000_000)),
            (parsed("0.0001"), 38, Some(10_i128.pow(34))),
            (parsed(&"9".repeat(38)), 0, Some(10_i128.pow(38) - 1)),
            (parsed(&format!("-0.{}", "9".repeat(38))), 38, Some(1 - 10_i128.pow(38))),
            // More places than the scale has, or digits than there is room for.
            (parsed("1.25"), 1, None),
            (parsed("0.00001"), 4, None),
            (parsed(&"9".repeat(40)), 0, None),
            (parsed("10"), 38, None),
        ] {
            assert_eq!(unscaled(&field, scale), units.map(Unscaled::Units), "{field:?}");
        }
        for sign in [NAN, INFINITY, MINUS_INFINITY] {
            assert_eq!(unscaled(&binary(0, sign, 0, &[]), 2), Some(Unscaled::NotANumber));
        }
        assert_eq!(unscaled(&binary(0, 1, 0, &[]), 2), None);
    }

    #[test]
    fn a_field_that_is_no_numeric_is_none() {
        for field in [
            vec![],
            vec![0; 7],
            vec![0; 9],
            vec![0; 10],
            binary(0, 0x8000, 0, &[1]),
            binary(0, POSITIVE, 0x4000, &[1]),
            binary(0, POSITIVE, 0, &[10_000]),
        ] {
            assert_eq!(written(&field), None, "{field:?}");
        }
    }

    proptest! {
        #[test]
        fn units_are_the_digits_of_the_text(units in -(10_i128.pow(38) - 1)..10_i128.pow(38), scale in 0_u8..=38) {
            let digits = format!("{:0>39}", units.unsigned_abs());
            let (whole, fraction) = digits.split_at(39 - usize::from(scale));
            let point = if scale > 0 { "." } else { "" };
            let number = format!("{}{whole}{point}{fraction}", if units < 0 { "-" } else { "" });
            prop_assert_eq!(unscaled(&parsed(&number), scale), Some(Unscaled::Units(units)));
        }

        #[test]
        fn the_digits_come_back(
            number in "-?(0|[1-9][0-9]{0,9}0{0,20}[0-9]{0,9})(\\.0{0,20}[0-9]{1,20}0{0,9})?",
        ) {
            let zero = number.bytes().all(|byte| b"-0.".contains(&byte));
            prop_assert_eq!(written(&parsed(&number)).unwrap(), if zero { number.replace('-', "") } else { number });
        }

        #[test]
        fn no_numbers_are_a_panic(
            weight: i16,
            sign in prop::sample::select(&[POSITIVE, NEGATIVE][..]),
            scale: u16,
            digits in prop::collection::vec(0..10_001u16, 0..20),
        ) {
            if let Some(text) = written(&binary(weight, sign, scale, &digits)) {
                prop_assert!(text.len() <= 1 + 131_072 + 1 + 16_383);
            }
        }
    }
}
