//! SQL for a table's key: the key of a row in the table, and the key of a row in the log.

use crate::quote::quoted;
use crate::value::compared;
use cdc_dataset::KeyColumn;

#[derive(Clone, Copy, Debug)]
pub(crate) struct KeySql<'a>(pub(crate) &'a [KeyColumn]);

impl KeySql<'_> {
    /// Returns the parts of a key in the log. A part has its type, or is a text if the type has equal values with
    /// different texts. Such a text is converted to the type and back, because another version of Postgres may have
    /// written it.
    pub(crate) fn of_log(&self) -> String {
        let text = |i| if self.0.len() == 1 { "key".to_owned() } else { format!("(key::jsonb ->> {i})") };
        let read = |(i, part): (usize, &KeyColumn)| match part.has_one_text {
            true => typed(part, &text(i)),
            false => format!("pg_catalog.concat({}::{}) collate pg_catalog.\"C\"", text(i), part.read_as),
        };
        self.0.iter().enumerate().map(read).collect::<Vec<_>>().join(", ")
    }

    /// Returns the parts of the key of a row `u` in the table, in the form of [`KeySql::of_log`].
    pub(crate) fn of_row(&self) -> String {
        let value = |part: &KeyColumn| match part.has_one_text {
            true => format!("{}{}", compared(&part.column), collated(part)),
            false => text_of(part),
        };
        self.0.iter().map(value).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn names(&self) -> Vec<String> {
        (0..self.0.len()).map(key_name).collect()
    }

    /// Returns the column numbers of the key's parts in a query whose first columns they are.
    pub(crate) fn ordinals(&self) -> String {
        (1..=self.0.len()).map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// Returns the condition that rows of two queries have the same key. Both keys are in the form of
    /// [`KeySql::of_log`].
    pub(crate) fn are_same(&self, one: &str, other: &str) -> String {
        let are_same = |name: &String| format!("{one}.{name} operator(pg_catalog.=) {other}.{name}");
        self.names().iter().map(are_same).collect::<Vec<_>>().join(" and ")
    }

    /// Returns the condition that a row `u` has the key of `ch`.
    ///
    /// The condition uses the operator of the key's index, so that Postgres finds the row by that index. If the
    /// operator treats different texts as equal, the texts are compared too, because a consumer has the texts.
    pub(crate) fn joined(&self) -> String {
        let conditions: Vec<_> = [self.is_same("ch")].into_iter().chain(self.same_texts("ch")).collect();
        conditions.join(" and ")
    }

    /// Returns the condition that the index treats the key of a row `u` as equal to the key of `other`.
    pub(crate) fn is_same(&self, other: &str) -> String {
        let same = |(i, part): (usize, &KeyColumn)| {
            let key = format!("{other}.{}", key_name(i));
            let key = if part.has_one_text { format!("{key}{}", collated(part)) } else { typed(part, &key) };
            format!("{} {} {key}", compared(&part.column), part.equals)
        };
        self.0.iter().enumerate().map(same).collect::<Vec<_>>().join(" and ")
    }

    /// Returns the conditions that a row `u` has the texts of the key of `other`. There is one condition for each part
    /// of the key for which the index treats different texts as equal.
    pub(crate) fn same_texts(&self, other: &str) -> Vec<String> {
        let parts = self.0.iter().enumerate().filter(|(_, part)| !part.has_one_text);
        parts.map(|(i, part)| format!("{} operator(pg_catalog.=) {other}.{}", text_of(part), key_name(i))).collect()
    }
}

/// Returns the name of a part of the key in the changes. The name contains a space, so a filter can't refer to it by
/// accident.
pub(crate) fn key_name(i: usize) -> String {
    format!("\"logged key {}\"", i + 1)
}

/// Converts a key's text to the key's type, with the collation of the index.
fn typed(part: &KeyColumn, text: &str) -> String {
    format!("{text}::{}{}", part.read_as, collated(part))
}

/// Returns the COLLATE clause for the collation of the index, which may differ from the column's collation. The clause
/// is explicit because the log's texts have another collation, and Postgres doesn't choose between two collations.
fn collated(part: &KeyColumn) -> String {
    part.collation.as_ref().map(|collation| format!(" collate {collation}")).unwrap_or_default()
}

/// Returns the text of a part of the key of a row `u`, in the form that the log has.
fn text_of(part: &KeyColumn) -> String {
    format!("pg_catalog.concat(u.{}) collate pg_catalog.\"C\"", quoted(&part.column.name))
}
