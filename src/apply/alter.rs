//! Creates the target's table, and follows changes of the source's columns.

use sqlx::PgConnection;

use crate::apply::catalog::{INSPECT_TABLE, OPERATION, columns, relation, target_columns};
use crate::apply::statement::run;
use crate::apply::{During, Error, Settings, TargetPosition};
use crate::connection::{SEARCH_PATH, quoted};
use crate::dataset::Table;
use crate::manifest::{Chained, ManifestColumn};

/// Sets the search_path of the role's own sessions.
///
/// The target's types may be named without their schema, and the table's triggers may rely on this path. Until
/// [`use_own_search_path`], our statements name the schema of everything else that they use.
pub(super) async fn use_role_search_path(conn: &mut PgConnection) -> Result<(), Error> {
    let set = "select set_config('search_path', current_setting('cdc_export.role_path'), true)";
    run(conn, "alter.as_the_role", set).await.map(drop).during(INSPECT_TABLE)
}

/// Sets our own search_path again.
pub(super) async fn use_own_search_path(conn: &mut PgConnection) -> Result<(), Error> {
    run(conn, "alter.as_ourselves", &format!("set local search_path = {SEARCH_PATH}"))
        .await
        .map(drop)
        .during(INSPECT_TABLE)
}

const SAVEPOINT: &str = "savepoint cdc_apply_alter";
const RETYPE: &str = "to change the type of a column";

/// Returns the type of a column in the target. Returns text if the target has no such type.
///
/// Postgres may accept a type name that contains a comment, so marks of comments and of further statements are refused.
async fn target_type(
    conn: &mut PgConnection,
    column: &ManifestColumn,
    remarks: &mut Vec<String>,
) -> Result<String, Error> {
    let is_plain = !["--", "/*", ";", "\n"].iter().any(|mark| column.type_name.contains(mark));
    let known: bool = sqlx::query_scalar("-- apply.alter.type\n select to_regtype($1) is not null")
        .bind(&column.type_name)
        .fetch_one(conn)
        .await
        .during("to look up a type")?;
    if is_plain && known {
        return Ok(column.type_name.clone());
    }
    remarks.push(format!("the target has no type {}: the column {} is text there", column.type_name, column.name));
    Ok("text".to_owned())
}

/// Creates the table without its key.
pub(super) async fn create_table(
    conn: &mut PgConnection,
    table: &Table,
    export: &Chained,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    if let Some(schema) = &table.schema {
        let there: bool =
            sqlx::query_scalar("-- apply.alter.schema\n select to_regnamespace(quote_ident($1)) is not null")
                .bind(schema)
                .fetch_one(&mut *conn)
                .await
                .during(INSPECT_TABLE)?;
        if !there {
            run(conn, "alter.make_schema", &format!("create schema {}", quoted(schema)))
                .await
                .during("to create a schema")?;
        }
    }
    use_role_search_path(conn).await?;
    let mut columns = Vec::new();
    for column in target_columns(export) {
        let type_name = target_type(conn, column, remarks).await?;
        let null = if export.key.contains(&column.name) { " not null" } else { "" };
        columns.push(format!("{} {type_name}{null}", quoted(&column.name)));
    }
    let made = format!("create table {} ({})", relation(table), columns.join(", "));
    run(conn, "alter.make", &made).await.during("to create the table")?;
    use_own_search_path(conn).await
}

/// Adds a column to the table.
pub(super) async fn add_column(
    conn: &mut PgConnection,
    table: &str,
    column: &str,
    type_name: &str,
) -> Result<(), Error> {
    let add = format!("alter table {table} add column {} {type_name}", quoted(column));
    run(conn, "alter.add", &add).await.map(drop).during("to add a column")
}

/// Adds the new columns of the source, and changes the types of retyped columns. Keeps columns that the source has
/// dropped.
pub(super) async fn follow_source_columns(
    conn: &mut PgConnection,
    table: &str,
    export: &Chained,
    before: Option<&TargetPosition>,
    settings: &Settings,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    let present = columns(conn, table).await?;
    use_role_search_path(conn).await?;
    let has = |name: &str| export.columns.iter().any(|column| column.name == name);
    let gone = before.iter().flat_map(|before| &before.details.columns).map(|column| &*column.name);
    let gone = gone.filter(|name| *name != OPERATION && !has(name));
    for name in gone {
        remarks.push(format!("the source has no column {name} any more: the table keeps it with its last values"));
    }
    let had = |name: &str| before.and_then(|before| before.details.columns.iter().find(|column| column.name == name));
    for column in target_columns(export) {
        let name = &column.name;
        let Some(found) = present.iter().find(|present| present.name == *name) else {
            // No delta contains the column's values in unchanged rows.
            if had(name).is_some() && !export.is_base() {
                return Err(Error::ColumnRemoved(name.clone()));
            }
            if !settings.adds_columns {
                let why =
                    format!("{table} has no column {name}, which the source has: add it, or let --schema add do so");
                return Err(Error::refused("schema_changed", why));
            }
            let type_name = target_type(conn, column, remarks).await?;
            add_column(conn, table, name, &type_name).await?;
            continue;
        };
        let retyped = had(name).filter(|had| had.type_name != column.type_name && had.type_name == found.type_name);
        if retyped.is_some() && export.is_base() {
            if !settings.adds_columns {
                let why = format!(
                    "the column {name} of {table} is {}, and {} in the source",
                    found.type_name, column.type_name
                );
                return Err(Error::refused("schema_changed", why));
            }
            let type_name = target_type(conn, column, remarks).await?;
            let name = quoted(name);
            let retype = format!("alter table {table} alter column {name} type {type_name}");
            run(conn, "alter.savepoint", SAVEPOINT).await.during(INSPECT_TABLE)?;
            if run(conn, "alter.retype", &format!("{retype} using {name}::text::{type_name}")).await.is_err() {
                // The values can't be converted to the new type. The full export contains all of them.
                run(conn, "alter.roll_back", &format!("rollback to {SAVEPOINT}")).await.during(INSPECT_TABLE)?;
                let drop_default = format!("alter table {table} alter column {name} drop default");
                run(conn, "alter.drop_default", &drop_default).await.during(RETYPE)?;
                run(conn, "alter.empty", &format!("{retype} using null::{type_name}")).await.during(RETYPE)?;
            }
        }
    }
    use_own_search_path(conn).await
}
