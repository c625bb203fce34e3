//! Reads a JSON text that somebody else wrote, and names the member at which the reading ends.
//!
//! [`Strict`] finds two faults that no struct can see:
//! - An unknown member that is given twice. RFC 8259, section 4, leaves open which of the two counts.
//! - A member with one of serde_json's own names. `serde_json::Value` reads the text of such a member as JSON again,
//!   with a new limit on its levels. Texts within texts would use up the stack.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;

/// serde_json's own names begin so.
const RESERVED: &str = "$serde_json::private::";

/// A text that can't be read.
pub(crate) struct Unreadable {
    /// The member at which the reading ended: `filter[0].column`. For the text as a whole, it is `.`.
    pub(crate) place: String,
    /// The cause.
    pub(crate) error: serde_json::Error,
}

/// Reads one JSON text to its end.
///
/// # Errors
/// The first fault that the seed meets.
pub(crate) fn read<'t, S: DeserializeSeed<'t>>(text: &'t [u8], seed: S) -> Result<S::Value, Unreadable> {
    let (mut from, mut track) = (serde_json::Deserializer::from_slice(text), Track::new());
    let read = seed.deserialize(serde_path_to_error::Deserializer::new(&mut from, &mut track));
    let read = read.and_then(|value| from.end().map(|()| value));
    read.map_err(|error| Unreadable { place: track.path().to_string(), error })
}

/// Reads any value and keeps nothing. It refuses a member that is given twice or has a reserved name, at any level.
#[derive(Clone, Copy)]
pub(crate) enum Strict {
    /// A value that may be there.
    Value,
    /// The value of a member that its object has already.
    Twice,
    /// The value of a member with a reserved name.
    Reserved,
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        match self {
            Strict::Value => from.deserialize_any(self),
            Strict::Twice => Err(Error::custom("given twice")),
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
        while items.next_element_seed(Strict::Value)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            // Refused as values, since the place of a value has the member's name.
            let value = match &name {
                name if names.contains(name) => Strict::Twice,
                name if name.starts_with(RESERVED) => Strict::Reserved,
                _ => Strict::Value,
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

    /// The place and the reason of the first fault.
    fn fault(text: &str) -> Option<(String, String)> {
        let unreadable = read(text.as_bytes(), Strict::Value).err()?;
        let why = unreadable.error.to_string();
        Some((unreadable.place, why.split(" at line ").next().unwrap().to_owned()))
    }

    fn twice(text: &str) -> Option<String> {
        fault(text).filter(|(_, why)| why == "given twice").map(|(place, _)| place)
    }

    #[test]
    fn the_texts_that_serde_json_reads_are_read() {
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
            assert!(read(text.as_bytes(), Strict::Value).is_err_and(|fault| !fault.error.is_data()), "{text}");
        }
    }

    #[test]
    fn names_of_serde_jsons_own_are_refused_whatever_they_hold() {
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
        fn only_what_is_there_twice_is(names in vec("[a-c]{1,2}", 0..6)) {
            let text: Vec<_> = names.iter().map(|name| format!("\"{name}\":[]")).collect();
            let again = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name.clone());
            prop_assert_eq!(twice(&format!("{{{}}}", text.join(","))), again);
        }
    }
}
