//! Locks on an application's relations.
//!
//! A session that has such a lock, or a snapshot, never waits for another lock. A transaction of the application may
//! have that one and wait for the first, or for the snapshot, as CREATE INDEX CONCURRENTLY does. Postgres would end one
//! of the two transactions. It doesn't even see the circle if two of our sessions are part of it, of which one waits
//! for the other in this process.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::quote;
use cdc_dataset::RelationKind;
use pg_session::failure::SqlFailure;
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

/// The statement after which the transaction waits for no lock. Zero would mean no limit.
pub(super) const NO_WAIT: &str = "set local lock_timeout = '1ms'";

/// The relations beneath others, of which several statements begin.
pub(super) const BENEATH: (&str, &str) = ("relation_locks/beneath.sql", include_str!("relation_locks/beneath.sql"));

pub(super) const READS_ALONE: (&str, &str) =
    ("relation_locks/reads_alone.sql", include_str!("relation_locks/reads_alone.sql"));

/// A relation to be locked, with its kind if it exists.
pub(super) type Lockable<'t> = (&'t Table, Option<RelationKind>);

/// The places that locks need in Postgres's lock table. A statement of somebody else that finds no place fails.
#[derive(sqlx_macros::FromRow)]
pub(super) struct Room {
    /// The number of the relations and their partitions.
    pub(super) relations: i64,
    /// The number of places that a read of one relation needs beside these.
    pub(super) of_read: i64,
    /// The number of places that are surely free. There may be more of them.
    pub(super) free: i64,
}

impl Room {
    /// Counts the places for these relations. `one_by_one` says which of them are read one partition after the other.
    pub(super) async fn find(
        conn: &mut PgConnection,
        relations: &[Lockable<'_>],
        one_by_one: &[bool],
    ) -> Result<Room, sqlx::Error> {
        let statement = with_pieces(include_str!("relation_locks/room.sql"), &[BENEATH, READS_ALONE]);
        sqlx::query_as(AssertSqlSafe(statement)).bind(names(relations)).bind(one_by_one).fetch_one(conn).await
    }
}

/// Returns the statements that lock relations in ACCESS SHARE mode, with their partitions, or with the tables that a
/// view reads. They wait for no lock, and run no code of an owner. A relation without a kind doesn't exist, which its
/// lock reports.
pub(super) fn locks<'t>(relations: impl IntoIterator<Item = Lockable<'t>>) -> String {
    let (mut lockable, mut others) = (Vec::new(), Vec::new());
    for (relation, kind) in relations {
        match kind.is_none_or(RelationKind::can_be_locked) {
            true => lockable.push(quote::relation(relation)),
            // LOCK takes neither materialized views nor foreign tables.
            false => others.push(format!("select from {} where false", quote::relation(relation))),
        }
    }
    let mut statements = format!("{NO_WAIT};");
    if !lockable.is_empty() {
        statements.push_str(&format!("\nlock table {} in access share mode;", lockable.join(", ")));
    }
    if !others.is_empty() {
        // To plan a join, Postgres may ask a foreign server.
        statements.push_str(&format!("\n{};", others.join(" union all ")));
    }
    statements
}

fn names(relations: &[Lockable<'_>]) -> Vec<String> {
    relations.iter().map(|(relation, _)| quote::relation(relation)).collect()
}

/// Returns true if a lock was not acquired in time.
pub(super) fn is_conflict(cause: &sqlx::Error) -> bool {
    matches!(SqlFailure::of(cause), SqlFailure::LockTimeout | SqlFailure::Conflict)
}

/// A relation on which another session holds or awaits an ACCESS EXCLUSIVE lock.
#[derive(sqlx_macros::FromRow)]
pub(super) struct Locked {
    /// Its name, as SQL.
    sql: String,
    /// Its name, as a message has it. `None`: it is one of those that were asked for.
    pub(super) beneath: Option<String>,
    /// True for a table or a partition that the role may lock alone.
    can_wait: bool,
}

impl Locked {
    /// Looks for a locked relation among these, their partitions and the tables that they read.
    pub(super) async fn find(
        conn: &mut PgConnection,
        relations: &[Lockable<'_>],
    ) -> Result<Option<Locked>, sqlx::Error> {
        let statement = with_pieces(include_str!("relation_locks/locked.sql"), &[BENEATH]);
        sqlx::query_as(AssertSqlSafe(statement)).bind(names(relations)).fetch_optional(conn).await
    }

    /// Returns the statement that locks this relation alone. LOCK of a view would also lock what it reads, and a query
    /// of a materialized view or a foreign table has a snapshot.
    pub(super) fn lock_alone(&self) -> Option<String> {
        self.can_wait.then(|| format!("lock table only {} in access share mode", self.sql))
    }
}
