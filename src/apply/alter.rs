//! Creates the target's table, and follows changes of the source's columns.

use sqlx::PgConnection;

use crate::apply::catalog::{INSPECT_TABLE, columns, relation, target_columns};
use crate::apply::search_path::{use_own_search_path, use_role_search_path, use_trigger_search_path};
use crate::apply::statement::{run, run_unless_exists};
use crate::apply::trust;
use crate::apply::{During, Error, Settings, TargetPosition};
use crate::connection::failure::SqlFailure;
use crate::connection::quoted;
use crate::dataset::Table;
use crate::manifest::{Chained, ManifestColumn};

const SAVEPOINT: &str = "savepoint cdc_apply_alter";
const RETYPE: &str = "to change the type of a column";

/// The temporary table that has a column of a type which is about to be used.
const PROBE: &str = "cdc_apply_type";

/// Returns the type of a column in the target as the source names it. Returns text if the target has no such type.
///
/// The search_path has to be the role's own.
///
/// Postgres may accept a type name that contains a comment, so marks of comments and of further statements are refused.
async fn target_type(
    conn: &mut PgConnection,
    column: &ManifestColumn,
    remarks: &mut Vec<String>,
) -> Result<String, Error> {
    let is_plain = !["--", "/*", ";", "\n"].iter().any(|mark| column.type_name.contains(mark));
    let known: bool = sqlx::query_scalar("-- apply.alter.type\n select pg_catalog.to_regtype($1) is not null")
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

/// Returns the type of a new or retyped column in the target, with its schema.
///
/// A change of the column's type runs the type's code. So this function first requires an owner that is trusted. It
/// makes a temporary table of the type, which runs no code.
async fn trusted_type(
    conn: &mut PgConnection,
    column: &ManifestColumn,
    settings: &Settings,
    remarks: &mut Vec<String>,
) -> Result<String, Error> {
    use_role_search_path(conn).await?;
    let type_name = target_type(conn, column, remarks).await?;
    let make = format!("create temporary table {PROBE} (c {type_name}) on commit drop");
    run(conn, "alter.probe", &make).await.during(RETYPE)?;
    use_own_search_path(conn).await?;
    let probe = Table { schema: Some("pg_temp".to_owned()), name: PROBE.to_owned() };
    trust::require_owners(conn, &probe, &settings.trusted_owners).await?;
    let found = columns(conn, &format!("pg_temp.{PROBE}")).await?;
    run(conn, "alter.drop_probe", &format!("drop table pg_temp.{PROBE}")).await.during(RETYPE)?;
    Ok(found.into_iter().next().map_or(type_name, |column| column.type_name))
}

/// Creates the schema if it is missing.
pub(super) async fn create_schema(conn: &mut PgConnection, schema: &str) -> Result<(), Error> {
    let there: bool = sqlx::query_scalar("-- apply.alter.schema\n select to_regnamespace(quote_ident($1)) is not null")
        .bind(schema)
        .fetch_one(&mut *conn)
        .await
        .during(INSPECT_TABLE)?;
    if there {
        return Ok(());
    }
    let create = format!("-- apply.alter.make_schema\n create schema {}", quoted(schema));
    run_unless_exists(conn, create).await.during("to create a schema")
}

/// Creates the table without its key. Runs no code of its types.
pub(super) async fn create_table(
    conn: &mut PgConnection,
    table: &Table,
    export: &Chained,
    settings: &Settings,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    use_role_search_path(conn).await?;
    let mut columns = Vec::new();
    for column in target_columns(export, settings) {
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
    let has = |name: &str| export.columns.iter().any(|column| column.name == name);
    let gone = before.iter().flat_map(|before| &before.details.columns).map(|column| &*column.name);
    let keeps = |name: &str| present.iter().any(|column| column.name == name);
    let gone = gone.filter(|name| !has(name) && keeps(name));
    // A table without a key is replaced with each export.
    for name in gone.filter(|_| !export.key.is_empty()) {
        remarks.push(format!("the source has no column {name} any more: the table keeps it with its last values"));
    }
    let had = |name: &str| before.and_then(|before| before.details.columns.iter().find(|column| column.name == name));
    for column in target_columns(export, settings) {
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
            let type_name = trusted_type(conn, column, settings, remarks).await?;
            use_trigger_search_path(conn, &settings.trusted_owners).await?;
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
            let type_name = trusted_type(conn, column, settings, remarks).await?;
            use_trigger_search_path(conn, &settings.trusted_owners).await?;
            let name = quoted(name);
            let retype = format!("alter table {table} alter column {name} type {type_name}");
            run(conn, "alter.savepoint", SAVEPOINT).await.during(INSPECT_TABLE)?;
            let converted =
                run(conn, "alter.retype", &format!("{retype} using {name}::pg_catalog.text::{type_name}")).await;
            if converted.as_ref().is_err_and(|error| SqlFailure::of(error) == SqlFailure::LockTimeout) {
                converted.during(RETYPE)?;
            } else if converted.is_err() {
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
