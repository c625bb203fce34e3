//! The role's rights to a dataset's table, which are checked before an export fails for lack of them.

use sqlx::PgConnection;

use crate::quote::{quoted, relation};
use crate::{Error, Source};
use cdc_dataset::{Dataset, Fault, RelationKind};
use pg_session::table_name::Table;

/// A dataset's table, as the database role sees it.
pub(crate) struct TableAccess {
    /// The table with its schema, as the role's own search_path finds it. `None`: there is none, or it is in a schema
    /// that the role may not use.
    pub(crate) table: Option<Table>,
    pub(crate) kind: Option<RelationKind>,
    /// The missing right, and the statement that grants it. `None`: the role may read the table.
    pub(crate) unreadable: Option<Fault>,
    /// The materialized view without rows that it is or reads, and the statement that fills it. Reading it is an error.
    pub(crate) unpopulated: Option<Fault>,
}

impl TableAccess {
    /// Returns the table that was found, or the dataset's own name for it if there is no such table.
    pub(crate) fn table_of<'a>(&'a self, dataset: &'a Dataset) -> &'a Table {
        self.table.as_ref().unwrap_or(&dataset.table)
    }

    /// The missing right that hides the table's columns. `None`: the role sees the table, or there is no table.
    pub(crate) fn hidden(&self) -> Option<&Fault> {
        self.unreadable.as_ref().filter(|_| self.table.is_none())
    }
}

#[derive(sqlx_macros::FromRow)]
struct AccessRow {
    role: String,
    may_use_schema: bool,
    kind: Option<String>,
    schema_name: Option<String>,
    table_name: Option<String>,
    /// Null where there is no such table.
    may_select: Option<bool>,
    has_row_security: Option<bool>,
    /// False for a materialized view `with no data`. Null where there is no such table.
    is_populated: Option<bool>,
    /// The obstacle beneath a view: `select` or `bypassrls`, a right that is lacking, or `rows`, which a materialized
    /// view lacks. Null: there is none, or it is no view.
    lacks: Option<String>,
    beneath_schema: Option<String>,
    beneath_table: Option<String>,
    /// The role as which the view reads that relation.
    reader: Option<String>,
}

/// Looks for a dataset's table. Takes no lock, so it waits for nobody.
pub(crate) async fn read_access(conn: &mut PgConnection, dataset: &Dataset) -> Result<TableAccess, sqlx::Error> {
    let mut found = read_accesses(conn, &[dataset]).await?;
    Ok(found.pop().expect("the statement has a row for each table"))
}

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
        let fault = |why| Fault::of(dataset, "table", why);
        let unreadable = self.refusal(&dataset.table).or_else(|| self.refusal_beneath()).map(fault);
        let unpopulated = self.unpopulated().map(fault);
        let table = self.schema_name.zip(self.table_name).filter(|_| self.may_use_schema);
        TableAccess {
            table: table.map(|(schema, name)| Table { schema: Some(schema), name }),
            kind: self.kind.as_deref().and_then(RelationKind::from_relkind),
            unreadable,
            unpopulated,
        }
    }

    /// Returns the right to a relation beneath the view that is missing, with the statement that grants it.
    fn refusal_beneath(&self) -> Option<String> {
        let (beneath, reader) = (self.beneath()?, self.reader.as_deref()?);
        match self.lacks.as_deref()? {
            "select" => Some(format!(
                "the view reads {beneath} as the role {reader}, which may not: its owner runs `grant select on {beneath} to {reader}`"
            )),
            "bypassrls" => Some(format!(
                "the view reads {beneath} as the role {reader}, from which row-level security may hide rows: a superuser runs \
                 `alter role {reader} bypassrls`"
            )),
            _ => None,
        }
    }

    /// Returns the materialized view without rows, with the statement that fills it.
    fn unpopulated(&self) -> Option<String> {
        let empty = match (self.is_populated, self.lacks.as_deref()) {
            (Some(false), _) => named(&self.schema_name, &self.table_name)?,
            (_, Some("rows")) => self.beneath()?,
            _ => return None,
        };
        Some(format!(
            "the materialized view {empty} has no rows yet, and can't be read: its owner runs `refresh materialized view {empty}`"
        ))
    }

    fn beneath(&self) -> Option<String> {
        named(&self.beneath_schema, &self.beneath_table)
    }

    /// Returns the missing right, with the statements that grant it.
    fn refusal(&self, wanted: &Table) -> Option<String> {
        let AccessRow { role, may_use_schema, schema_name, table_name, may_select, has_row_security, .. } = self;
        let table = named(schema_name, table_name).unwrap_or_else(|| relation(wanted));
        let select = format!("grant select on {table} to {role}");
        if !may_use_schema {
            let schema = quoted(wanted.schema.as_deref().unwrap_or_default());
            let use_it = format!(
                "the database role {role} may not use its schema: the schema's owner runs `grant usage on schema {schema} to {role}`"
            );
            let and_select =
                if *may_select == Some(false) { format!(", and the table's `{select}`") } else { String::new() };
            return Some(format!("{use_it}{and_select}"));
        }
        match (may_select, has_row_security) {
            (Some(false), _) => Some(format!(
                "the database role {role} may not read it. A view of the columns that the role may read can be exported with \
                 capture = \"none\"; otherwise the table's owner runs `{select}`"
            )),
            (Some(true), Some(true)) => Some(format!(
                "row-level security may hide rows of it from the database role {role}: a superuser runs `alter role {role} bypassrls`, or, \
                 where {role} owns the table, {role} runs `alter table {table} no force row level security`"
            )),
            (Some(true), _) | (None, _) => None,
        }
    }
}

fn named(schema: &Option<String>, name: &Option<String>) -> Option<String> {
    let (schema, name) = schema.clone().zip(name.clone())?;
    Some(relation(&Table { schema: Some(schema), name }))
}

impl Source {
    /// Reads the right to a dataset's table that the role lacks. `None`: it lacks none, or there is no table.
    pub async fn unreadable(&self, dataset: &Dataset) -> Result<Option<Fault>, Error> {
        let access = self.with(&dataset.table, async |conn| read_access(conn, dataset).await).await?;
        Ok(access.unreadable)
    }
}
