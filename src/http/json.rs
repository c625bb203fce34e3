//! What a JSON text says that a value of it has lost: members given twice (RFC 8259, section 4: what a reader makes of them is
//! anybody's guess). serde_json takes the last one.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The first member of a text that its object has already, by its place: `filter[0].column`. None also where the text is no JSON.
pub(crate) fn given_twice(text: &[u8]) -> Option<String> {
    let mut place = Vec::new();
    // Whatever ends the reading early, only a member given twice leaves a place.
    let _ = Once(&mut place).deserialize(&mut serde_json::Deserializer::from_slice(text));
    let mut steps = place.into_iter().rev();
    let first = steps.next()?;
    Some(steps.fold(first.to_string(), |place, step| match step {
        Step::Member(_) => format!("{place}.{step}"),
        Step::Item(_) => format!("{place}{step}"),
    }))
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

/// Reads a value whose objects have each member once. On the way back from one that doesn't, the steps to it are written down, the
/// innermost first; on the way in that would be work for every value of a text, which may have many under a long name.
struct Once<'p>(&'p mut Vec<Step>);

impl Once<'_> {
    fn through<T, E>(&mut self, step: impl FnOnce() -> Step, read: Result<T, E>) -> Result<T, E> {
        if read.is_err() && !self.0.is_empty() {
            self.0.push(step());
        }
        read
    }
}

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
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

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        for at in 0.. {
            let read = items.next_element_seed(Once(&mut *self.0));
            if self.through(|| Step::Item(at), read)?.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Numbers come here too: with all their digits they are an object of one member to serde_json.
    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if names.contains(&name) {
                self.0.push(Step::Member(name));
                return Err(A::Error::custom("given twice"));
            }
            let read = members.next_value_seed(Once(&mut *self.0));
            self.through(|| Step::Member(name.clone()), read)?;
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
            assert_eq!(given_twice(text.as_bytes()).as_deref(), Some(place), "{text}");
        }
        for text in [
            r#"{"a":{"a":[{"a":1},{"a":2}]},"A":-1.5e300,"b":true,"c":null,"d":"\u0000"}"#,
            "1",
            "12345678901234567890.123",
            "[[],{},\"\"]",
            "{",
            r#"{"a":1,"b":nothing}"#,
            "",
        ] {
            assert_eq!(given_twice(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn only_what_is_there_twice_is(names in vec("[a-c]{1,2}", 0..6)) {
            let text: Vec<_> = names.iter().map(|name| format!("\"{name}\":[]")).collect();
            let twice = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)).map(|(_, name)| name.clone());
            prop_assert_eq!(given_twice(format!("{{{}}}", text.join(",")).as_bytes()), twice);
        }
    }
}
