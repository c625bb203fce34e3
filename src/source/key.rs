//! A table's key in SQL: of its rows, and as the log has it.

use crate::dataset::KeyColumn;
use crate::source::quote::quoted;
use crate::source::value::{compared, operator};

/// The columns that tell a table's rows apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySql<'a>(pub(crate) &'a [KeyColumn]);

impl KeySql<'_> {
    /// The key of a row of the log: in its type, or as a text where the type takes several texts for one. The log's
    /// text is read and written again, since another version of Postgres may have written it.
    pub(crate) fn of_log(&self) -> Vec<String> {
        let read = |text: &str, part: &KeyColumn| match part.has_one_text {
            true => typed(part, text),
            false => format!("pg_catalog.concat({text}::{}) collate pg_catalog.\"C\"", part.read_as),
        };
        match self.0 {
            [part] => vec![read("key", part)],
            parts => parts.iter().enumerate().map(|(i, part)| read(&format!("(key::jsonb ->> {i})"), part)).collect(),
        }
    }

    /// The key of a row, in the same form.
    pub(crate) fn of_row(&self, row: &str) -> Vec<String> {
        let value = |part: &KeyColumn| match part.has_one_text {
            true => format!("{row}.{}::{}{}", quoted(&part.column.name), part.column.base_type, collated(part)),
            false => text_of(row, part),
        };
        self.0.iter().map(value).collect()
    }

    /// The names of its parts in the changes.
    pub(crate) fn names(&self) -> Vec<String> {
        (0..self.0.len()).map(key_name).collect()
    }

    /// The numbers of its parts, where they are the first columns of a query.
    pub(crate) fn ordinals(&self) -> String {
        (1..=self.0.len()).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The condition that rows of two queries have the same key. Both have it in the form of the log's.
    pub(crate) fn are_same(&self, one: &str, other: &str) -> String {
        let equals = operator("pg_catalog", "=");
        self.names()
            .iter()
            .map(|name| format!("{one}.{name} {equals} {other}.{name}"))
            .collect::<Vec<_>>()
            .join(" and ")
    }

    /// That a row `u` has the key of `ch`. By the operator of the key's index, so that Postgres finds the row by that
    /// index. Where the operator takes several texts for one, by the text too, since a consumer has the texts.
    pub(crate) fn joined(&self) -> String {
        let conditions: Vec<_> = [self.is_same("ch")].into_iter().chain(self.same_texts("ch")).collect();
        conditions.join(" and ")
    }

    /// The condition that the index takes the key of a row `u` for the key of `other`.
    pub(crate) fn is_same(&self, other: &str) -> String {
        let same = |(i, part): (usize, &KeyColumn)| {
            let key = format!("{other}.{}", key_name(i));
            let key = if part.has_one_text { format!("{key}{}", collated(part)) } else { typed(part, &key) };
            format!("{} {} {key}", compared(&part.column), part.equals)
        };
        self.0.iter().enumerate().map(same).collect::<Vec<_>>().join(" and ")
    }

    /// That a row `u` has the texts of the key of `other`, for each part of the key of which the index takes several
    /// texts for one.
    pub(crate) fn same_texts(&self, other: &str) -> Vec<String> {
        let parts = self.0.iter().enumerate().filter(|(_, part)| !part.has_one_text);
        let equals = operator("pg_catalog", "=");
        parts.map(|(i, part)| format!("{} {equals} {other}.{}", text_of("u", part), key_name(i))).collect()
    }
}

/// The name of a part of the key in the changes. It has a space, so that no filter means it.
pub(crate) fn key_name(i: usize) -> String {
    format!("\"logged key {}\"", i + 1)
}

/// A text of a key, in its type and in the collation of the index.
fn typed(part: &KeyColumn, text: &str) -> String {
    format!("{text}::{}{}", part.read_as, collated(part))
}

/// In the collation of the index, whatever that of the column is: the log's texts have one of their own, and between
/// two of them Postgres doesn't choose.
fn collated(part: &KeyColumn) -> String {
    part.collation.as_ref().map(|collation| format!(" collate {collation}")).unwrap_or_default()
}

/// The text of a row's key, as the log has it.
fn text_of(row: &str, part: &KeyColumn) -> String {
    format!("pg_catalog.concat({row}.{}) collate pg_catalog.\"C\"", quoted(&part.column.name))
}
