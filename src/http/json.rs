//! Reads a JSON text that somebody else wrote into a value, and refuses what the value would hide.
//!
//! serde can't do that once the value is there, nor for members that no struct has:
//! - A member given twice. RFC 8259, section 4, leaves open what a reader makes of it; serde_json takes the last one.
//! - A member by whose name serde_json passes on what it has read itself. `serde_json::Value` takes an object of such a name for what
//!   its text says, and begins a new count of levels for each text in a text, until the stack ends. A value that was read here holds
//!   no such name, so that it may go anywhere.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_path_to_error::Track;

/// serde_json's own names begin so.
const RESERVED: &str = "$serde_json::private::";
/// By this name serde_json passes on a number with all its digits: an object whose one member is their text.
pub(crate) const NUMBER: &str = "$serde_json::private::Number";

/// Why a text is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It is no JSON, or has too many levels.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// An object has a member again, at this place: `filter[0].column`.
    #[error("{0}: given twice")]
    Twice(String),
    /// A member at this place has a name of serde_json's own.
    #[error("{0}: there is no such member")]
    Reserved(String),
}

/// The value of a JSON text.
///
/// # Errors
/// The first fault of the text.
pub(crate) fn read(text: &[u8]) -> Result<Value, Fault> {
    let (fault, mut track) = (Cell::new(None), Track::new());
    let mut from = serde_json::Deserializer::from_slice(text);
    let read = Strict(&fault).deserialize(serde_path_to_error::Deserializer::new(&mut from, &mut track));
    let read = read.and_then(|value| from.end().map(|()| value));
    read.map_err(|why| match fault.get() {
        Some(fault) => fault(track.path().to_string()),
        None => Fault::NotJson(why.to_string()),
    })
}

/// The fault of the member that is being read, from the member's place.
type FaultAt = fn(String) -> Fault;

/// Reads a value whose objects have each member once and none of a reserved name; leaves the fault there if one has.
#[derive(Clone, Copy)]
struct Strict<'f>(&'f Cell<Option<FaultAt>>);

impl Strict<'_> {
    fn refuse<E: Error>(self, fault: FaultAt) -> E {
        self.0.set(Some(fault));
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    /// Numbers come here too: with all their digits they are an object of one member to serde_json.
    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = members.next_key_seed(NewName { strict: self, known: &values })? {
            if name == NUMBER {
                return members.next_value_seed(Digits(self)).map(Value::Number);
            }
            values.insert(name, members.next_value_seed(self)?);
        }
        Ok(Value::Object(values))
    }
}

/// Reads the name of an object's next member: one that the object doesn't have yet, and no reserved one, unless it can be a number's.
struct NewName<'f, 'm> {
    strict: Strict<'f>,
    known: &'m Map<String, Value>,
}

impl<'de> DeserializeSeed<'de> for NewName<'_, '_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<String, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for NewName<'_, '_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member's name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<String, E> {
        match name {
            name if self.known.contains_key(name) => Err(self.strict.refuse(Fault::Twice)),
            NUMBER if self.known.is_empty() => Ok(name.to_owned()),
            name if name.starts_with(RESERVED) => Err(self.strict.refuse(Fault::Reserved)),
            name => Ok(name.to_owned()),
        }
    }
}

/// Reads a number with all its digits, which serde_json passes on as a text of its own making (`visit_string`), and nothing else:
/// a text of the client's comes as a slice.
struct Digits<'f>(Strict<'f>);

impl<'de> DeserializeSeed<'de> for Digits<'_> {
    type Value = Number;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Number, D::Error> {
        let Digits(strict) = self;
        from.deserialize_any(self).map_err(|_| strict.refuse(Fault::Reserved))
    }
}

#[expect(clippy::serde_api_misuse, reason = "a text of the client's comes by `visit_str`, and is no number")]
impl Visitor<'_> for Digits<'_> {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the digits of a number")
    }

    fn visit_string<E: Error>(self, digits: String) -> Result<Number, E> {
        digits.parse().map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn twice(text: &str) -> Option<String> {
        match read(text.as_bytes()) {
            Err(Fault::Twice(place)) => Some(place),
            _ => None,
        }
    }

    #[test]
    fn a_member_given_twice_is_found_by_its_place() {
        for (text, place) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":1,"b":2,"\u0061":1}"#, "a"),
            (r#"{"":1,"":1}"#, ""),
            (r#"{"a":{"b":[0,{"c":1,"d":2,"c":null}]}}"#, "a.b[1].c"),
            (r#"{"a":1,"b":{"a":1,"a":2},"a":3}"#, "b.a"),
            (r#"[[{"a":1.5,"a":1e999}]]"#, "[0][0].a"),
        ] {
            assert_eq!(twice(text).as_deref(), Some(place), "{text}");
        }
    }

    #[test]
    fn what_is_read_is_what_serde_json_reads() {
        for text in [
            r#"{"a":{"a":[{"a":1},{"a":2}]},"A":-1.5e300,"b":true,"c":null,"d":"\u0000\ud83d\ude00"}"#,
            "1",
            "-0",
            "1E+2",
            "12345678901234567890.123",
            "\"\"",
            "[[],{},\"\", [ 1e999 ]]",
        ] {
            assert_eq!(read(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
        let deepest = format!("{}1{}", "[".repeat(127), "]".repeat(127));
        assert!(read(deepest.as_bytes()).is_ok());
        for text in ["{", r#"{"a":1,"b":nothing}"#, "", "1 2", "[1,]", "\"\u{0}\"", "01", &format!("[{deepest}]")] {
            let why = serde_json::from_str::<Value>(text).unwrap_err();
            assert_eq!(read(text.as_bytes()), Err(Fault::NotJson(why.to_string())), "{text}");
        }
    }

    #[test]
    fn names_of_serde_jsons_own_are_refused_whatever_they_hold() {
        for name in
            [NUMBER, "$serde_json::private::RawValue", "$serde_json::private::", "\\u0024serde_json::private::Number"]
        {
            for value in
                ["\"5\"", "\"\\u0035\"", "5", "1.5", "null", "true", "[1]", "{}", "\"{\\\"a\\\":1,\\\"a\\\":2}\""]
            {
                let place = |before: &str| Err(Fault::Reserved(format!("{before}{}", name.replace("\\u0024", "$"))));
                assert_eq!(read(format!(r#"{{"{name}":{value}}}"#).as_bytes()), place(""), "{name} {value}");
                let deep = format!(r#"{{"a":[0,{{"b":1,"{name}":{value}}}]}}"#);
                assert_eq!(read(deep.as_bytes()), place("a[1]."), "{name} {value}");
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
