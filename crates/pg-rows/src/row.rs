//! Reads rows in Postgres's binary form.
//!
//! A row is a 16-bit count of fields, then each field as a 32-bit length (−1: NULL) and that many bytes. This is both
//! the tuple of `COPY … (FORMAT BINARY)` and the body of the protocol's DataRow message (PostgreSQL documentation,
//! "COPY" and "Message Formats").

/// The bytes end inside a row: the connection broke, or the caller has a defect.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row from Postgres is cut short")]
pub struct CutShort;

/// A vector for the fields of a row, kept from one batch of rows to the next. An allocation for each row takes longer
/// than the row.
#[derive(Debug, Default)]
pub struct Fields(Vec<Option<&'static [u8]>>);

impl Fields {
    /// Takes the vector, empty, for fields of any lifetime.
    pub fn take<'f>(&mut self) -> Vec<Option<&'f [u8]>> {
        // The element's size is the same and there are none, so the allocation is reused.
        std::mem::take(&mut self.0).into_iter().map(|_| None).collect()
    }

    /// Puts the vector back, for the next call of [`Fields::take`].
    pub fn put_back(&mut self, mut fields: Vec<Option<&[u8]>>) {
        fields.clear();
        self.0 = fields.into_iter().map(|_| None).collect();
    }
}

/// Reads whole rows, one after another.
///
/// ```
/// use pg_rows::row::BinaryRows;
///
/// let mut rows = BinaryRows::new(b"\0\x02\0\0\0\x03Ada\xff\xff\xff\xff");
/// let mut fields = Vec::new();
/// assert!(rows.next_into(&mut fields)?);
/// assert_eq!(fields, [Some(&b"Ada"[..]), None]);
/// assert!(!rows.next_into(&mut fields)?);
/// # Ok::<(), pg_rows::row::CutShort>(())
/// ```
#[derive(Debug)]
pub struct BinaryRows<'f> {
    rest: &'f [u8],
}

impl<'f> BinaryRows<'f> {
    /// Begins at the first of these bytes.
    pub fn new(rows: &'f [u8]) -> BinaryRows<'f> {
        BinaryRows { rest: rows }
    }

    /// Puts the next row's fields into `fields`, `None` for NULL. Returns false at the end.
    ///
    /// # Errors
    /// [`CutShort`] if the bytes end inside a row.
    pub fn next_into(&mut self, fields: &mut Vec<Option<&'f [u8]>>) -> Result<bool, CutShort> {
        fields.clear();
        if self.rest.is_empty() {
            return Ok(false);
        }
        let count = i16::from_be_bytes(self.take_array()?);
        for _ in 0..count {
            fields.push(self.next_field()?);
        }
        Ok(true)
    }

    /// Returns the next field, `None` for NULL. The elements of an array have the form of fields too.
    #[inline]
    pub(crate) fn next_field(&mut self) -> Result<Option<&'f [u8]>, CutShort> {
        let length = i32::from_be_bytes(self.take_array()?);
        usize::try_from(length).ok().map(|length| self.take(length)).transpose()
    }

    /// Returns true at the end.
    #[cfg(feature = "parquet")]
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
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
            let (mut rows, mut fields) = (BinaryRows::new(&TWO_ROWS[..end]), Vec::new());
            let last = std::iter::from_fn(|| Some(rows.next_into(&mut fields))).find(|r| *r != Ok(true));
            assert_eq!(last, Some(Err(CutShort)), "cut at {end}");
        }
    }
}
