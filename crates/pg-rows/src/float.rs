//! Writes floating-point numbers as Postgres does: the fewest digits that read back as the same number, and an exponent
//! if the number is very large or very small (`1e+20`, `1.5e-07`).
//!
//! The digits are those of the `ryu` crate, which has the algorithm of Postgres. The standard library writes hundreds
//! of zeros in place of an exponent. If the fewest digits lie exactly between two numbers (1e23), Postgres itself
//! writes more digits. A reader that rounds correctly, as Postgres does, gets the right number from the fewer digits
//! too.

/// From this power of ten on Postgres writes an exponent (`DBL_DIG` and `FLT_DIG` in its sources).
const FLOAT8_EXPONENT: i32 = 15;
const FLOAT4_EXPONENT: i32 = 6;
/// Below this power of ten Postgres writes an exponent too.
const LEAST_PLAIN: i32 = -4;
/// The most bytes that `ryu` writes.
const MOST_DIGITS: usize = 24;

pub(crate) fn float8(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        finite(ryu::Buffer::new().format_finite(number), FLOAT8_EXPONENT, out);
    } else {
        out.extend_from_slice(name(number));
    }
}

pub(crate) fn float4(number: f32, out: &mut Vec<u8>) {
    if number.is_finite() {
        finite(ryu::Buffer::new().format_finite(number), FLOAT4_EXPONENT, out);
    } else {
        out.extend_from_slice(name(number.into()));
    }
}

fn name(number: f64) -> &'static [u8] {
    match number {
        f64::INFINITY => b"Infinity",
        f64::NEG_INFINITY => b"-Infinity",
        _ => b"NaN",
    }
}

/// Appends a number from the digits of `ryu`, which puts the point and the exponent elsewhere.
fn finite(text: &str, exponent_from: i32, out: &mut Vec<u8>) {
    let text = match text.strip_prefix('-') {
        Some(text) => {
            out.push(b'-');
            text
        }
        None => text,
    };
    let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent: i32 = exponent.parse().expect("ryu writes an exponent in digits");

    let (mut digits, count) = ([0; MOST_DIGITS], whole.len() + fraction.len());
    digits[..whole.len()].copy_from_slice(whole.as_bytes());
    digits[whole.len()..count].copy_from_slice(fraction.as_bytes());
    let is_not_zero = |digit: &u8| *digit != b'0';
    let Some(first) = digits[..count].iter().position(is_not_zero) else { return out.push(b'0') };
    let last = digits[..count].iter().rposition(is_not_zero).unwrap_or(first);
    // That of the first digit.
    let power = exponent + whole.len() as i32 - 1 - first as i32;
    if (LEAST_PLAIN..exponent_from).contains(&power) {
        plain(&digits[first..=last], power, out);
    } else {
        scientific(&digits[first..=last], power, out);
    }
}

fn plain(digits: &[u8], power: i32, out: &mut Vec<u8>) {
    let zeros = |count: usize, out: &mut Vec<u8>| out.resize(out.len() + count, b'0');
    let Ok(power) = usize::try_from(power) else {
        out.extend_from_slice(b"0.");
        zeros((-1 - power) as usize, out);
        return out.extend_from_slice(digits);
    };
    match digits.split_at_checked(power + 1) {
        Some((whole, fraction)) => {
            out.extend_from_slice(whole);
            if !fraction.is_empty() {
                out.push(b'.');
                out.extend_from_slice(fraction);
            }
        }
        None => {
            out.extend_from_slice(digits);
            zeros(power + 1 - digits.len(), out);
        }
    }
}

fn scientific(digits: &[u8], power: i32, out: &mut Vec<u8>) {
    let (first, rest) = digits.split_at(1);
    out.extend_from_slice(first);
    if !rest.is_empty() {
        out.push(b'.');
        out.extend_from_slice(rest);
    }
    out.extend_from_slice(if power < 0 { b"e-" } else { b"e+" });
    let power = power.unsigned_abs();
    if power < 10 {
        out.push(b'0');
    }
    out.extend_from_slice(itoa::Buffer::new().format(power).as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::written;
    use proptest::prelude::*;

    #[test]
    fn the_texts_are_those_of_postgres() {
        for (number, text) in [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (-1.5, "-1.5"),
            (0.1, "0.1"),
            (0.0001, "0.0001"),
            (0.000_012_5, "1.25e-05"),
            (100.0, "100"),
            (123_456_789_012_345.0, "123456789012345"),
            (123_456_789_012_345.6, "123456789012345.6"),
            (100_000_000_000_000.0, "100000000000000"),
            (1e15, "1e+15"),
            (1.2e20, "1.2e+20"),
            (1e-100, "1e-100"),
            (f64::MAX, "1.7976931348623157e+308"),
            (f64::MIN_POSITIVE, "2.2250738585072014e-308"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(written(float8, number), text);
        }
        for (number, text) in [
            (0.1, "0.1"),
            (123_456.0, "123456"),
            (1_000_000.0, "1e+06"),
            (0.000_01, "1e-05"),
            (f32::MAX, "3.4028235e+38"),
            (1e-45, "1e-45"),
            (f32::NEG_INFINITY, "-Infinity"),
            (f32::NAN, "NaN"),
        ] {
            assert_eq!(written(float4, number), text);
        }
    }

    proptest! {
        #[test]
        fn a_reader_gets_the_same_number(bits: u64) {
            let number = f64::from_bits(bits);
            let read: f64 = written(float8, number).parse().unwrap();
            prop_assert!(read.to_bits() == bits || number.is_nan() && read.is_nan());
            let number = f32::from_bits(bits as u32);
            let read: f32 = written(float4, number).parse().unwrap();
            prop_assert!(read.to_bits() == bits as u32 || number.is_nan() && read.is_nan());
        }

        /// Those of random bits nearly all have an exponent.
        #[test]
        fn a_reader_gets_the_same_number_of_few_digits(digits: i64, shift in 0..19, places in 0..20) {
            let number = (digits / 10i64.pow(shift as u32)) as f64 / 10f64.powi(places);
            prop_assert_eq!(written(float8, number).parse::<f64>().unwrap(), number);
            let number = number as f32;
            prop_assert_eq!(written(float4, number).parse::<f32>().unwrap(), number);
        }
    }
}
