//! API-document schemas of domain types used in many bodies and queries. These domain types do not depend on the
//! document.

use std::borrow::Cow;

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::event::DeliveryStatus;
use crate::job::json::{CompressionSchema, ConsumerSchema, ContinuitySchema, ExportTypeSchema, FormatSchema};
use crate::job::{FailureCode, Phase, Status};
use cdc_capture::Continuity;
use cdc_dataset::Operator;
use pg_rows::encoding::{Compression, Format};
use pg_rows::export_type::ExportType;
use pg_rows::meta::MetaColumn;

/// Returns the schema of an enum: its values and the meaning of each.
pub(crate) fn of_words<'w>(meaning: &str, words: impl Iterator<Item = (&'w str, &'w str)>) -> RefOr<Schema> {
    let words: Vec<_> = words.collect();
    let list: String = words.iter().map(|(word, stands_for)| format!("\n- `{word}`: {stands_for}")).collect();
    let words = words.into_iter().map(|(word, _)| word.to_owned());
    let object = ObjectBuilder::new().schema_type(Type::String).description(Some(format!("{meaning}:\n{list}")));
    object.enum_values(Some(words)).into()
}

/// Implements the schemas of enums. An enum of another crate needs its own schema type.
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
    Status, "Status", "The status of a job";
    Phase, "Phase", "What an open job does";
    FailureCode, "FailureCode", "The reason why an export failed";
    DeliveryStatus, "DeliveryStatus", "The status of a delivery";
}

document_words! {
    FormatSchema of Format, "Format", "The format of a file's rows";
    CompressionSchema of Compression, "Compression", "The compression of a file";
    ExportTypeSchema of ExportType, "ExportType", "The set of rows in an export";
    ContinuitySchema of Continuity, "Continuity", "The condition, other than changes, between a consumer's last export and this one";
    OperatorSchema of Operator, "Operator", "The comparison of a column with a value";
    MetaColumnSchema of MetaColumn, "MetaColumn", "A column of files that is none of the table";
}

/// A consumer's id in a header, a path or a query.
impl PartialSchema for ConsumerSchema {
    fn schema() -> RefOr<Schema> {
        named("^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$", "search")
    }
}

impl ToSchema for ConsumerSchema {
    fn name() -> Cow<'static, str> {
        "ConsumerId".into()
    }
}

/// The schema of [`MetaColumn`].
pub(crate) enum MetaColumnSchema {}

/// The schema of [`Operator`].
pub(crate) enum OperatorSchema {}

/// A dataset's name. The code uses `String` for it.
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
    use cdc_manifest::ConsumerId;
    use cdc_manifest::is_dataset_name;
    use proptest::prelude::*;
    use proptest::string::string_regex;

    fn pattern(schema: RefOr<Schema>) -> String {
        let schema = serde_json::to_value(schema).unwrap();
        let pattern = schema["pattern"].as_str().unwrap();
        // The generator of texts does not support anchors.
        pattern.strip_prefix('^').unwrap().strip_suffix('$').unwrap().to_owned()
    }

    #[test]
    fn names_match_their_documented_patterns() {
        let consumer = string_regex(&pattern(ConsumerSchema::schema())).unwrap();
        let dataset = string_regex(&pattern(DatasetName::schema())).unwrap();
        proptest!(|(consumer in consumer, dataset in dataset)| {
            prop_assert!(consumer.parse::<ConsumerId>().is_ok() && is_dataset_name(&dataset), "{} {}", consumer, dataset);
        });
        // The patterns also contain the exact maximum lengths.
        let longest = "x".repeat(128);
        assert!(longest.parse::<ConsumerId>().is_ok() && format!("{longest}x").parse::<ConsumerId>().is_err());
        assert!(is_dataset_name(&longest[..63]) && !is_dataset_name(&longest[..64]));
    }
}
