//! The schema of what users read: the tables `watermarks` and the demo's `users`, and the view `exports`.
//!
//! It is the first schema of the role's own search_path, normally `public`. Our statements don't use that path, because
//! other users may have put functions and operators there. Migrations contain the name of the schema. All other
//! statements use a view of `watermarks` in our schema.

use pg_session::quoted;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The table that has a view of the same name in our schema. `users` has none, because it may be a table of another
/// owner.
///
/// A migration that drops or retypes a column has to drop the view first. The view is created again after all
/// migrations.
const VIEWED: &str = "watermarks";

/// The schemas of the role's search_path that the role may use, except Postgres's own schema and ours.
#[derive(Clone, Debug)]
pub(super) struct SearchPath(Vec<String>);

/// The schema in which `exports` and `watermarks` exist or would be created.
#[derive(Clone, Debug)]
pub(super) struct TablesSchema(String);

impl SearchPath {
    /// Reads the role's search_path. Must run before the session is set up, because the setup changes the path.
    pub(super) async fn read_of_role(conn: &mut PgConnection) -> Result<SearchPath, sqlx::Error> {
        // A pooler may provide a session in which our path is already set.
        sqlx::raw_sql(
            "-- postgres.search_path.of_role
             select pg_catalog.set_config('search_path', pg_catalog.current_setting('cdc_export.role_path', true), false)
             where pg_catalog.length(pg_catalog.current_setting('cdc_export.role_path', true)) operator(pg_catalog.>) 0",
        )
        .execute(&mut *conn)
        .await?;
        let schemas: Vec<String> = sqlx::query_scalar(
            "-- postgres.search_path.schemas
             select pg_catalog.unnest(pg_catalog.current_schemas(false))::pg_catalog.text",
        )
        .fetch_all(conn)
        .await?;
        // A role may also be named cdc_export, so that "$user" would be our schema.
        let others = schemas.into_iter().filter(|name| name != "cdc_export" && name != "pg_catalog");
        Ok(SearchPath(others.collect()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the schema in which new tables are created.
    pub(super) fn first(&self) -> &str {
        self.0.first().map_or("public", String::as_str)
    }

    /// Returns the schema in which the path finds a relation of this name.
    pub(super) async fn locate(&self, conn: &mut PgConnection, name: &str) -> Result<Option<String>, sqlx::Error> {
        sqlx::query_scalar(
            "-- postgres.search_path.find
             select path.name from unnest($1::text[]) with ordinality as path (name, place)
             join pg_namespace n on n.nspname = path.name
             join pg_class c on c.relnamespace = n.oid and c.relname = $2
             order by path.place limit 1",
        )
        .bind(&self.0)
        .bind(name)
        .fetch_optional(conn)
        .await
    }

    pub(super) async fn tables_schema(&self, conn: &mut PgConnection) -> Result<TablesSchema, sqlx::Error> {
        let found = self.locate(conn, "exports").await?;
        Ok(TablesSchema(found.unwrap_or_else(|| self.first().to_owned())))
    }
}

impl TablesSchema {
    /// Returns a migration's text with the placeholders `{schema}` (an identifier) and `{schema_name}` (a string)
    /// replaced.
    pub(super) fn written_in(&self, migration: &str) -> String {
        let TablesSchema(name) = self;
        let string = format!("'{}'", name.replace('\'', "''"));
        migration.replace("{schema_name}", &string).replace("{schema}", &quoted(name))
    }

    /// Returns true if the view has the columns of its table.
    pub(super) async fn has_view(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "-- postgres.search_path.has_view
             select coalesce((
               select array_agg(a.attname order by a.attnum) from pg_attribute a
               where a.attrelid = to_regclass('cdc_export.' || $2) and a.attnum > 0 and not a.attisdropped)
             = (
               select array_agg(a.attname order by a.attnum) from pg_attribute a
               where a.attrelid = to_regclass($1 || '.' || $2) and a.attnum > 0 and not a.attisdropped), false)",
        )
        .bind(quoted(&self.0))
        .bind(VIEWED)
        .fetch_one(conn)
        .await
    }

    /// Creates the view again if its table has other columns than it. It gets the grants of the table.
    pub(super) async fn renew_view(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        if self.has_view(&mut *conn).await? {
            return Ok(());
        }
        let mut tx = conn.begin().await?;
        let made = format!(
            "-- postgres.search_path.view
             drop view if exists cdc_export.{VIEWED};
             create view cdc_export.{VIEWED} as select * from {}.{VIEWED}",
            quoted(&self.0)
        );
        sqlx::raw_sql(AssertSqlSafe(made)).execute(&mut *tx).await?;
        let grants: Vec<String> = sqlx::query_scalar(
            "-- postgres.search_path.view_rights
             select format('grant %s on cdc_export.%I to %s', g.privilege_type, c.relname,
               case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end)
             from pg_class c cross join lateral aclexplode(c.relacl) g
             where c.oid = to_regclass($1 || '.' || $2) and g.grantee <> c.relowner
               and g.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')",
        )
        .bind(quoted(&self.0))
        .bind(VIEWED)
        .fetch_all(&mut *tx)
        .await?;
        for grant in grants {
            let grant = format!("-- postgres.search_path.view_grant\n {grant}");
            sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut *tx).await?;
        }
        tx.commit().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_of_a_migration_are_replaced_by_the_schema() {
        let schema = TablesSchema("a'\"b".to_owned());
        let written = schema.written_in("create view {schema}.exports (); insert into owned values ({schema_name})");
        assert_eq!(written, "create view \"a'\"\"b\".exports (); insert into owned values ('a''\"b')");
    }
}
