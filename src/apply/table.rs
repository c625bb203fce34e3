//! The target's table: made as the source has it, or taken as it is, and altered as the source's columns change.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::apply::{Doing, Error, Position, Settings};
use crate::connection::{SEARCH_PATH, quoted};
use crate::dataset::Table;
use crate::manifest::{Chained, Column, Manifest};

/// The temporary table that an export's rows are brought into first.
pub(super) const STAGE: &str = "cdc_apply_stage";
/// The column of a delta that says what became of a row.
pub(super) const OPERATION: &str = "operation";

/// Tells whether two values of most types are equal.
const EQUAL: &str = "operator(pg_catalog.=)";

const DEED: &str = "to look at the table";

/// A table as it stands when an export is applied to it.
pub(super) struct Shape {
    /// Its name, as SQL.
    pub(super) table: String,
    /// The export's columns without `operation`, in their order.
    pub(super) columns: Vec<String>,
    /// Those of them that are written: not what the table generates by itself.
    pub(super) written: Vec<String>,
    /// The export's columns, each with the type that the target has for it.
    pub(super) stage: Vec<(String, String)>,
    /// The key's columns, each with the operator that tells whether two are equal.
    pub(super) key: Vec<(String, String)>,
    /// The column that marks deleted rows.
    pub(super) deleted: Option<Deleted>,
    /// What could not be as in the source.
    pub(super) remarks: Vec<String>,
    is_empty: bool,
    truncates: bool,
    /// It was made now, and gets its primary key when the rows are there.
    lacks_key: bool,
}

/// A column that marks deleted rows.
pub(super) struct Deleted {
    /// Its name, as SQL.
    pub(super) column: String,
    /// What stands there of a deleted row, as SQL.
    pub(super) marked: &'static str,
    /// What stands there of another one.
    pub(super) live: &'static str,
}

/// A column of the target's table.
#[derive(sqlx_macros::FromRow)]
struct Present {
    name: String,
    type_name: String,
    is_generated: bool,
    /// The operator that tells whether two values are equal.
    equal: String,
}

impl Shape {
    /// The table for an export, made or altered where it has to be.
    pub(super) async fn fit(
        conn: &mut PgConnection,
        table: &Table,
        manifest: &Manifest,
        before: Option<&Position>,
        settings: &Settings,
    ) -> Result<Shape, Error> {
        let export = &manifest.export;
        let name = relation(table);
        if export.key.is_empty() || export.columns.is_empty() {
            return Err(Error::refused(
                "no_key",
                format!("the export {} doesn't say its columns and its key", export.job),
            ));
        }
        let is_new = !exists(conn, table).await?;
        let mut remarks = Vec::new();
        if is_new {
            if before.is_some() {
                let why =
                    format!("{name} is gone: remove its row of cdc_apply.positions, and a full export makes it anew");
                return Err(Error::refused("target_changed", why));
            }
            make(conn, table, export, &mut remarks).await?;
        } else {
            alter(conn, &name, export, before, settings, &mut remarks).await?;
        }
        let deleted = match &settings.deleted {
            Some(column) => Some(Deleted::find(conn, &name, column, export).await?),
            None => None,
        };
        let present = columns(conn, &name).await?;
        let find = |name: &str| present.iter().find(|column| column.name == name);
        let of_table: Vec<&Column> = of_table(export).collect();
        let columns: Vec<String> = of_table.iter().map(|column| column.name.clone()).collect();
        let written = columns.iter().filter(|name| find(name).is_some_and(|column| !column.is_generated));
        let type_of = |column: &Column| match find(&column.name) {
            Some(found) if !(is_delta(export) && column.name == OPERATION) => found.type_name.clone(),
            _ => "text".to_owned(),
        };
        let equal = |name: &String| find(name).map_or_else(|| EQUAL.to_owned(), |column| column.equal.clone());
        let shape = Shape {
            written: written.cloned().collect(),
            stage: export.columns.iter().map(|column| (column.name.clone(), type_of(column))).collect(),
            key: export.key.iter().map(|name| (name.clone(), equal(name))).collect(),
            is_empty: is_new || is_empty(conn, &name).await?,
            truncates: settings.truncates,
            lacks_key: is_new,
            table: name,
            columns,
            deleted,
            remarks,
        };
        if !is_new {
            shape.require_key(conn, before).await?;
        } else if !shape.replaces_all(manifest) {
            shape.add_key(conn).await?;
        }
        if shape.replaces_all(manifest) && !shape.is_empty {
            shape.run(conn, "truncate", "to empty the table").await?;
        }
        Ok(shape)
    }

    /// Whether the export's rows are all that the table is to hold, and nothing there is to be kept or compared.
    pub(super) fn replaces_all(&self, manifest: &Manifest) -> bool {
        let is_emptied = self.is_empty || self.truncates && self.deleted.is_none();
        manifest.export.export_type == "full" && is_emptied && self.written.len() == self.columns.len()
    }

    /// What is done once the rows are there.
    pub(super) async fn finish(&self, conn: &mut PgConnection) -> Result<(), Error> {
        if self.lacks_key { self.add_key(conn).await } else { Ok(()) }
    }

    async fn add_key(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let key: Vec<_> = self.key.iter().map(|(name, _)| quoted(name)).collect();
        let add = format!("-- apply.table.add_key\n alter table {} add primary key ({})", self.table, key.join(", "));
        sqlx::raw_sql(AssertSqlSafe(add)).execute(conn).await.map(drop).doing("the primary key")
    }

    /// Refuses a table in which the export's key doesn't tell rows apart.
    async fn require_key(&self, conn: &mut PgConnection, before: Option<&Position>) -> Result<(), Error> {
        let key: Vec<&str> = self.key.iter().map(|(name, _)| name.as_str()).collect();
        let is_unique: bool = sqlx::query_scalar(
            "-- apply.table.is_unique
             select exists (
               select from pg_index i
               where i.indrelid = $1::regclass and i.indisunique and i.indisvalid and i.indimmediate
                 and i.indpred is null and i.indexprs is null
                 and (select array_agg(a.attname::text order by a.attname::text collate \"C\") from pg_attribute a
                      where a.attrelid = i.indrelid and a.attnum = any ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                   = (select array_agg(k order by k collate \"C\") from unnest($2::text[]) k))",
        )
        .bind(&self.table)
        .bind(&key)
        .fetch_one(conn)
        .await
        .doing(DEED)?;
        if is_unique {
            return Ok(());
        }
        let had =
            before.map(|before| before.key.iter().map(String::as_str).collect::<Vec<_>>()).filter(|had| *had != key);
        let (code, was) = match had {
            Some(had) => ("key_changed", format!(" and was ({})", had.join(", "))),
            None => ("no_key", String::new()),
        };
        let why = format!(
            "the export's key is ({}){was}, and {} has no unique index of it: give it one, with no condition and not deferrable",
            key.join(", "),
            self.table
        );
        Err(Error::refused(code, why))
    }

    /// From here on names are looked up as the role's own sessions do: the table's triggers may rely on that. Our statements name the
    /// schema of all that they use meanwhile.
    pub(super) async fn as_the_role(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let set = "-- apply.table.as_the_role
             select set_config('search_path', current_setting('cdc_export.role_path'), true)";
        sqlx::raw_sql(AssertSqlSafe(set)).execute(conn).await.map(drop).doing(DEED)
    }

    pub(super) async fn as_ourselves(&self, conn: &mut PgConnection) -> Result<(), Error> {
        let set = format!("-- apply.table.as_ourselves\n set local search_path = {SEARCH_PATH}");
        sqlx::raw_sql(AssertSqlSafe(set)).execute(conn).await.map(drop).doing(DEED)
    }

    async fn run(&self, conn: &mut PgConnection, verb: &str, deed: &'static str) -> Result<(), Error> {
        let statement = format!("-- apply.table.run\n {verb} {}", self.table);
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await.map(drop).doing(deed)
    }
}

impl Deleted {
    /// The column, made if it isn't there.
    async fn find(conn: &mut PgConnection, table: &str, column: &str, export: &Chained) -> Result<Deleted, Error> {
        if export.columns.iter().any(|exported| exported.name == column) {
            let why = format!("--deletes {column}: the source has a column of this name");
            return Err(Error::refused("deletes", why));
        }
        let found = columns(conn, table).await?.into_iter().find(|present| present.name == column);
        let type_name = match found {
            Some(found) => found.type_name,
            None => {
                add(conn, table, column, "timestamp with time zone").await?;
                "timestamp with time zone".to_owned()
            }
        };
        let (marked, live) = match type_name.as_str() {
            "boolean" => ("true", "false"),
            time if time.starts_with("timestamp") => ("pg_catalog.clock_timestamp()", "null"),
            other => {
                let why = format!("--deletes {column}: it is a boolean or a timestamp, and here it is {other}");
                return Err(Error::refused("deletes", why));
            }
        };
        Ok(Deleted { column: quoted(column), marked, live })
    }
}

fn is_delta(export: &Chained) -> bool {
    export.export_type == "delta"
}

/// The columns that the table has of the export's.
fn of_table(export: &Chained) -> impl Iterator<Item = &Column> {
    export.columns.iter().filter(|column| !(is_delta(export) && column.name == OPERATION))
}

/// A table's name, as SQL.
fn relation(table: &Table) -> String {
    let schema = table.schema.as_ref().map(|schema| format!("{}.", quoted(schema))).unwrap_or_default();
    format!("{schema}{}", quoted(&table.name))
}

/// Whether there is such a table. Something else of this name is refused.
async fn exists(conn: &mut PgConnection, table: &Table) -> Result<bool, Error> {
    let kind: Option<String> = sqlx::query_scalar(
        "-- apply.table.kind
         select relkind::text from pg_class where oid = to_regclass($1)",
    )
    .bind(relation(table))
    .fetch_optional(conn)
    .await
    .doing(DEED)?;
    match kind.as_deref() {
        None => Ok(false),
        Some("r" | "p") => Ok(true),
        Some(_) => {
            Err(Error::refused("target_changed", format!("{table} is no table, and there can't be one of this name")))
        }
    }
}

async fn is_empty(conn: &mut PgConnection, table: &str) -> Result<bool, Error> {
    let empty = format!("-- apply.table.is_empty\n select not exists (select from {table})");
    sqlx::query_scalar(AssertSqlSafe(empty)).fetch_one(conn).await.doing("to read the table")
}

async fn columns(conn: &mut PgConnection, table: &str) -> Result<Vec<Present>, Error> {
    let found = sqlx::query_as(
        "-- apply.table.columns
         select a.attname::text as name, format_type(a.atttypid, a.atttypmod) as type_name, a.attgenerated <> '' as is_generated,
           coalesce((
             select format('operator(%I.%s)', n.nspname, o.oprname)
             from pg_opclass c join pg_am m on m.oid = c.opcmethod
             join pg_amop p on p.amopfamily = c.opcfamily and p.amoplefttype = c.opcintype and p.amoprighttype = c.opcintype
             join pg_operator o on o.oid = p.amopopr join pg_namespace n on n.oid = o.oprnamespace
             where c.opcdefault and m.amname = 'btree' and p.amopstrategy = 3
               and c.opcintype = coalesce(nullif(t.typbasetype, 0), t.oid)), 'operator(pg_catalog.=)') as equal
         from pg_attribute a join pg_type t on t.oid = a.atttypid
         where a.attrelid = $1::regclass and a.attnum > 0 and not a.attisdropped
         order by a.attnum",
    );
    found.bind(table).fetch_all(conn).await.doing(DEED)
}

/// A type as the target has it; one that it doesn't have is text. What Postgres reads as a type is one, and nothing beside it.
async fn type_here(conn: &mut PgConnection, column: &Column, remarks: &mut Vec<String>) -> Result<String, Error> {
    let known: bool = sqlx::query_scalar("-- apply.table.type\n select to_regtype($1) is not null")
        .bind(&column.type_name)
        .fetch_one(conn)
        .await
        .doing("to look for a type")?;
    if known {
        return Ok(column.type_name.clone());
    }
    remarks.push(format!("the target has no type {}: the column {} is text there", column.type_name, column.name));
    Ok("text".to_owned())
}

/// Makes the table, without its key.
async fn make(
    conn: &mut PgConnection,
    table: &Table,
    export: &Chained,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    if let Some(schema) = &table.schema {
        let there: bool =
            sqlx::query_scalar("-- apply.table.schema\n select to_regnamespace(quote_ident($1)) is not null")
                .bind(schema)
                .fetch_one(&mut *conn)
                .await
                .doing(DEED)?;
        if !there {
            let make = format!("-- apply.table.make_schema\n create schema {}", quoted(schema));
            sqlx::raw_sql(AssertSqlSafe(make)).execute(&mut *conn).await.doing("to make a schema")?;
        }
    }
    let mut columns = Vec::new();
    for column in of_table(export) {
        let type_name = type_here(conn, column, remarks).await?;
        let null = if export.key.contains(&column.name) { " not null" } else { "" };
        columns.push(format!("{} {type_name}{null}", quoted(&column.name)));
    }
    let make = format!("-- apply.table.make\n create table {} ({})", relation(table), columns.join(", "));
    sqlx::raw_sql(AssertSqlSafe(make)).execute(conn).await.map(drop).doing("to make the table")
}

async fn add(conn: &mut PgConnection, table: &str, column: &str, type_name: &str) -> Result<(), Error> {
    let add = format!("-- apply.table.add\n alter table {table} add column {} {type_name}", quoted(column));
    sqlx::raw_sql(AssertSqlSafe(add)).execute(conn).await.map(drop).doing("a new column")
}

/// Adds the columns that came, and gives those that were retyped their new type. One that is gone in the source stays.
async fn alter(
    conn: &mut PgConnection,
    table: &str,
    export: &Chained,
    before: Option<&Position>,
    settings: &Settings,
    remarks: &mut Vec<String>,
) -> Result<(), Error> {
    let present = columns(conn, table).await?;
    let had = |name: &str| before.and_then(|before| before.columns.iter().find(|column| column.name == name));
    for column in of_table(export) {
        let name = &column.name;
        let Some(found) = present.iter().find(|present| present.name == *name) else {
            // Its values in rows that nobody changes come with no delta.
            if had(name).is_some() && !export.is_base() {
                let why = format!("the column {name} of {table} is gone: a full export brings it back");
                return Err(Error::refused("target_changed", why));
            }
            if !settings.adds_columns {
                let why =
                    format!("{table} has no column {name}, which the source has: add it, or let --schema add do so");
                return Err(Error::refused("schema_changed", why));
            }
            let type_name = type_here(conn, column, remarks).await?;
            add(conn, table, name, &type_name).await?;
            continue;
        };
        let retyped = had(name).filter(|had| had.type_name != column.type_name && had.type_name == found.type_name);
        if retyped.is_some() && export.is_base() {
            if !settings.adds_columns {
                let why = format!(
                    "the column {name} of {table} is {}, and {} in the source",
                    found.type_name, column.type_name
                );
                return Err(Error::refused("schema_changed", why));
            }
            let type_name = type_here(conn, column, remarks).await?;
            let name = quoted(name);
            let retype = format!(
                "-- apply.table.retype\n alter table {table} alter column {name} type {type_name} using {name}::text::{type_name}"
            );
            sqlx::raw_sql(AssertSqlSafe(retype)).execute(&mut *conn).await.doing("a column's new type")?;
        }
    }
    Ok(())
}
