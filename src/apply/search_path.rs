//! Sets the search_path of the sessions in the target.

use std::sync::LazyLock;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::apply::catalog::INSPECT_TABLE;
use crate::apply::statement::run;
use crate::apply::trust::TRUSTED_ROLES;
use crate::apply::{During, Error};
use crate::connection::statement::with_pieces;
use crate::connection::{TARGET_SEARCH_PATH, quoted};

static CLOSED_SCHEMAS: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("closed_schemas.sql"), &[TRUSTED_ROLES]));

/// Sets the search_path of the role's own sessions, to look up a type. The source may name it without its schema.
///
/// Others may have functions and operators in these schemas. So until another path is set, no statement may call any.
pub(super) async fn use_role_search_path(conn: &mut PgConnection) -> Result<(), Error> {
    let set = "select pg_catalog.set_config('search_path', pg_catalog.current_setting('cdc_export.role_path'), true)";
    run(conn, "search_path.role", set).await.map(drop).during(INSPECT_TABLE)
}

/// Sets the search_path under which the table's triggers run: the role's own, without the schemas in which a role that
/// isn't trusted may have put functions. A trigger's function may name its tables without their schema.
pub(super) async fn use_trigger_search_path(conn: &mut PgConnection, trusted: &[String]) -> Result<(), Error> {
    use_role_search_path(conn).await?;
    let schemas: Vec<String> = sqlx::query_scalar(
        "-- apply.search_path.schemas\n select pg_catalog.current_schemas(false)::pg_catalog.text[]",
    )
    .fetch_one(&mut *conn)
    .await
    .during(INSPECT_TABLE)?;
    use_own_search_path(conn).await?;
    let closed: Vec<String> = sqlx::query_scalar(AssertSqlSafe(CLOSED_SCHEMAS.as_str()))
        .bind(trusted)
        .bind(schemas)
        .fetch_all(&mut *conn)
        .await
        .during(INSPECT_TABLE)?;
    let closed: String = closed.iter().filter(|name| *name != "pg_catalog").map(|name| quoted(name) + ", ").collect();
    let set = format!("set local search_path = pg_catalog, {closed}pg_temp");
    run(conn, "search_path.trigger", &set).await.map(drop).during(INSPECT_TABLE)
}

/// Sets our own search_path again.
pub(super) async fn use_own_search_path(conn: &mut PgConnection) -> Result<(), Error> {
    run(conn, "search_path.own", &format!("set local search_path = {TARGET_SEARCH_PATH}"))
        .await
        .map(drop)
        .during(INSPECT_TABLE)
}
