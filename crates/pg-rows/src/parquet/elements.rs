//! Reads the elements of an array.
//!
//! Its binary form is the number of dimensions, a flag for NULLs and the elements' type, 32 bits each. Then each
//! dimension has its length and its first index. The elements follow, each in the form of a field of a row
//! (`array_send` in Postgres's sources). An array without elements has no dimension.

use crate::column::Column;
use crate::row::BinaryRows;
use crate::{Error, value};

pub(super) struct Elements<'c, 'f> {
    column: &'c Column,
    left: u32,
    rest: BinaryRows<'f>,
}

impl<'c, 'f> Elements<'c, 'f> {
    /// Reads an array. Every column of arrays may hold some that are no list.
    ///
    /// # Errors
    /// [`Error::NotInFormat`] if the array has several dimensions, or if its first index is not 1.
    pub(super) fn of(column: &'c Column, field: &'f [u8]) -> Result<Elements<'c, 'f>, Error> {
        let no_list = |value| Error::NotInFormat { column: column.name.to_string(), value };
        let wrong_type = || value::wrong_type(column);
        let (numbers, rest) = field.split_first_chunk::<12>().ok_or_else(wrong_type)?;
        let elements = |count: i32, rest| {
            let left = count.try_into().map_err(|_| wrong_type())?;
            Ok(Elements { column, left, rest: BinaryRows::new(rest) })
        };
        match number(numbers, 0) {
            0 => elements(0, rest),
            1 => {
                let (bounds, rest) = rest.split_first_chunk::<8>().ok_or_else(wrong_type)?;
                match number(bounds, 1) {
                    1 => elements(number(bounds, 0), rest),
                    first => Err(no_list(format!("an array whose first index is {first}"))),
                }
            }
            dimensions @ 2.. => Err(no_list(format!("an array of {dimensions} dimensions"))),
            _ => Err(wrong_type()),
        }
    }
}

impl<'f> Iterator for Elements<'_, 'f> {
    type Item = Result<Option<&'f [u8]>, Error>;

    fn next(&mut self) -> Option<Result<Option<&'f [u8]>, Error>> {
        let wrong_type = || value::wrong_type(self.column);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(self.rest.next_field().map_err(|_| wrong_type()))
            }
            None if self.rest.is_empty() => None,
            None => Some(Err(wrong_type())),
        }
    }
}

/// Returns one of several numbers of 32 bits.
fn number(bytes: &[u8], index: usize) -> i32 {
    bytes.as_chunks::<4>().0.get(index).map_or(0, |number| i32::from_be_bytes(*number))
}
