//! Makes the target's table, and alters it as the source's columns change.

use sqlx::PgConnection;

use crate::apply::catalog::{DEED, OPERATION, columns, of_table, relation};
use crate::apply::statement::run;
use crate::apply::{Doing, Error, Settings, TargetPosition};
use crate::connection::{SEARCH_PATH, quoted};
use crate::dataset::Table;
use crate::manifest::{Chained, ManifestColumn};

/// From here on names are looked up as the role's own sessions do: types may be named without their schema, and the
/// table's triggers may rely on it. Our statements name the schema of all else that they use meanwhile.
pub(super) async fn as_the_role(conn: &mut PgConnection) -> Result<(), Error> {
    let set = "select set_config('search_path', current_setting('cdc_export.role_path'), true)";
    run(conn, "alter.as_the_role", set).await.map(drop).doing(DEED)
}

/// The end of that.
pub(super) async fn as_ourselves(conn: &mut PgConnection) -> Result<(), Error> {
    run(conn, "alter.as_ourselves", &format!("set local search_path = {SEARCH_PATH}")).await.map(drop).doing(DEED)
}

const SAVEPOINT: &str = "savepoint cdc_apply_alter";
const RETYPE: &str = "a column's new type";

/// A type as the target has it; one that it doesn't have is text. What Postgres reads as a type is one, and beside it
/// has nothing but comments.
async fn type_here(
    conn: &mut PgConnection,
    column: &ManifestColumn,
    remarks: &mut Vec<String>,
) -> Result<String, Error> {
    let is_plain = !["--", "/*", ";", "\n"].iter().any(|mark| column.type_name.contains(mark));
    let known: bool = sqlx::query_scalar("-- apply.alter.type\n select to_regtype($1) is not null")
        .bind(&column.type_name)
        .fetch_one(conn)
        .await
        .doing("to look for a type")?;
    if is_plain && known {
        return Ok(column.type_name.clone());
    }
    remarks.push(format!("the target has no type {}: the column {} is text there", column.type_name, column.name));
    Ok("text".to_owned())
}

/// Makes the table, without its key.
pub(super) async fn make(
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
                .doing(DEED)?;
        if !there {
            run(conn, "alter.make_schema", &format!("create schema {}", quoted(schema)))
                .await
                .doing("to make a schema")?;
        }
    }
    as_the_role(conn).await?;
    let mut columns = Vec::new();
    for column in of_table(export) {
        let type_name = type_here(conn, column, remarks).await?;
        let null = if export.key.contains(&column.name) { " not null" } else { "" };
        columns.push(format!("{} {type_name}{null}", quoted(&column.name)));
    }
    let made = format!("create table {} ({})", relation(table), columns.join(", "));
    run(conn, "alter.make", &made).await.doing("to make the table")?;
    as_ourselves(conn).await
}

/// Adds a column.
pub(super) async fn add(conn: &mut PgConnection, table: &str, column: &str, type_name: &str) -> Result<(), Error> {
    let add = format!("alter table {table} add column {} {type_name}", quoted(column));
    run(conn, "alter.add", &add).await.map(drop).doing("a new column")
}

/// Adds the columns that came, and gives those that were retyped their new type. One that is gone in the source stays.
pub(super) async fn follow(
    conn: &mut PgConnection,
    table: &str,
    export: &Chained,
    before: Option<&TargetPosition>,
    settings: &Settings,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    let present = columns(conn, table).await?;
    as_the_role(conn).await?;
    let has = |name: &str| export.columns.iter().any(|column| column.name == name);
    let gone = before.iter().flat_map(|before| &before.details.columns).map(|column| &*column.name);
    let gone = gone.filter(|name| *name != OPERATION && !has(name));
    for name in gone {
        remarks
            .push(format!("the source has no column {name} any more: the table keeps it, with the values of before"));
    }
    let had = |name: &str| before.and_then(|before| before.details.columns.iter().find(|column| column.name == name));
    for column in of_table(export) {
        let name = &column.name;
        let Some(found) = present.iter().find(|present| present.name == *name) else {
            // Its values in rows that nobody changes come with no delta.
            if had(name).is_some() && !export.is_base() {
                return Err(Error::Lost(name.clone()));
            }
            if !settings.adds_columns {
                let why =
                    format!("{table} has no column {name}, which the source has: add it, or let --schema add do so");
                return Err(Error::refused("schema_changed", why));
            }
            let type_name = type_here(conn, column, remarks).await?;
            add(conn, table, name, &type_name).await?;
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
            let type_name = type_here(conn, column, remarks).await?;
            let name = quoted(name);
            let retype = format!("alter table {table} alter column {name} type {type_name}");
            run(conn, "alter.savepoint", SAVEPOINT).await.doing(DEED)?;
            if run(conn, "alter.retype", &format!("{retype} using {name}::text::{type_name}")).await.is_err() {
                // Its values have no form in the new type. All of them come anew.
                run(conn, "alter.roll_back", &format!("rollback to {SAVEPOINT}")).await.doing(DEED)?;
                let drop_default = format!("alter table {table} alter column {name} drop default");
                run(conn, "alter.drop_default", &drop_default).await.doing(RETYPE)?;
                run(conn, "alter.empty", &format!("{retype} using null::{type_name}")).await.doing(RETYPE)?;
            }
        }
    }
    as_ourselves(conn).await
}
