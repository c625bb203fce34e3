//! Compares the types of a key's column in the source and in the target. Different keys of the source must stay
//! different in the target.

/// Returns true if values that differ in the source's type always differ in the target's type.
///
/// Both types are in the notation of `format_type`. Ignores values that don't fit the target's type, because Postgres
/// refuses those.
pub(super) fn keeps_distinct(source: &str, target: &str) -> bool {
    let (source, target) = (KeyType::parse(source), KeyType::parse(target));
    let is_whole = ["smallint", "integer", "bigint"].contains(&&*source.name);
    let same_name = source.name.rsplit('.').next() == target.name.rsplit('.').next();
    match &*target.name {
        "text" | "character varying" if target.modifier.is_none() => true,
        "smallint" | "integer" | "bigint" => is_whole,
        "numeric" if is_whole => target.modifier.is_none_or(|scale| scale >= 0),
        _ => same_name && target.modifier.is_none_or(|most| source.modifier.is_some_and(|had| had <= most)),
    }
}

/// A type in the notation of `format_type`, for example `numeric(18,2)`.
struct KeyType {
    /// The name without the modifier.
    name: String,
    /// The last number in parentheses: a length, a precision of seconds, or a scale.
    modifier: Option<i32>,
}

impl KeyType {
    fn parse(text: &str) -> KeyType {
        let bracketed = text.split_once('(').and_then(|(before, rest)| Some((before, rest.split_once(')')?)));
        let Some((before, (numbers, after))) = bracketed else {
            return KeyType { name: text.to_owned(), modifier: None };
        };
        let modifier = numbers.rsplit(',').next().and_then(|number| number.trim().parse().ok());
        KeyType { name: format!("{before}{after}"), modifier }
    }
}

#[cfg(test)]
mod tests {
    use super::keeps_distinct;

    #[test]
    fn a_type_that_truncates_or_folds_values_does_not_keep_keys_distinct() {
        for (source, target) in [
            ("text", "text"),
            ("uuid", "text"),
            ("text", "character varying"),
            ("character varying(5)", "character varying(5)"),
            ("character varying(5)", "character varying(9)"),
            ("integer", "bigint"),
            ("bigint", "integer"),
            ("integer", "numeric"),
            ("integer", "numeric(9,0)"),
            ("numeric(9,2)", "numeric"),
            ("numeric(9,2)", "numeric(12,3)"),
            ("timestamp(3) with time zone", "timestamp with time zone"),
            ("citext", "public.citext"),
            ("uuid", "uuid"),
        ] {
            assert!(keeps_distinct(source, target), "{source} {target}");
        }
        for (source, target) in [
            ("text", "citext"),
            ("text", "character varying(5)"),
            ("text", "character(5)"),
            ("character varying(9)", "character varying(5)"),
            ("numeric", "integer"),
            ("numeric(9,2)", "numeric(9,1)"),
            ("numeric", "numeric(9,2)"),
            ("integer", "numeric(9,-2)"),
            ("timestamp with time zone", "timestamp(0) with time zone"),
            ("timestamp with time zone", "date"),
            ("timestamp with time zone", "timestamp without time zone"),
            ("text", "uuid"),
            ("double precision", "real"),
        ] {
            assert!(!keeps_distinct(source, target), "{source} {target}");
        }
    }
}
