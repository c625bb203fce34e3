//! Arguments that are one of a type's words.

use std::str::FromStr;

use cdc_export::job::words::UnknownWord;
use clap::builder::{PossibleValuesParser, TypedValueParser};

/// One of a type's words, which clap lists.
pub(super) fn words<T>(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse())
}
