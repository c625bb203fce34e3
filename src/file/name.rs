//! How the file of an export is called: a stem that says what it holds, a number where that stem is taken, an
//! extension.

use chrono::{DateTime, Utc};

use crate::dataset::USERS;
#[cfg(feature = "buckets")]
use crate::file::hidden::HiddenFile;
use crate::job::{ConsumerId, Request};
use pg_rows::encoding::{Compression, Encoding, Format};

/// The name up to the number and the extension, for a request made at `now`:
/// `{exportType}_{consumer}_{YYYYMMDDTHHMMSSZ}`, ad hoc `export_{YYYYMMDDTHHMMSSZ}`, with a dataset other than `users`
/// behind the first word.
///
/// It always ends with the time, so that a `-2` behind it can't be part of another request's name.
pub fn stem(request: &Request, now: DateTime<Utc>) -> String {
    let time = now.format("%Y%m%dT%H%M%SZ");
    let dataset = if request.dataset == USERS { String::new() } else { format!("_{}", request.dataset) };
    match &request.consumer {
        Some(consumer) => {
            // Some file systems and shells treat these two specially.
            let consumer = consumer.as_str().replace([':', '@'], "_");
            format!("{}{dataset}_{consumer}_{time}", request.export_type)
        }
        None => format!("export{dataset}_{time}"),
    }
}

/// How a file is called, and whose it is.
#[derive(Clone, Debug)]
pub struct FileName {
    /// Of which dataset it has rows.
    pub dataset: String,
    /// For whom; `None`: for nobody in particular.
    pub consumer: Option<ConsumerId>,
    /// Its name, as clients know it.
    pub name: String,
    /// How it is written.
    pub encoding: Encoding,
}

impl FileName {
    /// The name of a part, as far as it is known when the part begins: the first may turn out to be the only one.
    #[cfg(feature = "buckets")]
    pub fn of_part(&self, part: u32) -> String {
        if part == 1 { self.name.clone() } else { part_name(&self.name, part) }
    }

    /// The key of an attempt's object: `{dataset}/{consumer}/{stem}_{token}{extension}`, with the first 8 digits of the
    /// attempt's token. So a consumer can be given the right to its own objects alone, and no two attempts ever share a
    /// key. The first part's key is that of an only file: when its upload begins nobody knows whether more follow.
    #[cfg(feature = "buckets")]
    pub fn key(&self, hidden: &HiddenFile) -> String {
        let FileName { dataset, consumer, name, encoding } = self;
        let extension = encoding.extension();
        let stem = name.strip_suffix(&extension).unwrap_or(name);
        // No consumer's id begins so.
        let consumer = consumer.as_ref().map_or("_ad_hoc", ConsumerId::as_str);
        let token = hidden.token.as_uuid().simple().to_string();
        let key = format!("{dataset}/{consumer}/{stem}_{}{extension}", &token[..8]);
        if hidden.part == 1 { key } else { part_name(&key, hidden.part) }
    }
}

/// The name with this stem and number, which only shows from 2 on.
pub fn numbered(stem: &str, number: i64, encoding: Encoding) -> String {
    let extension = encoding.extension();
    match number {
        1 => format!("{stem}{extension}"),
        n => format!("{stem}-{n}{extension}"),
    }
}

/// Stem and number of a name: the inverse of [`numbered`]. A stem ends with the time and its `Z`, so a number behind a
/// `-` is none of it.
pub fn stem_and_number(name: &str, encoding: Encoding) -> (&str, i64) {
    let name = name.strip_suffix(&encoding.extension()).unwrap_or(name);
    match name.rsplit_once('-') {
        Some((stem, number)) => number.parse().map_or((name, 1), |number| (stem, number)),
        None => (name, 1),
    }
}

/// The name without its ending, of whatever encoding. A stem has no dot behind its time, but a consumer's id may have
/// some before.
pub fn stem_of(name: &str) -> &str {
    let endings =
        Format::ALL.iter().flat_map(|format| Compression::ALL.iter().map(|compression| (*format, *compression)));
    let stems =
        endings.filter_map(|(format, compression)| name.strip_suffix(&Encoding { format, compression }.extension()));
    stems.min_by_key(|stem| stem.len()).unwrap_or(name)
}

/// The name of a file's part where the file is in several, from 1: its number stands before the extension.
pub fn part_name(name: &str, part: u32) -> String {
    let stem = stem_of(name);
    format!("{stem}.part-{part:05}{}", &name[stem.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ExportType;

    #[test]
    fn a_stem_has_type_consumer_and_time() {
        let now = DateTime::from_timestamp_nanos(1_772_080_200_123_456_000);
        let stem = |dataset: &str, consumer: Option<&str>| {
            let consumer = consumer.map(|c| c.parse().unwrap());
            let encoding = Encoding { format: Format::Csv, compression: Compression::None };
            super::stem(&Request::new(consumer, dataset.to_owned(), ExportType::Delta, encoding), now)
        };
        assert_eq!(stem("users", Some("a:b@c")), "delta_a_b_c_20260226T043000Z");
        assert_eq!(stem("users", None), "export_20260226T043000Z");
        assert_eq!(stem("orders", Some("a")), "delta_orders_a_20260226T043000Z");
        assert_eq!(stem("orders", None), "export_orders_20260226T043000Z");
    }

    #[test]
    fn numbers_go_and_come_back() {
        for (format, compression) in Format::ALL.iter().flat_map(|f| Compression::ALL.iter().map(|c| (*f, *c))) {
            let encoding = Encoding { format, compression };
            for number in [1, 2, 37] {
                let name = numbered("full_a.csv-1_20260226T043000Z", number, encoding);
                assert_eq!(stem_and_number(&name, encoding), ("full_a.csv-1_20260226T043000Z", number), "{name}");
            }
        }
        assert_eq!(numbered("s", 2, Encoding { format: Format::Csv, compression: Compression::Gzip }), "s-2.csv.gz");
    }
}
