//! What a caller selects of a dataset, before it is exported: whether the columns are there, and the values of their types. Postgres
//! is asked to read them, which knows every type.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::dataset::catalog::hint;
use crate::dataset::{Column, Dataset};
use crate::job::selection::{BadSelection, Condition, Selection};
use crate::source::select::Select;
use crate::source::table_schema::introspect;
use crate::source::{Error, Source};

impl Source {
    /// Whether a selection is one of the dataset's rows and columns.
    ///
    /// # Errors
    /// If the database fails, or the table isn't as the dataset says.
    pub async fn check(&self, dataset: &Dataset, selection: &Selection) -> Result<Result<(), BadSelection>, Error> {
        let mut conn = self.pool.acquire().await.map_err(Error::of(&dataset.table))?;
        let schema = introspect(&mut conn, dataset).await?;
        let select = Select { dataset, schema: &schema };
        for (i, name) in selection.columns.iter().flatten().enumerate() {
            if let Err(why) = select.find(name) {
                return Ok(Err(BadSelection { field: format!("columns[{i}]"), why }));
            }
        }
        for (i, condition) in selection.filter.iter().enumerate() {
            let column = match select.find(&condition.column) {
                Ok(column) => column,
                Err(why) => return Ok(Err(BadSelection { field: format!("filter[{i}].column"), why })),
            };
            if let Some((member, why)) = select.refusal(&mut conn, condition, column).await? {
                return Ok(Err(BadSelection { field: format!("filter[{i}].{member}"), why }));
            }
        }
        Ok(Ok(()))
    }
}

impl<'a> Select<'a> {
    fn find(&self, name: &str) -> Result<&'a Column, String> {
        let columns = &self.schema.columns;
        let found = columns.iter().find(|column| &*column.name == name);
        let near = || hint(name, columns.iter().map(|column| &*column.name));
        found.ok_or_else(|| format!("there is no column `{name}`{}", near()))
    }

    /// What of a condition Postgres doesn't take, and why not.
    async fn refusal(
        &self,
        conn: &mut PgConnection,
        condition: &Condition,
        column: &Column,
    ) -> Result<Option<(&'static str, String)>, Error> {
        let Column { name, type_name, .. } = column;
        for (member, statement) in ["value", "op"].into_iter().zip(self.tried(condition)) {
            let statement = format!("-- source.selection.try\n {statement}");
            let tried = sqlx::query(AssertSqlSafe(statement)).bind(&condition.value).persistent(false);
            let Err(cause) = tried.execute(&mut *conn).await else { continue };
            let code = cause.as_database_error().and_then(|told| told.code()).unwrap_or_default().into_owned();
            return match (member, Error::of(&self.dataset.table)(cause)) {
                (_, not_the_callers @ (Error::Unavailable(_) | Error::LockConflict(_))) => Err(not_the_callers),
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
