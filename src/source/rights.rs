//! The role's rights to a dataset's table, which are checked before an export fails for lack of them.

use sqlx::PgConnection;
use sqlx::postgres::types::Oid;

use crate::dataset::fault::Fault;
use crate::dataset::{Dataset, RelationKind, Table};
use crate::source::quote::{quoted, relation};
use crate::source::{Error, Source};

/// A dataset's table, as the database role sees it.
pub(crate) struct TableAccess {
    /// The table with its schema, as the role's own search_path finds it. `None`: there is none, or it is in a schema
    /// that the role may not use.
    pub(crate) table: Option<Table>,
    /// Its oid.
    pub(crate) oid: Option<Oid>,
    /// Its kind.
    pub(crate) kind: Option<RelationKind>,
    /// The missing right, and the statement that grants it. `None`: the role may read the table.
    pub(crate) unreadable: Option<Fault>,
}

impl TableAccess {
    /// The missing right that hides the table's columns. `None`: the role sees the table, or there is no table.
    pub(crate) fn hidden(&self) -> Option<&Fault> {
        self.unreadable.as_ref().filter(|_| self.table.is_none())
    }
}

#[derive(sqlx_macros::FromRow)]
struct AccessRow {
    role: String,
    may_use_schema: bool,
    oid: Option<Oid>,
    kind: Option<String>,
    schema_name: Option<String>,
    table_name: Option<String>,
    /// Null where there is no such table.
    may_select: Option<bool>,
    has_row_security: Option<bool>,
}

/// Looks for a dataset's table. Takes no lock, so it waits for nobody.
pub(crate) async fn read_access(conn: &mut PgConnection, dataset: &Dataset) -> Result<TableAccess, sqlx::Error> {
    let mut found = read_accesses(conn, &[dataset]).await?;
    Ok(found.pop().expect("the statement has a row for each table"))
}

/// Looks for the tables of several datasets.
pub(crate) async fn read_accesses(
    conn: &mut PgConnection,
    datasets: &[&Dataset],
) -> Result<Vec<TableAccess>, sqlx::Error> {
    let tables = || datasets.iter().map(|dataset| &dataset.table);
    let rows: Vec<AccessRow> = sqlx::query_as(include_str!("rights/read.sql"))
        .bind(tables().map(relation).collect::<Vec<_>>())
        .bind(tables().map(|table| table.schema.as_deref()).collect::<Vec<_>>())
        .bind(tables().map(|table| table.name.as_str()).collect::<Vec<_>>())
        .fetch_all(conn)
        .await?;
    Ok(datasets.iter().zip(rows).map(|(dataset, rights)| rights.access(dataset)).collect())
}

impl AccessRow {
    fn access(self, dataset: &Dataset) -> TableAccess {
        let unreadable = self.refusal(&dataset.table).map(|why| {
            let dataset = dataset.name.clone();
            Fault { dataset, member: "table", item: None, why }
        });
        let table = self.schema_name.zip(self.table_name).filter(|_| self.may_use_schema);
        TableAccess {
            table: table.map(|(schema, name)| Table { schema: Some(schema), name }),
            oid: self.oid,
            kind: self.kind.as_deref().and_then(RelationKind::from_relkind),
            unreadable,
        }
    }

    /// Returns the missing right, with the statements that grant it.
    fn refusal(&self, named: &Table) -> Option<String> {
        let AccessRow { role, may_use_schema, schema_name, table_name, may_select, has_row_security, .. } = self;
        let table = match schema_name.clone().zip(table_name.clone()) {
            Some((schema, name)) => relation(&Table { schema: Some(schema), name }),
            None => relation(named),
        };
        let select = format!("grant select on {table} to {role}");
        if !may_use_schema {
            let schema = quoted(named.schema.as_deref().unwrap_or_default());
            let use_it = format!(
                "the database role {role} may not use its schema: the schema's owner runs `grant usage on schema {schema} to {role}`"
            );
            let and_select =
                if *may_select == Some(false) { format!(", and the table's `{select}`") } else { String::new() };
            return Some(format!("{use_it}{and_select}"));
        }
        match (may_select, has_row_security) {
            (Some(false), _) => Some(format!("the database role {role} may not read it: its owner runs `{select}`")),
            (Some(true), Some(true)) => Some(format!(
                "row-level security may hide rows of it from the database role {role}: a superuser runs `alter role {role} bypassrls`, or, \
                 where {role} owns the table, {role} runs `alter table {table} no force row level security`"
            )),
            (Some(true), _) | (None, _) => None,
        }
    }
}

impl Source {
    /// Reads the right to a dataset's table that the role lacks. `None`: it lacks none, or there is no table.
    pub async fn unreadable(&self, dataset: &Dataset) -> Result<Option<Fault>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        Ok(read_access(&mut conn, dataset).await.map_err(&failed)?.unreadable)
    }
}
