//! Arguments whose values are the words of a type.

use std::str::FromStr;

use crate::job::words::UnknownWord;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// A parser of a type's words, which clap lists in its help.
pub(super) fn words<T>(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse())
}
