//! Refuses relations of the target that aren't the current role's own plain tables.
//!
//! A write to a table runs its triggers, its rules and its policies. Somebody else may have written these, and they
//! would run with the rights of our role. A foreign key can stop a write.

use sqlx::PgConnection;

use crate::apply::{During, Error, INSPECT_TABLE};
use pg_session::table_name::Table;

pub(super) struct OwnRelation {
    pub(super) oid: i64,
    /// The reason why the role may not write to it.
    obstacle: Option<String>,
}

#[derive(sqlx_macros::FromRow)]
struct FoundRelation {
    oid: Option<i64>,
    /// The owner of the schema or of the relation, if it is another role that isn't trusted.
    other_owner: Option<String>,
    obstacle: Option<String>,
    role: String,
}

/// Without a lock on the relation, the result is only good for an early refusal.
///
/// # Errors
/// If the relation belongs to another role than the current one. The owner of its schema could exchange the relation,
/// so that has to be the current role, a superuser, or the owner of the database.
pub(super) async fn find(conn: &mut PgConnection, table: &Table) -> Result<Option<OwnRelation>, Error> {
    let found: Option<FoundRelation> = sqlx::query_as(include_str!("ownership.sql"))
        .bind(&table.schema)
        .bind(&table.name)
        .fetch_optional(conn)
        .await
        .during(INSPECT_TABLE)?;
    let Some(FoundRelation { oid, other_owner, obstacle, role }) = found else { return Ok(None) };
    if let Some(other) = other_owner {
        let why = format!("{other}, and not to {role}: make {role} its owner, or connect as the owner");
        return Err(Error::refused("another_owner", why));
    }
    Ok(oid.map(|oid| OwnRelation { oid, obstacle }))
}

impl OwnRelation {
    /// Returns an error if the relation is not a table that can be written to without further effects.
    pub(super) fn require_plain(&self, table: &Table) -> Result<(), Error> {
        match &self.obstacle {
            Some(obstacle) => Err(Error::refused("target_changed", format!("{table} {obstacle}: undo that"))),
            None => Ok(()),
        }
    }
}
