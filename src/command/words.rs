//! Parsers of arguments: ids, pauses, and the words of an enum.

use std::str::FromStr;
use std::time::Duration;

use crate::duration;
use cdc_manifest::{JobId, is_dataset_name};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pg_rows::encoding::{Compression, Format};
use pg_rows::words::UnknownWord;
use uuid::Uuid;

pub(super) fn job_id(text: &str) -> Result<JobId, &'static str> {
    let id: Result<Uuid, _> = text.parse();
    id.map(JobId::from).map_err(|_| "not the id of an export: `GET /exports` lists the ids")
}

pub(super) fn dataset_name(text: &str) -> Result<String, String> {
    let why = || "a dataset's name has 1 to 63 of a-z, 0-9, _ and -, and begins with a letter".to_owned();
    is_dataset_name(text).then(|| text.to_owned()).ok_or_else(why)
}

pub(super) fn pause(text: &str) -> Result<Duration, &'static str> {
    let pause = duration::parse(text).filter(|pause| *pause >= Duration::from_millis(100));
    pause.ok_or("not a duration of at least 100ms, such as 1s, 5m or 1h")
}

/// Returns a parser of the words of a type. clap lists them in the help.
pub(super) fn words<T>(all: impl Iterator<Item = &'static str>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = UnknownWord> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(all).try_map(|word| word.parse())
}

/// Returns the compressions of each format, for a help text.
pub(super) fn compressions() -> String {
    let mut formats_by_compressions = Vec::<(&[Compression], String)>::new();
    for format in Format::ALL {
        let compressions = format.spec().compressions;
        match formats_by_compressions.iter_mut().find(|(known, _)| *known == compressions) {
            Some((_, formats)) => *formats += &format!(" and {format}"),
            None => formats_by_compressions.push((compressions, format.to_string())),
        }
    }
    let texts = formats_by_compressions.iter().map(|(compressions, formats)| {
        let words: Vec<_> = compressions.iter().map(|compression| compression.as_str()).collect();
        let (last, others) = words.split_last().expect("each format has a compression");
        format!("{} or {last} of {formats}", others.join(", "))
    });
    texts.collect::<Vec<_>>().join("; ")
}
