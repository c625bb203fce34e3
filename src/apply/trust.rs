//! Refuses objects of the target whose owners could run code with the rights of our role.
//!
//! A write to a table runs its triggers, its constraints, and the functions of its types. Their owners decide what that
//! code is, and so does the owner of the table.

use std::sync::LazyLock;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::apply::catalog::{INSPECT_TABLE, POSITIONS_SCHEMA};
use crate::apply::{During, Error};
use crate::connection::statement::with_pieces;
use crate::dataset::Table;

/// The part of a statement that selects the trusted roles.
pub(super) const TRUSTED_ROLES: (&str, &str) = ("trusted_roles.sql", include_str!("trusted_roles.sql"));

static OWNERS: LazyLock<String> = LazyLock::new(|| with_pieces(include_str!("owners.sql"), &[TRUSTED_ROLES]));

/// An object of a role that isn't trusted.
#[derive(sqlx_macros::FromRow)]
struct ForeignObject {
    is_table: bool,
    name: String,
    owner: String,
    /// The current role.
    role: String,
}

/// Returns an error if the table, its schema, or a type or function that it uses belongs to a role that isn't trusted.
///
/// Trusted are the current role, the roles that it is a member of, superusers and `trusted`. The caller holds a lock on
/// the table, so that it stays as it is until the end of the transaction. Without the lock, or if there is no such
/// table, the result is only good for an early refusal.
pub(super) async fn require_owners(conn: &mut PgConnection, table: &Table, trusted: &[String]) -> Result<(), Error> {
    let found: Option<ForeignObject> = sqlx::query_as(AssertSqlSafe(OWNERS.as_str()))
        .bind(trusted)
        .bind(&table.schema)
        .bind(&table.name)
        .fetch_optional(conn)
        .await
        .during(INSPECT_TABLE)?;
    let Some(ForeignObject { is_table, name, owner, role }) = found else {
        return Ok(());
    };
    let code = if is_table { "triggers" } else { "code" };
    let remedy = match table.schema.as_deref() {
        Some(POSITIONS_SCHEMA) => format!("drop it, or make {role} its owner"),
        _ => format!(
            "make {role} its owner or a member of {owner}, or if you trust {owner}, give --trust-owner {owner} with --table"
        ),
    };
    let why = format!("{name} belongs to {owner}, whose {code} would run as {role}: {remedy}");
    Err(Error::refused("another_owner", why))
}
