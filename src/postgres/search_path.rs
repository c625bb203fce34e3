//! The schemas of the three tables that people read: `exports`, `watermarks` and the demo's `users`. They are in the first schema
//! of the role's own search_path, normally `public`. Our statements don't use that path, because others may have put functions
//! and operators there: migrations get the tables' schemas written out, and all other statements find views of the tables in our
//! schema.

use crate::connection::quoted;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// The tables that have a view of the same name in our schema. `users` has none: it may be a table that somebody else made. A
/// migration that drops or retypes a column has to drop the view first; the views are made anew after all migrations.
const VIEWED: [&str; 2] = ["exports", "watermarks"];

/// The schemas of the role's search_path that the role may use, without Postgres's own and ours.
#[derive(Clone, Debug)]
pub(super) struct SearchPath(Vec<String>);

/// The schemas of our tables, quoted: where they are, or would be made.
#[derive(Clone, Debug)]
pub(super) struct TableSchemas {
    /// Of `exports` and `watermarks`.
    pub(super) ours: String,
    /// Of the `users` that the path finds, whoever made it.
    users: String,
}

impl SearchPath {
    /// Reads the role's search_path. Must run before the session is set up, which sets another path.
    pub(super) async fn of_role(conn: &mut PgConnection) -> Result<SearchPath, sqlx::Error> {
        // A pooler may hand on a session that has our path already.
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
        // A role may be called cdc_export too, and "$user" would then lead into our schema.
        let others = schemas.into_iter().filter(|name| name != "cdc_export" && name != "pg_catalog");
        Ok(SearchPath(others.collect()))
    }

    /// The schema in which new tables are made.
    pub(super) fn first(&self) -> &str {
        self.0.first().map_or("public", String::as_str)
    }

    /// The schema of the relation that the path finds under this name.
    pub(super) async fn find(&self, conn: &mut PgConnection, name: &str) -> Result<Option<String>, sqlx::Error> {
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

    /// The schemas in which the tables are, or would be made.
    pub(super) async fn table_schemas(&self, conn: &mut PgConnection) -> Result<TableSchemas, sqlx::Error> {
        let ours = self.find(&mut *conn, "exports").await?.unwrap_or_else(|| self.first().to_owned());
        let users = self.find(conn, "users").await?.unwrap_or_else(|| self.first().to_owned());
        Ok(TableSchemas { ours: quoted(&ours), users: quoted(&users) })
    }
}

impl TableSchemas {
    /// A migration's text, with schemas written before the tables' names.
    pub(super) fn named_in(&self, migration: &str) -> String {
        // The words before a table's name, or before the name of an index in its schema.
        const BEFORE: [&str; 13] = [
            "create table ",
            "alter table ",
            "drop table ",
            "lock table ",
            " on ",
            "update ",
            "from ",
            "join ",
            "into ",
            "drop index ",
            "alter index ",
            "analyze ",
            "references ",
        ];
        let mut text = migration.to_owned();
        for (table, schema) in [("users", &self.users), ("watermarks", &self.ours), ("exports", &self.ours)] {
            for before in BEFORE {
                let (plain, named) = (format!("{before}{table}"), format!("{before}{schema}.{table}"));
                text = text.replace(&plain, &named);
            }
            // A name as a text constant is in quotes.
            let constant = format!("'{}.{table}'", schema.replace('\'', "''"));
            for call in ["cdc_export.own(", "to_regclass("] {
                text = text.replace(&format!("{call}'{table}')"), &format!("{call}{constant})"));
            }
        }
        text
    }

    /// Whether each view has the columns of its table.
    pub(super) async fn has_views(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        for table in VIEWED {
            if !self.has_view(conn, table).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn has_view(&self, conn: &mut PgConnection, table: &str) -> Result<bool, sqlx::Error> {
        sqlx::query_scalar(
            "-- postgres.search_path.has_view
             select coalesce((
               select array_agg(a.attname order by a.attnum) from pg_attribute a
               where a.attrelid = to_regclass('cdc_export.' || $2) and a.attnum > 0 and not a.attisdropped)
             = (
               select array_agg(a.attname order by a.attnum) from pg_attribute a
               where a.attrelid = to_regclass($1 || '.' || $2) and a.attnum > 0 and not a.attisdropped), false)",
        )
        .bind(&self.ours)
        .bind(table)
        .fetch_one(conn)
        .await
    }

    /// Makes the views anew whose tables have other columns by now. A view gets the grants of its table.
    pub(super) async fn renew_views(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        for table in VIEWED {
            if self.has_view(&mut *conn, table).await? {
                continue;
            }
            let mut tx = conn.begin().await?;
            let made = format!(
                "-- postgres.search_path.view
                 drop view if exists cdc_export.{table};
                 create view cdc_export.{table} as select * from {}.{table}",
                self.ours
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
            .bind(&self.ours)
            .bind(table)
            .fetch_all(&mut *tx)
            .await?;
            for grant in grants {
                let grant = format!("-- postgres.search_path.view_grant\n {grant}");
                sqlx::raw_sql(AssertSqlSafe(grant)).execute(&mut *tx).await?;
            }
            tx.commit().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_migration_names_each_table_with_its_schema() {
        let schemas = TableSchemas { ours: quoted("a'b"), users: quoted("U") };
        let named = schemas.named_in(
            "alter table exports add column x int;\ncreate index exports_a on exports (a);\nselect cdc_export.own('watermarks');
             drop index exports_a; before insert on users for each row; create table cdc_export.keys (from_exports int references exports (id))",
        );
        let wanted = "alter table \"a'b\".exports add column x int;\ncreate index exports_a on \"a'b\".exports (a);
select cdc_export.own('\"a''b\".watermarks');
             drop index \"a'b\".exports_a; before insert on \"U\".users for each row; create table cdc_export.keys (from_exports int references \"a'b\".exports (id))";
        assert_eq!(named, wanted);
    }
}
