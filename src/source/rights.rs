//! What the role may read of a dataset's table.

use sqlx::PgConnection;

use crate::dataset::fault::Fault;
use crate::dataset::{Dataset, TableSchema};
use crate::source::quote::relation;

/// What keeps the role from reading the dataset's table, and what its owner does about it; `None`: nothing. Takes no lock, so it waits
/// for nobody.
///
/// # Errors
/// If the database fails.
pub(crate) async fn unreadable(
    conn: &mut PgConnection,
    dataset: &Dataset,
    schema: &TableSchema,
) -> Result<Option<Fault>, sqlx::Error> {
    let rights: Option<(String, bool, bool)> = sqlx::query_as(
        // Of the whole table: an export locks it, for which rights to its columns are not enough.
        "-- source.rights.unreadable
         select quote_ident(current_user), has_table_privilege(t.oid, 'select'), row_security_active(t.oid)
         from pg_class t where t.oid = to_regclass($1)",
    )
    .bind(relation(&schema.table))
    .fetch_optional(conn)
    .await?;
    let table = relation(&schema.table);
    let why = match rights {
        Some((role, false, _)) => {
            format!("the database role {role} may not read it: its owner runs `grant select on {table} to {role}`")
        }
        Some((role, true, true)) => format!(
            "row-level security may hide rows of it from the database role {role}: a superuser runs `alter role {role} bypassrls`, or, where \
             {role} owns the table, {role} runs `alter table {table} no force row level security`"
        ),
        Some((_, true, false)) | None => return Ok(None),
    };
    Ok(Some(Fault { dataset: dataset.name.clone(), member: "table", item: None, why }))
}
