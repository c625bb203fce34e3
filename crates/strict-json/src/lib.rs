#![doc = include_str!("../README.md")]

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;

/// Prefix of serde_json's internal member names.
const RESERVED: &str = "$serde_json::private::";

#[derive(Debug)]
pub struct JsonError {
    /// The member at which parsing failed, such as `filter[0].column`; `.` for the whole text.
    pub place: String,
    pub error: serde_json::Error,
}

/// Parses a text by a seed: a type by `PhantomData`, or [`Strict::Permitted`].
///
/// # Errors
/// If the text is not JSON or doesn't fit the seed.
pub fn read<'t, S: DeserializeSeed<'t>>(text: &'t [u8], seed: S) -> Result<S::Value, JsonError> {
    let (mut from, mut track) = (serde_json::Deserializer::from_slice(text), Track::new());
    let read = seed.deserialize(serde_path_to_error::Deserializer::new(&mut from, &mut track));
    let read = read.and_then(|value| from.end().map(|()| value));
    read.map_err(|error| JsonError { place: track.path().to_string(), error })
}

/// Parses a text as `T`. Returns `None` if the text is not JSON, is refused by [`Strict`], or doesn't match `T`.
pub fn parsed<T: DeserializeOwned>(text: &[u8]) -> Option<T> {
    read(text, Strict::Permitted).ok()?;
    serde_json::from_slice(text).ok()
}

/// Parses any value and discards it. Refuses a member that is given twice or has a reserved name, at any level.
#[derive(Clone, Copy)]
pub enum Strict {
    Permitted,
    /// The value of a member whose name already occurred in the object.
    Repeated,
    /// The value of a member with a reserved name.
    Reserved,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self {
            Strict::Permitted => from.deserialize_any(self),
            Strict::Repeated => Err(Error::custom("given twice")),
            Strict::Reserved => Err(Error::unknown_field("", &[])),
        }
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Strict::Permitted)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            // These members are refused at their values, because the path of a value includes the member's name.
            let value = match &name {
                name if names.contains(name) => Strict::Repeated,
                name if name.starts_with(RESERVED) => Strict::Reserved,
                _ => Strict::Permitted,
            };
            members.next_value_seed(value)?;
            names.insert(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// Returns the place and the reason of the first error.
    fn fault(text: &str) -> Option<(String, String)> {
        let error = read(text.as_bytes(), Strict::Permitted).err()?;
        let why = error.error.to_string();
        Some((error.place, why.split(" at line ").next().unwrap().to_owned()))
    }

    fn twice(text: &str) -> Option<String> {
        fault(text).filter(|(_, why)| why == "given twice").map(|(place, _)| place)
    }

    #[test]
    fn valid_json_is_accepted() {
        for text in [
            r#"{"a":{"a":[{"a":1},{"a":2}]},"A":-1.5e300,"b":true,"c":null,"d":"\u0000\ud83d\ude00"}"#,
            "-0",
            "12345678901234567890.123",
            "[[],{},\"\"]",
        ] {
            assert_eq!(fault(text), None, "{text}");
        }
        let deepest = format!("{}1{}", "[".repeat(127), "]".repeat(127));
        assert_eq!(fault(&deepest), None);
        for text in ["{", r#"{"a":1,"b":nothing}"#, "", "1 2", "[1,]", "\"\u{0}\"", "01", &format!("[{deepest}]")] {
            assert!(read(text.as_bytes(), Strict::Permitted).is_err_and(|fault| !fault.error.is_data()), "{text}");
        }
    }

    #[test]
    fn internal_names_of_serde_json_are_refused_with_any_value() {
        for name in ["$serde_json::private::RawValue", "$serde_json::private::", "\\u0024serde_json::private::Number"] {
            for value in ["\"5\"", "5", "1.5", "null", "true", "[1]", "{}", "\"{\\\"a\\\":1,\\\"a\\\":2}\""] {
                let name_read = name.replace("\\u0024", "$");
                for (text, place) in [
                    (format!(r#"{{"{name}":{value}}}"#), name_read.clone()),
                    (format!(r#"{{"a":[0,{{"b":1,"{name}":{value}}}]}}"#), format!("a[1].{name_read}")),
                ] {
                    let (found, why) = fault(&text).unwrap();
                    assert!(found == place && why.starts_with("unknown field"), "{text}: {found}: {why}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn only_repeated_members_are_reported(names in vec("[a-c]{1,2}", 0..6)) {
            let text: Vec<_> = names.iter().map(|name| format!("\"{name}\":[]")).collect();
            let again = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name.clone());
            prop_assert_eq!(twice(&format!("{{{}}}", text.join(","))), again);
        }
    }
}
