//! The form of the nouns that are in many bodies and queries, and their schemas in the API's document. The nouns
//! themselves know nothing of documents.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::event::DeliveryStatus;
use crate::job::json::{CompressionSchema, FormatSchema};
use crate::job::selection::Operator;
use crate::job::{ConsumerId, Continuity, ExportType, FailureCode, Status};
use pg_rows::encoding::{Compression, Format};

/// The schema of an enum of words: the words, and what each stands for.
pub(crate) fn of_words<'w>(meaning: &str, words: impl Iterator<Item = (&'w str, &'w str)>) -> RefOr<Schema> {
    let words: Vec<_> = words.collect();
    let list: String = words.iter().map(|(word, stands_for)| format!("\n- `{word}`: {stands_for}")).collect();
    let words = words.into_iter().map(|(word, _)| word.to_owned());
    let object = ObjectBuilder::new().schema_type(Type::String).description(Some(format!("{meaning}:\n{list}")));
    object.enum_values(Some(words)).into()
}

/// The document's schemas of enums of words. The enum of another crate has a schema type of its own.
macro_rules! document_words {
    ($($name:ident, $as:literal, $meaning:literal;)+) => {
        document_words! { $($name of $name, $as, $meaning;)+ }
    };
    ($($schema:ident of $name:ident, $as:literal, $meaning:literal;)+) => {$(
        impl utoipa::PartialSchema for $schema {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $crate::http::schemas::of_words($meaning, $name::ALL.iter().map(|word| (word.as_str(), word.meaning())))
            }
        }

        impl utoipa::ToSchema for $schema {
            fn name() -> std::borrow::Cow<'static, str> {
                $as.into()
            }
        }
    )+};
}
pub(crate) use document_words;

document_words! {
    ExportType, "ExportType", "Which rows an export holds";
    Status, "Status", "Where a job stands";
    Continuity, "Continuity", "What stands between a consumer's last export and this one, if not just changes";
    FailureCode, "FailureCode", "Why an export failed";
    DeliveryStatus, "DeliveryStatus", "How the telling of an event to a receiver stands";
    Operator, "Operator", "How a column is compared with a value";
}

document_words! {
    FormatSchema of Format, "Format", "How a file's rows are written";
    CompressionSchema of Compression, "Compression", "What a file is compressed with, as a whole";
}

/// A consumer's id, as a header, a path or a query names it.
impl PartialSchema for ConsumerId {
    fn schema() -> RefOr<Schema> {
        named("^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$", "search")
    }
}

impl ToSchema for ConsumerId {}

/// A dataset's name. In the code it is a `String`.
pub(crate) enum DatasetName {}

impl PartialSchema for DatasetName {
    fn schema() -> RefOr<Schema> {
        named("^[a-z][a-z0-9_-]{0,62}$", "users")
    }
}

impl ToSchema for DatasetName {}

fn named(pattern: &str, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern)).examples([example]).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::name::is_name;
    use proptest::prelude::*;
    use proptest::string::string_regex;

    fn pattern(schema: RefOr<Schema>) -> String {
        let schema = serde_json::to_value(schema).unwrap();
        let pattern = schema["pattern"].as_str().unwrap();
        // What makes up texts has no anchors.
        pattern.strip_prefix('^').unwrap().strip_suffix('$').unwrap().to_owned()
    }

    #[test]
    fn names_are_as_their_patterns_say() {
        let consumer = string_regex(&pattern(ConsumerId::schema())).unwrap();
        let dataset = string_regex(&pattern(DatasetName::schema())).unwrap();
        proptest!(|(consumer in consumer, dataset in dataset)| {
            prop_assert!(consumer.parse::<ConsumerId>().is_ok() && is_name(&dataset), "{} {}", consumer, dataset);
        });
        // And the longest are no longer than said.
        let longest = "x".repeat(128);
        assert!(longest.parse::<ConsumerId>().is_ok() && format!("{longest}x").parse::<ConsumerId>().is_err());
        assert!(is_name(&longest[..63]) && !is_name(&longest[..64]));
    }
}
