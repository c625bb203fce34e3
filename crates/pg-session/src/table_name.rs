//! The name of a table, and its form in settings.

use std::fmt;
use std::str::FromStr;

/// A table's name, as the database has it. Written as the catalog reads it: a name with a dot in it has quotes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// `None`: found by the connection's `search_path`.
    pub schema: Option<String>,
    pub name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str| {
            if name.contains(['.', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name.to_owned() }
        };
        match &self.schema {
            Some(schema) => write!(f, "{}.{}", part(schema), part(&self.name)),
            None => f.write_str(&part(&self.name)),
        }
    }
}

impl FromStr for Table {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Table, &'static str> {
        table(text).ok_or("a table's name, or a schema's and a table's with a dot between, is expected")
    }
}

/// Parses `orders` or `sales.orders`. A name with a dot in it is quoted, and a quote in a quoted name is doubled.
fn table(text: &str) -> Option<Table> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    let mut quoted = false;
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => parts.last_mut()?.push(rest.next()?),
            '"' => quoted = !quoted,
            '.' if !quoted => parts.push(String::new()),
            c => parts.last_mut()?.push(c),
        }
    }
    if quoted || parts.iter().any(String::is_empty) {
        return None;
    }
    let name = parts.pop()?;
    let schema = parts.pop();
    parts.is_empty().then_some(Table { schema, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables() {
        let named =
            |schema: Option<&str>, name: &str| Table { schema: schema.map(str::to_owned), name: name.to_owned() };
        assert_eq!(table("a"), Some(named(None, "a")));
        assert_eq!(table("S.Order Lines"), Some(named(Some("S"), "Order Lines")));
        assert_eq!(table(r#""a.b"."c""d""#), Some(named(Some("a.b"), "c\"d")));
        for bad in ["", ".", "a.", ".a", "a.b.c", "\"a", "\"\""] {
            assert_eq!(table(bad), None, "{bad}");
        }
    }
}
