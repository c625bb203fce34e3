//! Rows on their way from the source to the encoder: fields in Postgres's binary form, many rows to a frame.
//!
//! A row is a 16-bit count of fields, then each field as a 32-bit length (−1: NULL) and that many bytes. This is the tuple
//! of `COPY … (FORMAT BINARY)` and the body of the protocol's DataRow message (PostgreSQL documentation, "COPY" and "Message
//! Formats"), so that both readers of `source` feed one formatter.

use bytes::Bytes;

/// A frame that doesn't hold whole rows. The connection broke, or the service has a defect.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row from Postgres is cut short")]
pub struct CutShort;

/// Whole rows, one after another.
#[derive(Clone, Debug)]
pub struct Frame(pub Bytes);

impl Frame {
    /// Walks over the rows.
    pub fn rows(&self) -> Rows<'_> {
        Rows { rest: &self.0 }
    }
}

/// The rows of a frame that are still to come.
#[derive(Debug)]
pub struct Rows<'f> {
    rest: &'f [u8],
}

impl<'f> Rows<'f> {
    /// Puts the next row's fields into `fields`, `None` for NULL; false at the end.
    ///
    /// # Errors
    /// If the frame ends inside a row.
    pub fn next_into(&mut self, fields: &mut Vec<Option<&'f [u8]>>) -> Result<bool, CutShort> {
        fields.clear();
        if self.rest.is_empty() {
            return Ok(false);
        }
        let count = i16::from_be_bytes(self.take_array()?);
        for _ in 0..count {
            let length = i32::from_be_bytes(self.take_array()?);
            fields.push(match usize::try_from(length) {
                Ok(length) => Some(self.take(length)?),
                Err(_) => None,
            });
        }
        Ok(true)
    }

    fn take(&mut self, length: usize) -> Result<&'f [u8], CutShort> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(CutShort)?;
        self.rest = rest;
        Ok(taken)
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N], CutShort> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(CutShort)?;
        self.rest = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_ROWS: &[u8] = b"\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01\0\0\0\0";

    #[test]
    fn a_frame_gives_its_rows() {
        let frame = Frame(Bytes::from_static(TWO_ROWS));
        let (mut rows, mut fields) = (frame.rows(), Vec::new());
        assert_eq!(rows.next_into(&mut fields), Ok(true));
        assert_eq!(fields, [Some(&b"a"[..]), None]);
        assert_eq!(rows.next_into(&mut fields), Ok(true));
        assert_eq!(fields, [Some(&b""[..])]);
        assert_eq!(rows.next_into(&mut fields), Ok(false));
    }

    #[test]
    fn a_cut_row_is_an_error() {
        for end in (1..TWO_ROWS.len()).filter(|end| *end != 11) {
            let frame = Frame(Bytes::from_static(&TWO_ROWS[..end]));
            let (mut rows, mut fields) = (frame.rows(), Vec::new());
            let last = std::iter::from_fn(|| Some(rows.next_into(&mut fields))).find(|r| *r != Ok(true));
            assert_eq!(last, Some(Err(CutShort)), "cut at {end}");
        }
    }
}
