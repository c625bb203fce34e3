//! Rows in Postgres's binary form.
//!
//! A row is a 16-bit count of fields, then each field as a 32-bit length (−1: NULL) and that many bytes. This is the tuple
//! of `COPY … (FORMAT BINARY)` and the body of the protocol's DataRow message (PostgreSQL documentation, "COPY" and "Message
//! Formats"), so one formatter reads both.

/// Bytes that don't hold whole rows. The connection broke, or the service has a defect.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row from Postgres is cut short")]
pub struct CutShort;

/// Room for the fields of a row, kept from one call to the next: rows come one by one, and to allocate it for each takes longer than to
/// read them.
#[derive(Debug, Default)]
pub struct Fields(Vec<Option<&'static [u8]>>);

impl Fields {
    /// The room, empty, for fields that live as long as they do.
    pub fn take<'f>(&mut self) -> Vec<Option<&'f [u8]>> {
        let mut fields = std::mem::take(&mut self.0);
        fields.clear();
        // Of the same size and empty: the allocation stays.
        fields.into_iter().map(|_| None).collect()
    }

    /// Takes the room back.
    pub fn put_back(&mut self, mut fields: Vec<Option<&[u8]>>) {
        fields.clear();
        self.0 = fields.into_iter().map(|_| None).collect();
    }
}

/// Whole rows, one after another, that are still to come.
#[derive(Debug)]
pub struct Rows<'f> {
    rest: &'f [u8],
}

impl<'f> Rows<'f> {
    /// The rows of these bytes.
    pub fn of(rows: &'f [u8]) -> Rows<'f> {
        Rows { rest: rows }
    }

    /// Puts the next row's fields into `fields`, `None` for NULL; false at the end.
    ///
    /// # Errors
    /// If the bytes end inside a row.
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
    fn bytes_give_their_rows() {
        let (mut rows, mut fields) = (Rows::of(TWO_ROWS), Vec::new());
        assert_eq!(rows.next_into(&mut fields), Ok(true));
        assert_eq!(fields, [Some(&b"a"[..]), None]);
        assert_eq!(rows.next_into(&mut fields), Ok(true));
        assert_eq!(fields, [Some(&b""[..])]);
        assert_eq!(rows.next_into(&mut fields), Ok(false));
    }

    #[test]
    fn the_room_for_fields_is_kept() {
        let mut room = Fields::default();
        let mut fields = room.take();
        fields.extend([Some(TWO_ROWS), None]);
        let (at, capacity) = (fields.as_ptr().addr(), fields.capacity());
        room.put_back(fields);
        let again: Vec<Option<&[u8]>> = room.take();
        assert_eq!((again.len(), again.as_ptr().addr(), again.capacity()), (0, at, capacity));
    }

    #[test]
    fn a_cut_row_is_an_error() {
        for end in (1..TWO_ROWS.len()).filter(|end| *end != 11) {
            let (mut rows, mut fields) = (Rows::of(&TWO_ROWS[..end]), Vec::new());
            let last = std::iter::from_fn(|| Some(rows.next_into(&mut fields))).find(|r| *r != Ok(true));
            assert_eq!(last, Some(Err(CutShort)), "cut at {end}");
        }
    }
}
