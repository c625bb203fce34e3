//! The lists of a manifest, as they are read: none is longer than a manifest's can be. An element of three bytes of
//! JSON has twenty-four and more in memory, and whoever may write to a place may put any list there.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

use crate::file::MOST_FILES;

/// Reads a list.
pub(super) fn read<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Vec<T>, D::Error> {
    list.deserialize_seq(List(PhantomData))
}

struct List<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            // Columns and keys are fewer.
            if list.len() == MOST_FILES {
                return Err(A::Error::custom(format_args!("a list of more than {MOST_FILES}")));
            }
            list.push(element);
        }
        Ok(list)
    }
}
