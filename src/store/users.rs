//! The demo table's soft delete. A `users` that somebody brought is not touched.

use sqlx::AssertSqlSafe;

use crate::store::{Error, Store};

/// A row of the demo table. Times are RFC 3339 with microseconds; `None` for an infinite one.
#[derive(Debug, sqlx::FromRow)]
pub struct User {
    /// Its key.
    pub id: i64,
    /// Full name.
    pub name: String,
    /// Unique address.
    pub email: String,
    /// When it was made.
    pub created_at: Option<String>,
    /// When it was last changed.
    pub updated_at: Option<String>,
    /// Whether it is soft-deleted.
    pub is_deleted: bool,
}

/// Written by Postgres: its calendar is longer than ours.
macro_rules! user_columns {
    () => {
        "id, name, email, is_deleted,
         to_char(created_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as created_at,
         to_char(updated_at at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') as updated_at"
    };
}

impl Store {
    /// Marks a user as deleted now; one that is deleted stays as it is. `None`: no such user in a demo table of ours.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn soft_delete_user(&self, id: i64) -> Result<Option<User>, Error> {
        let mut conn = self.connection().await?;
        let ours: Option<String> = sqlx::query_scalar(
            "-- store.users.ours
             select format('%I.%I', o.schema_name, o.table_name) from cdc_export.owned o
             join pg_namespace n on n.nspname = o.schema_name
             join pg_class c on c.relnamespace = n.oid and c.relname = o.table_name
             where c.oid = cdc_export.table_of_role('users')",
        )
        .fetch_optional(conn.get())
        .await?;
        let Some(users) = ours else {
            conn.give_back();
            return Ok(None);
        };
        let columns = user_columns!();
        let deleted: Option<User> = sqlx::query_as(AssertSqlSafe(format!(
            "-- store.users.soft_delete
             update {users} set is_deleted = true, updated_at = now() where id = $1 and not is_deleted returning {columns}"
        )))
        .bind(id)
        .fetch_optional(conn.get())
        .await?;
        if deleted.is_some() {
            conn.give_back();
            return Ok(deleted);
        }
        let user = format!("-- store.users.get\n select {columns} from {users} where id = $1");
        let user = sqlx::query_as(AssertSqlSafe(user));
        let user = user.bind(id).fetch_optional(conn.get()).await?;
        conn.give_back();
        Ok(user)
    }
}
