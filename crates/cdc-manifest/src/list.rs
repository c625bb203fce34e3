//! Deserializes the lists of a manifest and rejects one that is longer than a manifest's list can be.
//!
//! An element can take three bytes of JSON and at least twenty-four bytes of memory. Anyone who can write to a
//! destination could otherwise exhaust a reader's memory with a long list.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use crate::file_name::MOST_FILES;

/// Deserializes a list of at most [`MOST_FILES`] elements.
pub(super) fn read<'de, D: Deserializer<'de>, T: Deserialize<'de>>(list: D) -> Result<Vec<T>, D::Error> {
    list.deserialize_seq(List(PhantomData))
}

/// Deserializes a list as [`read`] does, which may also be null.
pub(super) fn read_optional<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    list: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Ok(Option::<Bounded<T>>::deserialize(list)?.map(|Bounded(list)| list))
}

#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Bounded<T>(#[serde(deserialize_with = "read")] Vec<T>);

struct List<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            // The limit for files is the largest one: a table has fewer columns.
            if list.len() == MOST_FILES {
                return Err(A::Error::custom(format_args!("a list of more than {MOST_FILES}")));
            }
            list.push(element);
        }
        Ok(list)
    }
}
