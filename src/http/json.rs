//! Reads the JSON of others into a value, in one pass, and refuses what a value of it would hide: members given twice (RFC 8259,
//! section 4: what a reader makes of them is anybody's guess; serde_json takes the last one), and members by whose names serde_json
//! passes on what it has read itself. `serde_json::Value` takes such an object for what its text says, and begins a new count of
//! levels for each text in a text, until the stack ends. What is read here holds no such name, so that it may go anywhere.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

/// serde_json's own names begin so.
const RESERVED: &str = "$serde_json::private::";
/// By this one it passes on a number with all its digits, as an object of one member.
const NUMBER: &str = "$serde_json::private::Number";

/// Why a text is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// It is no JSON, or has too many levels.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// An object has a member again, at this place: `filter[0].column`.
    #[error("{0}: given twice")]
    Twice(String),
    /// A member has a name that nobody gives one.
    #[error("{0}: there is no such member")]
    Reserved(String),
}

/// The value of a JSON text.
///
/// # Errors
/// The first fault of the text.
pub(crate) fn read(text: &[u8]) -> Result<Value, Fault> {
    let mut fault = Found::default();
    let mut from = serde_json::Deserializer::from_slice(text);
    let read = Once(&mut fault).deserialize(&mut from).and_then(|value| from.end().map(|()| value));
    match (read, fault.kind) {
        (Ok(value), _) => Ok(value),
        (Err(why), None) => Err(Fault::NotJson(why.to_string())),
        (Err(_), Some(Kind::Twice)) => Err(Fault::Twice(place(fault.steps))),
        (Err(_), Some(Kind::Reserved)) => Err(Fault::Reserved(place(fault.steps))),
    }
}

/// Steps from the innermost on, as one writes them.
fn place(steps: Vec<Step>) -> String {
    let mut steps = steps.into_iter().rev();
    let first = steps.next().map(|step| step.to_string()).unwrap_or_default();
    steps.fold(first, |place, step| match step {
        Step::Member(_) => format!("{place}.{step}"),
        Step::Item(_) => format!("{place}{step}"),
    })
}

#[derive(Clone, Copy)]
enum Kind {
    Twice,
    Reserved,
}

/// A fault, and on the way back from it the steps that lead there, the innermost first; on the way in they would be work for every
/// value of a text, which may have many under a long name.
#[derive(Default)]
struct Found {
    kind: Option<Kind>,
    steps: Vec<Step>,
}

enum Step {
    Member(String),
    Item(usize),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Member(name) => f.write_str(name),
            Step::Item(at) => write!(f, "[{at}]"),
        }
    }
}

/// Reads a value whose objects have each member once.
struct Once<'f>(&'f mut Found);

impl Once<'_> {
    fn through<T, E>(&mut self, step: impl FnOnce() -> Step, read: Result<T, E>) -> Result<T, E> {
        if read.is_err() && self.0.kind.is_some() {
            self.0.steps.push(step());
        }
        read
    }

    fn refuse<E: Error>(&mut self, kind: Kind, name: String) -> E {
        self.0.kind = Some(kind);
        self.0.steps.push(Step::Member(name));
        E::custom("refused")
    }
}

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Value, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
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

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        loop {
            let read = items.next_element_seed(Once(&mut *self.0));
            match self.through(|| Step::Item(values.len()), read)? {
                Some(value) => values.push(value),
                None => return Ok(Value::Array(values)),
            }
        }
    }

    /// Numbers come here too: with all their digits they are an object of one member to serde_json.
    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if name.starts_with(RESERVED) {
                if name == NUMBER
                    && values.is_empty()
                    && let Ok(number) = members.next_value_seed(Digits)
                {
                    return Ok(Value::Number(number));
                }
                return Err(self.refuse(Kind::Reserved, name));
            }
            match values.entry(name) {
                Entry::Occupied(given) => {
                    let name = given.key().clone();
                    return Err(self.refuse(Kind::Twice, name));
                }
                Entry::Vacant(member) => {
                    let read = members.next_value_seed(Once(&mut *self.0));
                    let value = self.through(|| Step::Member(member.key().clone()), read)?;
                    member.insert(value);
                }
            }
        }
        Ok(Value::Object(values))
    }
}

/// Reads a number with all its digits, which serde_json passes on as a text of its own making (`visit_string`), and nothing else:
/// a text of somebody's comes as a slice.
struct Digits;

impl<'de> DeserializeSeed<'de> for Digits {
    type Value = Number;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Number, D::Error> {
        from.deserialize_any(self)
    }
}

#[expect(clippy::serde_api_misuse, reason = "a text of somebody's comes by `visit_str`, and is no number")]
impl Visitor<'_> for Digits {
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
