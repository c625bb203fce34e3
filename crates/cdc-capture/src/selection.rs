//! The check of a caller's selection of a dataset, before the export: the columns exist, and the values are of their
//! types.
//!
//! Postgres checks the values, because it knows every type.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::quote::{literal, quoted};
use crate::relation_locks::NO_WAIT;
use crate::select::Select;
use crate::table_schema::introspect;
use crate::value::{compared, refused_of_row};
use crate::{Error, Source, owners, role_path};
use cdc_dataset::{BadSelection, CellMax, Condition, Dataset, Operator, RelationKind, Selection, TableColumn, hint};
use pg_session::failure::sqlstate;

impl Source {
    /// Returns the first mistake in a selection of the dataset's rows and columns.
    pub async fn check(&self, dataset: &Dataset, selection: &Selection) -> Result<Option<BadSelection>, Error> {
        let failed = Error::from_sql(&dataset.table);
        let mut conn = self.pool.acquire().await.map_err(&failed)?;
        // Rolled back in the end. If the owner isn't trusted, the introspection says so.
        let mut conn = conn.begin().await.map_err(&failed)?;
        owners::lock_trusted(&mut conn, &[(dataset, &dataset.table)]).await.map_err(&failed)?;
        let schema = introspect(&mut conn, dataset).await?;
        let select = Select::new(dataset, &schema);
        if !selection.filter.is_empty() {
            let path = match schema.relation {
                RelationKind::View => role_path::of_reader(dataset, &schema, None),
                _ => String::new(),
            };
            let settings = format!("-- source.selection.settings\n {NO_WAIT}; {path}");
            sqlx::raw_sql(AssertSqlSafe(settings)).execute(&mut *conn).await.map_err(&failed)?;
        }
        if let Some(bad) = select.masked(selection) {
            return Ok(Some(bad));
        }
        let bad = |field, why| Ok(Some(BadSelection { field, why, is_masked: false }));
        for (i, name) in selection.columns.iter().flatten().enumerate() {
            if let Err(why) = select.find(name) {
                return bad(format!("columns[{i}]"), why);
            }
        }
        for (i, condition) in selection.filter.iter().enumerate() {
            let column = match select.find(&condition.column) {
                Ok(column) => column,
                Err(why) => return bad(format!("filter[{i}].column"), why),
            };
            if let Some((member, why)) = select.refusal(&mut conn, condition, column).await? {
                return bad(format!("filter[{i}].{member}"), why);
            }
        }
        Ok(None)
    }
}

impl<'a> Select<'a> {
    /// The live rows that a caller selects.
    pub(crate) fn selected(&self, selection: &Selection, max: CellMax) -> String {
        let narrowed = self.schema.narrowed(selection);
        let narrowed = Select { schema: &narrowed, ..*self };
        let (table, columns, alive) = (self.table(), narrowed.full_columns(None), self.alive());
        let refused = refused_of_row(&narrowed.schema.columns, max);
        let condition = |it: &Condition| format!(" and {}", self.condition(it, &literal(&it.value)));
        let conditions: String = selection.filter.iter().map(condition).collect();
        let key: Vec<_> = self.schema.key.iter().map(|part| compared(&part.column)).collect();
        let order = if key.is_empty() { String::new() } else { format!(" order by {}", key.join(", ")) };
        let limit = selection.limit.map(|limit| format!("{order} limit {limit}")).unwrap_or_default();
        format!("select {columns}, {refused} from {table} u where {alive}{conditions}{limit}")
    }

    /// Returns the member of a selection that would tell values of a masked column: which rows it selects.
    pub(crate) fn masked(&self, selection: &Selection) -> Option<BadSelection> {
        let is_masked =
            |name: &str| self.schema.columns.iter().any(|column| column.name == name && column.mask.is_some());
        let filtered = selection.filter.iter().enumerate();
        let filtered = filtered.map(|(at, condition)| (format!("filter[{at}].column"), &*condition.column));
        let key = self.schema.key.iter().filter(|_| selection.limit.is_some());
        let ordered = key.map(|part| ("limit".to_owned(), &*part.column.name));
        let (field, column) = filtered.chain(ordered).find(|(_, name)| is_masked(name))?;
        let why = format!("`{column}` is masked, so no request can select rows by it");
        Some(BadSelection { field, why, is_masked: true })
    }

    /// A condition on rows `u`. `text` is its value in SQL.
    fn condition(&self, condition: &Condition, text: &str) -> String {
        let column = self.schema.columns.iter().find(|column| column.name == condition.column);
        let name = column.map_or_else(|| format!("u.{}", quoted(&condition.column)), compared);
        let value = self.value(condition, text);
        let compared = match condition.operator {
            Operator::Eq | Operator::In => "=",
            Operator::Ne => "<>",
            Operator::Lt => "<",
            Operator::Lte => "<=",
            Operator::Gt => ">",
            Operator::Gte => ">=",
            Operator::IsNull => return format!("(pg_catalog.num_nulls({name}) = 1) = {value}"),
        };
        let schema = column.map_or("pg_catalog", |column| &column.operators);
        match condition.operator {
            Operator::In => format!("{name} operator({schema}.{compared}) any ({value})"),
            _ => format!("{name} operator({schema}.{compared}) {value}"),
        }
    }

    /// The value that a condition compares with, in the column's type. Several values are a query. `text` is the value
    /// in SQL.
    fn value(&self, condition: &Condition, text: &str) -> String {
        let column = self.schema.columns.iter().find(|column| column.name == condition.column);
        let base_type = column.map_or("text", |column| &column.base_type);
        match condition.operator {
            Operator::In => {
                format!("select one::{base_type} from pg_catalog.jsonb_array_elements_text({text}::text::jsonb) as one")
            }
            Operator::IsNull => format!("{text}::text::boolean"),
            _ => format!("{text}::text::{base_type}"),
        }
    }

    /// A statement that fails where a condition's value, `$1`, is none of the column's type, and one that Postgres
    /// doesn't understand where the type has no such comparison.
    fn tried(&self, condition: &Condition) -> [String; 2] {
        let value = self.value(condition, "$1");
        let value = match condition.operator {
            Operator::In => format!("select pg_catalog.count(value) from ({value}) as several (value)"),
            // The client knows the result's type; for another type it would query the catalog.
            _ => format!("select pg_catalog.num_nulls({value})"),
        };
        [value, format!("select from {} u where {} limit 0", self.table(), self.condition(condition, "$1"))]
    }

    fn find(&self, name: &str) -> Result<&'a TableColumn, String> {
        let columns = &self.schema.columns;
        let found = columns.iter().find(|column| &*column.name == name);
        let near = || hint(name, columns.iter().map(|column| &*column.name));
        found.ok_or_else(|| format!("there is no column `{name}`{}", near()))
    }

    /// Returns the member of a condition that Postgres refuses, and the reason.
    async fn refusal(
        &self,
        conn: &mut PgConnection,
        condition: &Condition,
        column: &TableColumn,
    ) -> Result<Option<(&'static str, String)>, Error> {
        let TableColumn { name, type_name, .. } = column;
        for (member, statement) in ["value", "op"].into_iter().zip(self.tried(condition)) {
            let statement = format!("-- source.selection.try\n {statement}");
            let tried = sqlx::query(AssertSqlSafe(statement)).bind(&condition.value).persistent(false);
            let Err(cause) = tried.execute(&mut *conn).await else { continue };
            let code = sqlstate(&cause).into_owned();
            return match (member, Error::from_sql(&self.dataset.table)(cause)) {
                (_, not_the_callers @ (Error::Unavailable(_) | Error::LockConflict { .. })) => Err(not_the_callers),
                ("value", _) => Ok(Some((member, format!("a value of `{name}`, which is {type_name}, is expected")))),
                // No such operator, or none that is the best.
                _ if ["42883", "42725", "42P22"].contains(&code.as_str()) => {
                    Ok(Some((member, format!("`{name}` is {type_name}, which has no {}", condition.operator))))
                }
                (_, error) => Err(error),
            };
        }
        Ok(None)
    }
}
