//! The foreign keys of the target that reference the tables of a transaction.

use std::collections::{BTreeSet, HashMap};

use sqlx::PgConnection;

use crate::apply::catalog::INSPECT_TABLE;
use crate::apply::{During, Error};

/// The foreign keys that reference the tables of a transaction.
pub(super) struct References {
    keys: Vec<ForeignKey>,
    tables: Vec<i64>,
}

/// A foreign key. Keys of partitions count as those of their whole table.
#[derive(sqlx_macros::FromRow)]
struct ForeignKey {
    child: i64,
    parent: i64,
    /// True if a deletion of the referenced row changes the rows that reference it, by `on delete cascade` and the
    /// like.
    changes_children: bool,
    is_deferrable: bool,
    /// The condition that no row references the row `t`, as SQL.
    is_unreferenced: String,
}

/// The rows of a table that may be deleted before any row is written. The others are deleted at the end, because rows
/// that still change may reference them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DeletedEarly {
    All,
    /// The rows of the table `t` that fulfill this condition.
    Those(String),
    /// All or none: Postgres refuses the deletion while another row references one of them.
    AllIfAllowed,
    None,
}

impl References {
    /// Reads the foreign keys that reference tables with these oids.
    pub(super) async fn read(conn: &mut PgConnection, tables: Vec<i64>) -> Result<References, Error> {
        let keys = sqlx::query_as(include_str!("references/keys.sql"));
        let keys = keys.bind(&tables).fetch_all(conn).await.during(INSPECT_TABLE)?;
        Ok(References { keys, tables })
    }

    /// Returns true if rows reference the table with this index.
    pub(super) fn is_referenced(&self, at: usize) -> bool {
        self.keys_to(at).next().is_some()
    }

    fn keys_to(&self, at: usize) -> impl Iterator<Item = &ForeignKey> {
        self.keys.iter().filter(move |key| key.parent == self.tables[at])
    }

    /// Returns true if the rows of the table with this index can't be deleted and inserted again without an effect on
    /// other tables.
    pub(super) fn are_in_the_way(&self, at: usize) -> bool {
        let mut others = self.keys_to(at).filter(|key| key.child != key.parent);
        others.any(|key| key.changes_children || !key.is_deferrable)
    }

    /// Returns the rows of the table with this index that may be deleted early.
    pub(super) fn deleted_early(&self, at: usize) -> DeletedEarly {
        if !self.is_referenced(at) {
            return DeletedEarly::All;
        }
        // Other tables than those of the transaction may have policies or triggers that nobody has looked at.
        if self.keys_to(at).all(|key| self.tables.contains(&key.child)) {
            let conditions: Vec<_> = self.keys_to(at).map(|key| &*key.is_unreferenced).collect();
            return DeletedEarly::Those(conditions.join(" and "));
        }
        match self.keys_to(at).any(|key| key.changes_children) {
            true => DeletedEarly::None,
            false => DeletedEarly::AllIfAllowed,
        }
    }

    /// Returns the indexes of the tables that can be emptied by one statement, out of `wanted`: no other table
    /// references them.
    pub(super) fn truncatable(&self, wanted: &BTreeSet<usize>) -> BTreeSet<usize> {
        let mut found = wanted.clone();
        loop {
            let is_free = |at: &usize| {
                let mut children = self.keys_to(*at).map(|key| key.child);
                children.all(|child| found.iter().any(|other| self.tables[*other] == child))
            };
            let next: BTreeSet<_> = found.iter().copied().filter(is_free).collect();
            if next == found {
                return found;
            }
            found = next;
        }
    }

    /// Returns the indexes of the tables in an order in which each comes after the tables that it references. A circle
    /// is entered through a deferrable key, which is checked at the end, else anywhere.
    pub(super) fn parents_first(&self) -> Vec<usize> {
        let places: HashMap<i64, usize> = self.tables.iter().enumerate().map(|(at, table)| (*table, at)).collect();
        let mut parents = vec![Vec::new(); self.tables.len()];
        for key in self.keys.iter().filter(|key| key.child != key.parent) {
            if let (Some(child), Some(parent)) = (places.get(&key.child), places.get(&key.parent)) {
                parents[*child].push((*parent, key.is_deferrable));
            }
        }
        let (mut order, mut left): (Vec<_>, BTreeSet<_>) = (Vec::new(), (0..self.tables.len()).collect());
        while let Some(any) = left.first().copied() {
            let is_free = |at: &&usize, may_defer: bool| {
                parents[**at]
                    .iter()
                    .all(|(parent, is_deferrable)| !left.contains(parent) || may_defer && *is_deferrable)
            };
            let free = left.iter().find(|at| is_free(at, false)).or_else(|| left.iter().find(|at| is_free(at, true)));
            let next = free.copied().unwrap_or(any);
            left.remove(&next);
            order.push(next);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(child: i64, parent: i64) -> ForeignKey {
        let is_unreferenced = format!("{child}>{parent}");
        ForeignKey { child, parent, changes_children: child == 70, is_deferrable: child == 60, is_unreferenced }
    }

    /// 10 → 20 → 30, 40 → 30, 50 ⇄ 60 of which one is deferrable, 10 → 50, 20 → 20, and keys of other tables.
    fn references() -> References {
        let keys = [(10, 20), (20, 30), (40, 30), (50, 60), (60, 50), (10, 50), (20, 20), (70, 10), (80, 40)];
        let keys = keys.map(|(child, parent)| key(child, parent)).into();
        References { keys, tables: vec![10, 20, 30, 40, 50, 60] }
    }

    #[test]
    fn parents_come_before_children_also_in_a_circle_with_a_deferrable_key() {
        let references = references();
        let order: Vec<i64> = references.parents_first().into_iter().map(|at| references.tables[at]).collect();
        let place = |table| order.iter().position(|found| *found == table).unwrap();
        for (child, parent) in [(10, 20), (20, 30), (40, 30), (50, 60), (10, 50)] {
            assert!(place(parent) < place(child), "{parent} before {child} in {order:?}");
        }
        assert_eq!(order.len(), 6);
        // A deferrable key outside of a circle counts: what happens to children when a parent goes is not deferred.
        let references = References { keys: vec![key(60, 70)], tables: vec![60, 70] };
        assert_eq!(references.parents_first(), [1, 0]);
    }

    #[test]
    fn rows_that_others_may_reference_are_deleted_later() {
        let references = references();
        let of = |table: i64| references.deleted_early(references.tables.iter().position(|it| *it == table).unwrap());
        assert_eq!(of(10), DeletedEarly::None);
        assert_eq!(of(30), DeletedEarly::Those("20>30 and 40>30".to_owned()));
        assert_eq!(of(40), DeletedEarly::AllIfAllowed);
        let without = References { keys: Vec::new(), ..references };
        assert_eq!(without.deleted_early(0), DeletedEarly::All);
    }

    #[test]
    fn a_table_is_emptied_with_all_that_reference_it() {
        let references = references();
        // 10 and 40 are referenced by tables that stay, so nothing that they reference can be emptied either.
        assert_eq!(references.truncatable(&(0..6).collect()), BTreeSet::new());
        let keys = vec![key(20, 30), key(40, 50)];
        let references = References { keys, ..references };
        assert_eq!(references.truncatable(&[1, 2, 4].into()), [1, 2].into());
    }
}
