//! Makes the target's table, and follows changes of the source's columns and key.

use std::collections::BTreeMap;

use sqlx::PgConnection;

use crate::apply::statement::{run, run_unless_exists};
use crate::apply::table::{TargetTable, relation, target_columns};
use crate::apply::{During, Error, INSPECT_TABLE, TargetPosition, TargetSettings, ownership};
use cdc_manifest::{Chained, ManifestColumn};
use pg_session::quoted;
use pg_session::table_name::Table;

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

/// Creates the table without its key. Adds a remark for each column that is text in place of its type.
pub(super) async fn create_table(
    conn: &mut PgConnection,
    table: &Table,
    export: &Chained,
    settings: &TargetSettings,
    remarks: &mut Vec<String>,
) -> Result<TargetTable, Error> {
    let mut columns = Vec::new();
    for column in target_columns(export, settings) {
        columns.push(format!("{} {}", quoted(&column.name), target_type(conn, column, remarks).await?));
    }
    let made = format!("create table {} ({})", relation(table), columns.join(", "));
    run(conn, "alter.make", &made).await.during("to create the table")?;
    let missing = || Error::refused("target_changed", format!("{table} was dropped"));
    let made = ownership::find(conn, table).await?.ok_or_else(missing)?;
    TargetTable::read(conn, table, made.oid).await
}

/// Gives the table the columns of the export, and removes a former key. The table has no rows.
///
/// Columns that the source has dropped stay.
pub(super) async fn follow_source(
    conn: &mut PgConnection,
    target_table: &mut TargetTable,
    export: &Chained,
    before: &TargetPosition,
    settings: &TargetSettings,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    let mut changes = Vec::new();
    // A key that somebody has added to a table without a key stays.
    let is_unwanted = !export.key.is_empty() || target_table.key == before.details.key;
    if target_table.key != export.key && !target_table.key.is_empty() && is_unwanted {
        changes.push(format!("drop constraint {}", quoted(&primary_key(conn, target_table.oid).await?)));
        let nullable = target_table.key.iter().map(|name| format!("alter column {} drop not null", quoted(name)));
        changes.extend(nullable);
    }
    let had: BTreeMap<_, _> = before.details.columns.iter().map(|column| (&column.name, column)).collect();
    for column in target_columns(export, settings) {
        let name = &column.name;
        let found = target_table.columns.get(name);
        let is_same = found == before.details.table.get(name) && had.get(name) == Some(&column);
        if found.is_some() && is_same {
            continue;
        }
        let type_name = target_type(conn, column, remarks).await?;
        let name = quoted(name);
        changes.push(match found {
            Some(found) if found.type_name == type_name => continue,
            Some(_) => format!("alter column {name} type {type_name} using null::{type_name}"),
            None => format!("add column {name} {type_name}"),
        });
    }
    if !changes.is_empty() {
        let alter = format!("alter table {} {}", target_table.name, changes.join(", "));
        run(conn, "alter.follow", &alter).await.during("to alter the table")?;
        target_table.refresh(conn).await?;
    }
    Ok(())
}

pub(super) async fn add_missing_key(
    conn: &mut PgConnection,
    target_table: &TargetTable,
    export: &Chained,
) -> Result<(), Error> {
    if export.key.is_empty() || target_table.key == export.key {
        return Ok(());
    }
    let key: Vec<_> = export.key.iter().map(|name| quoted(name)).collect();
    let add = format!("alter table {} add primary key ({})", target_table.name, key.join(", "));
    run(conn, "alter.add_key", &add).await.map(drop).during("the primary key")
}

async fn primary_key(conn: &mut PgConnection, table: i64) -> Result<String, Error> {
    let name = sqlx::query_scalar(
        "-- apply.alter.primary_key
         select conname::text from pg_constraint where conrelid = $1::int8::oid and contype = 'p'",
    );
    name.bind(table).fetch_one(conn).await.during(INSPECT_TABLE)
}

/// Returns the type of a column in the target: the source's type, or the type beneath a domain. Returns text for a type
/// that is not Postgres's own, and for one whose texts mean something else on another server.
///
/// Postgres may accept a type name that contains a comment, so marks of comments and of further statements are refused.
async fn target_type(
    conn: &mut PgConnection,
    column: &ManifestColumn,
    remarks: &mut Vec<String>,
) -> Result<String, Error> {
    let type_name = column.base.as_ref().unwrap_or(&column.type_name);
    let is_plain = !["--", "/*", ";", "\n"].iter().any(|mark| type_name.contains(mark));
    let known = sqlx::query_scalar(
        "-- apply.alter.type
         select exists (
           select from pg_type t
           where t.oid = to_regtype($1)::oid and t.typnamespace = 'pg_catalog'::regnamespace
             and t.typname !~ '^_?(money|char|aclitem|gtsvector|pg_(node_tree|ndistinct|dependencies|mcv_list)|reg.*)$')",
    );
    if is_plain && known.bind(type_name).fetch_one(conn).await.during("to look up a type")? {
        return Ok(type_name.clone());
    }
    remarks.push(format!("the column {} is text there: apply makes no column of type {type_name}", column.name));
    Ok("text".to_owned())
}
