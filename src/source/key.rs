//! A table's key in SQL: of its rows, and as the log has it.

use crate::dataset::KeyColumn;
use crate::source::quote::quoted;
use crate::source::value::{compared, operator};

/// The columns that tell a table's rows apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a>(pub(crate) &'a [KeyColumn]);

impl Key<'_> {
    /// The key as the log has it: in its type, or as a text where the type takes several texts for one. Read and written again, since
    /// the form of a text may be that of an older version.
    pub(crate) fn of_log(&self) -> Vec<String> {
        let read = |text: &str, part: &KeyColumn| match part.has_one_text {
            true => typed(part, text),
            false => format!("pg_catalog.concat({text}::{}) collate pg_catalog.\"C\"", part.read_as),
        };
        match self.0 {
            [part] => vec![read("pk", part)],
            parts => parts.iter().enumerate().map(|(i, part)| read(&format!("(pk::jsonb ->> {i})"), part)).collect(),
        }
    }

    /// The key of a row, in the same form.
    pub(crate) fn of_row(&self, row: &str) -> Vec<String> {
        let value = |part: &KeyColumn| match part.has_one_text {
            true => format!("{row}.{}::{}", quoted(&part.column.name), part.column.base_type),
            false => text_of(row, part),
        };
        self.0.iter().map(value).collect()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        (0..self.0.len()).map(key_name).collect()
    }

    pub(crate) fn ordinals(&self) -> String {
        (1..=self.0.len()).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// That a row `u` has the key of `ch`. By the operator of the key's index, which finds it; where that takes several texts for one,
    /// by its text too, since a consumer has the texts.
    pub(crate) fn joined(&self) -> String {
        let texts = self.0.iter().enumerate().filter(|(_, part)| !part.has_one_text);
        let texts = texts
            .map(|(i, part)| format!(" and {} {} ch.{}", text_of("u", part), operator("pg_catalog", "="), key_name(i)));
        format!("{}{}", self.is_same("ch"), texts.collect::<String>())
    }

    /// That a row `u` has a key which its index takes for that of `other`.
    pub(crate) fn is_same(&self, other: &str) -> String {
        let same = |(i, part): (usize, &KeyColumn)| {
            let key = format!("{other}.{}", key_name(i));
            let key = if part.has_one_text { key } else { typed(part, &key) };
            format!("{} {} {key}", compared(&part.column), part.equals)
        };
        self.0.iter().enumerate().map(same).collect::<Vec<_>>().join(" and ")
    }

    /// That a row `u` has the key of `d` by its texts.
    pub(crate) fn has_same_texts(&self) -> String {
        let texts = self.0.iter().enumerate().filter(|(_, part)| !part.has_one_text);
        let same =
            texts.map(|(i, part)| format!("{} {} d.{}", text_of("u", part), operator("pg_catalog", "="), key_name(i)));
        same.collect::<Vec<_>>().join(" and ")
    }
}

/// The name of a part of the key, in what is changed. With a space, so that no filter means it.
pub(crate) fn key_name(i: usize) -> String {
    format!("\"logged key {}\"", i + 1)
}

/// A text of a key, in its type. The log's texts have a collation of their own, in which no index of the table is.
fn typed(part: &KeyColumn, text: &str) -> String {
    let collation = part.collation.as_ref().map(|collation| format!(" collate {collation}"));
    format!("{text}::{}{}", part.read_as, collation.unwrap_or_default())
}

/// The text of a row's key, as the log has it.
fn text_of(row: &str, part: &KeyColumn) -> String {
    format!("pg_catalog.concat({row}.{}) collate pg_catalog.\"C\"", quoted(&part.column.name))
}
