//! The name of an export's file: a stem that describes its content, a number if the stem is already used, and an
//! extension.

use chrono::{DateTime, Utc};

use crate::job::Request;
use cdc_dataset::USERS;
use pg_rows::encoding::Encoding;

/// Returns the name without number and extension, for a request made at `now`.
///
/// The stem is `{exportType}_{consumer}_{YYYYMMDDTHHMMSSZ}`, or `export_{YYYYMMDDTHHMMSSZ}` for an ad-hoc export. A
/// dataset other than `users` follows the first word.
///
/// The stem always ends with the time. So a name with the number `-2` can't equal the stem of another request.
pub fn stem(request: &Request, now: DateTime<Utc>) -> String {
    let time = now.format("%Y%m%dT%H%M%SZ");
    let dataset = if request.dataset == USERS { String::new() } else { format!("_{}", request.dataset) };
    match &request.consumer {
        Some(consumer) => {
            // Some file systems and shells give these two characters a special meaning.
            let consumer = consumer.as_str().replace([':', '@'], "_");
            format!("{}{dataset}_{consumer}_{time}", request.export_type)
        }
        None => format!("export{dataset}_{time}"),
    }
}

/// Returns the name with this stem and number. The name contains the number only from 2 on.
pub fn numbered(stem: &str, number: i64, encoding: Encoding) -> String {
    let extension = encoding.extension();
    match number {
        1 => format!("{stem}{extension}"),
        n => format!("{stem}-{n}{extension}"),
    }
}

/// Splits a name into stem and number: the inverse of [`numbered`]. A stem ends with the time and its `Z`, so a number
/// after a `-` is not part of the stem.
pub fn stem_and_number(name: &str, encoding: Encoding) -> (&str, i64) {
    let name = name.strip_suffix(&encoding.extension()).unwrap_or(name);
    match name.rsplit_once('-') {
        Some((stem, number)) => number.parse().map_or((name, 1), |number| (stem, number)),
        None => (name, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pg_rows::encoding::{Compression, Format};
    use pg_rows::export_type::ExportType;

    #[test]
    fn stem_has_type_consumer_and_time() {
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
    fn stem_and_number_inverts_numbered() {
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
