//! What the role may read of a dataset's table.

use sqlx::PgConnection;

use crate::dataset::fault::Fault;
use crate::dataset::{Dataset, TableSchema};
use crate::source::quote::{quoted, relation};

/// What keeps the role from reading all that the dataset's exports read, and what its owner does about it; `None`: nothing. Takes no
/// lock, so it waits for nobody.
///
/// # Errors
/// If the database fails.
pub(crate) async fn unreadable(
    conn: &mut PgConnection,
    dataset: &Dataset,
    schema: &TableSchema,
) -> Result<Option<Fault>, sqlx::Error> {
    let names: Vec<&str> = schema.types.keys().map(String::as_str).collect();
    let rights: Option<(String, Vec<String>, bool)> = sqlx::query_as(
        "-- source.rights.unreadable
         select quote_ident(current_user),
           array(
             select a.attname::text from pg_attribute a
             where a.attrelid = t.oid and a.attname = any ($2) and a.attnum > 0
               and not has_column_privilege(t.oid, a.attnum, 'select')
             order by a.attnum),
           row_security_active(t.oid)
         from pg_class t where t.oid = to_regclass($1)",
    )
    .bind(relation(&schema.table))
    .bind(&names)
    .fetch_optional(conn)
    .await?;
    let Some((role, denied, has_policies)) = rights else { return Ok(None) };
    let table = relation(&schema.table);
    let why = if !denied.is_empty() {
        let which = if denied.len() == names.len() {
            String::new()
        } else {
            format!(" ({})", denied.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "))
        };
        format!("the database role {role} may not read it: its owner runs `grant select{which} on {table} to {role}`")
    } else if has_policies {
        format!(
            "row-level security may hide rows of it from the database role {role}: a superuser runs `alter role {role} bypassrls`"
        )
    } else {
        return Ok(None);
    };
    Ok(Some(Fault { dataset: dataset.name.clone(), member: "table", item: None, why }))
}
