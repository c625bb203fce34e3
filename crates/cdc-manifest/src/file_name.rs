//! The names of the files of an export.

use pg_rows::encoding::{Compression, Encoding, Format};

/// The largest number of files of an export. Their names have five digits for the part, and the API returns all files
/// in one response.
pub const MOST_FILES: usize = 10_000;

/// Returns the names of an export's files. An only file has the export's name; several files have part numbers in it.
pub fn file_names(name: &str, files: usize) -> impl Iterator<Item = String> {
    (1..=files as u32).map(move |part| if files == 1 { name.to_owned() } else { part_name(name, part) })
}

/// Returns the name of one of several parts, counted from 1. The number of the part precedes the extension.
pub fn part_name(name: &str, part: u32) -> String {
    let stem = stem_of(name);
    format!("{stem}.part-{part:05}{}", &name[stem.len()..])
}

/// Returns the name without its extension, for any encoding. A stem has no dot after its time; a consumer's id in it
/// may contain dots.
pub fn stem_of(name: &str) -> &str {
    let endings =
        Format::ALL.iter().flat_map(|format| Compression::ALL.iter().map(|compression| (*format, *compression)));
    let stems =
        endings.filter_map(|(format, compression)| name.strip_suffix(&Encoding { format, compression }.extension()));
    stems.min_by_key(|stem| stem.len()).unwrap_or(name)
}
