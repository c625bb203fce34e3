//! Looks digits up in pairs, because a formatter spends most of its time dividing by ten.

/// Returns the two decimal digits of a number below 100.
pub(crate) fn two(number: u32) -> &'static [u8; 2] {
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

/// Returns the two hexadecimal digits of a byte, in lower case.
pub(crate) fn hex(byte: u8) -> &'static [u8; 2] {
    const PAIRS: [[u8; 2]; 256] = {
        let digits = b"0123456789abcdef";
        let mut pairs = [[0; 2]; 256];
        let mut n = 0;
        while n < 256 {
            pairs[n] = [digits[n >> 4], digits[n & 15]];
            n += 1;
        }
        pairs
    };
    &PAIRS[usize::from(byte)]
}
