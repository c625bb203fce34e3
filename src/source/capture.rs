//! Change capture: the triggers that write the keys of changed rows to the log.
//!
//! The bodies of the trigger functions are generated once, with the table's own names in them: a dynamic statement would be
//! planned at every call. Knows no consumer.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::dataset::catalog::Fault;
use crate::dataset::{Capture, Dataset, Shape, Table};
use crate::source::{select, shape};

/// The lock that triggers need queues the table's writers behind it, so it is not waited for longer than this.
const LOCK_TIMEOUT: &str = "2s";
/// How often it is tried, with a pause for the writers in between.
const TRIES: u32 = 20;

/// Why a table's changes can't be captured. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such table.
    #[error("there is no table `{0}` in the search_path")]
    NoTable(String),
    /// A view, a foreign table, or what else has no triggers of its own.
    #[error("`{table}` is {kind}, whose changes can't be captured")]
    NotATable {
        /// Its name.
        table: String,
        /// What it is.
        kind: &'static str,
    },
    /// A partition: writes through its parent would go unseen.
    #[error("`{table}` is a partition: track `{parent}`, of which it is one")]
    Partition {
        /// Its name.
        table: String,
        /// The partitioned table.
        parent: String,
    },
    /// The table isn't as the dataset says.
    #[error("{}", .0.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "))]
    Mismatch(Vec<Fault>),
    /// The dataset wants no triggers.
    #[error("`{0}` has capture = \"timestamp\", which needs no triggers")]
    ByTimestamp(String),
    /// Its writers never left room for the lock.
    #[error("`{0}` is too busy: no moment was found to install the triggers; try again")]
    Busy(String),
    /// The role may not.
    #[error("the database role may not put triggers on `{table}`: it must own it")]
    Denied {
        /// Its name.
        table: String,
        /// What Postgres says.
        #[source]
        cause: sqlx::Error,
    },
    /// Anything else that Postgres reports.
    #[error("Postgres refused")]
    Sql(#[from] sqlx::Error),
}

#[derive(sqlx::FromRow)]
struct Found {
    oid: sqlx::postgres::types::Oid,
    schema_name: String,
    table_name: String,
    kind: String,
    parent: Option<String>,
    has_children: bool,
    is_child: bool,
    is_subscribed: bool,
    is_unlogged: bool,
    captured: bool,
    primary_key: Vec<String>,
    /// What the triggers log; `None`: the primary key, or there are none.
    logged_key: Option<Vec<String>>,
}

/// Whether every trigger that a table `t` (of `pg_class`) needs is there, and fires whatever `session_replication_role` says.
macro_rules! captured {
    () => {
        "((select count(*) from pg_trigger x
          where x.tgname like 'cdc\\_export\\_%' and x.tgenabled = 'A'
            and (x.tgrelid = t.oid or x.tgrelid in (select relid from pg_partition_tree(t.oid))))
         >= case t.relkind when 'p' then 2 * (select count(*) from pg_partition_tree(t.oid)) else 4 end
         -- Statement triggers see neither what comes through a parent or from a subscription, nor what a child has.
         and (t.relkind = 'p'
           or not exists (select from pg_inherits i where t.oid in (i.inhparent, i.inhrelid))
             and not exists (select from pg_subscription_rel s where s.srrelid = t.oid)))"
    };
}
pub(crate) use captured;

/// Installs the triggers on a dataset's table, unless they are there, and lets it be exported.
///
/// # Errors
/// If the table can't be captured. Nothing has changed then.
pub async fn track(pool: &PgPool, dataset: &Dataset) -> Result<(), Error> {
    let mut conn = pool.acquire().await?;
    for _ in 0..TRIES {
        match install(&mut conn, dataset).await {
            Err(Error::Busy(_)) => tokio::time::sleep(Duration::from_millis(500)).await,
            done => return done,
        }
    }
    Err(Error::Busy(dataset.table.to_string()))
}

/// Puts the triggers back on a table of ours, where they are missing. Not on one that somebody brought: that is for `track`.
///
/// # Errors
/// If they are missing and can't be installed.
pub async fn restore(pool: &PgPool, dataset: &Dataset) -> Result<(), Error> {
    let ours: bool = sqlx::query_scalar(
        "-- source.capture.ours
         select exists (
           select from cdc_export.owned o
           join pg_namespace n on n.nspname = o.schema_name
           join pg_class c on c.relnamespace = n.oid and c.relname = o.table_name
           where c.oid = to_regclass($1))",
    )
    .bind(select::relation(&dataset.table))
    .fetch_one(pool)
    .await?;
    if ours { track(pool, dataset).await } else { Ok(()) }
}

/// Removes the triggers from a dataset's table, which is exported no more.
///
/// # Errors
/// If there is no such table, or the role may not.
pub async fn untrack(pool: &PgPool, dataset: &Dataset) -> Result<(), Error> {
    let mut conn = pool.acquire().await?;
    let mut tx = conn.begin().await?;
    lock(&mut tx, dataset).await?;
    let found = find(&mut tx, dataset).await?;
    remove(&mut tx, &dataset.table, &found).await?;
    sqlx::query(
        "-- source.capture.untrack
         delete from cdc_export.tracked where schema_name = $1 and table_name = $2",
    )
    .bind(&found.schema_name)
    .bind(&found.table_name)
    .execute(&mut *tx)
    .await?;
    Ok(tx.commit().await?)
}

async fn install(conn: &mut PgConnection, dataset: &Dataset) -> Result<(), Error> {
    if dataset.capture != Capture::Triggers {
        return Err(Error::ByTimestamp(dataset.name.clone()));
    }
    let mut tx = conn.begin().await?;
    // Replicas that start at once: one installs, the others find it done.
    sqlx::raw_sql(
        "-- source.capture.one_at_a_time
         set local statement_timeout = 0; set local lock_timeout = 0;
         select pg_advisory_xact_lock(hashtextextended('cdc_export.track', 0))",
    )
    .execute(&mut *tx)
    .await?;
    let found = find(&mut tx, dataset).await?;
    let key = dataset.key.as_ref().unwrap_or(&found.primary_key);
    let installed = found.captured && found.logged_key.as_ref().unwrap_or(&found.primary_key) == key;
    if !installed {
        check(&found, dataset)?;
        look(&mut tx, dataset).await?;
        lock(&mut tx, dataset).await?;
        remove(&mut tx, &dataset.table, &found).await?;
        for statement in triggers(&found, key, &relations(&mut tx, &found).await?) {
            let denied = |cause| denied_or_else(&dataset.table, cause);
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *tx).await.map_err(denied)?;
        }
    }
    sqlx::query(
        "-- source.capture.track
         insert into cdc_export.tracked (schema_name, table_name, key) values ($1, $2, $3)
         on conflict (schema_name, table_name) do update set key = excluded.key",
    )
    .bind(&found.schema_name)
    .bind(&found.table_name)
    .bind(key)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    if !installed {
        tracing::info!(event = "table_tracked", table = %dataset.table);
    }
    Ok(())
}

async fn find(conn: &mut PgConnection, dataset: &Dataset) -> Result<Found, Error> {
    let found: Option<Found> = sqlx::query_as(concat!(
        "-- source.capture.find
         select t.oid, n.nspname::text as schema_name, t.relname::text as table_name, t.relkind::text as kind,
           case when t.relispartition then pg_partition_root(t.oid)::text end as parent,
           t.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = t.oid) as has_children,
           not t.relispartition and exists (select from pg_inherits i where i.inhrelid = t.oid) as is_child,
           t.relkind = 'r' and exists (select from pg_subscription_rel s where s.srrelid = t.oid) as is_subscribed,
           t.relpersistence <> 'p' as is_unlogged,
           array(select a.attname::text
                 from pg_index x
                 cross join lateral unnest(x.indkey) with ordinality as k (attnum, place)
                 join pg_attribute a on a.attrelid = t.oid and a.attnum = k.attnum
                 where x.indrelid = t.oid and x.indisprimary and k.place <= x.indnkeyatts
                 order by k.place) as primary_key,
           (select k.key from cdc_export.tracked k where k.schema_name = n.nspname and k.table_name = t.relname) as logged_key, ",
        captured!(),
        " as captured
         from pg_class t join pg_namespace n on n.oid = t.relnamespace where t.oid = to_regclass($1)"
    ))
    .bind(select::relation(&dataset.table))
    .fetch_optional(conn)
    .await?;
    found.ok_or_else(|| Error::NoTable(dataset.table.to_string()))
}

/// Whether triggers see everything that is written to it.
fn check(found: &Found, dataset: &Dataset) -> Result<(), Error> {
    let table = dataset.table.to_string();
    let kind = match found.kind.as_str() {
        "r" | "p" if found.has_children => "a table with children that inherit from it",
        // What is written through its parent fires the triggers of the parent alone.
        "r" | "p" if found.is_child => "a table that inherits from another",
        "r" if found.is_subscribed => "a table that a subscription writes to",
        "r" if found.is_unlogged => "an unlogged table, which a crash empties",
        "r" | "p" => "",
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        _ => "not a table",
    };
    if !kind.is_empty() {
        return Err(Error::NotATable { table, kind });
    }
    match found.parent.clone() {
        Some(parent) => Err(Error::Partition { table, parent }),
        None => Ok(()),
    }
}

async fn look(conn: &mut PgConnection, dataset: &Dataset) -> Result<Shape, Error> {
    shape::look(conn, dataset).await.map_err(|error| match error {
        shape::Error::Faults(faults) => Error::Mismatch(faults),
        shape::Error::Sql(cause) => denied_or_else(&dataset.table, cause),
    })
}

async fn lock(conn: &mut PgConnection, dataset: &Dataset) -> Result<(), Error> {
    let lock = format!(
        "-- source.capture.lock
         set local lock_timeout = '{LOCK_TIMEOUT}';
         lock table {} in share row exclusive mode",
        select::relation(&dataset.table)
    );
    let locked = sqlx::raw_sql(AssertSqlSafe(lock)).execute(conn).await;
    locked.map(drop).map_err(|cause| denied_or_else(&dataset.table, cause))
}

fn denied_or_else(table: &Table, cause: sqlx::Error) -> Error {
    match cause.as_database_error().and_then(|e| e.code()).as_deref() {
        // A reader that goes on to write while its table is locked here.
        Some("55P03" | "40P01") => Error::Busy(table.to_string()),
        Some("42501") => Error::Denied { table: table.to_string(), cause },
        _ => Error::Sql(cause),
    }
}

/// The table, and its partitions if it has any, quoted with their schemas.
async fn relations(conn: &mut PgConnection, found: &Found) -> Result<Vec<String>, Error> {
    let names: Vec<(String, String)> = sqlx::query_as(
        "-- source.capture.relations
         select n.nspname::text, c.relname::text
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.oid = $1 or c.oid in (select relid from pg_partition_tree($1))
         order by c.oid <> $1",
    )
    .bind(found.oid)
    .fetch_all(conn)
    .await?;
    Ok(names.iter().map(|(schema, name)| format!("{}.{}", select::quoted(schema), select::quoted(name))).collect())
}

/// Removes what is left of the triggers, with their functions, and the functions whose triggers somebody dropped.
async fn remove(conn: &mut PgConnection, table: &Table, found: &Found) -> Result<(), Error> {
    let functions: Vec<String> = sqlx::query_scalar(
        "-- source.capture.functions
         select format('cdc_export.%I', p.proname)
         from pg_proc p
         where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\\_%'
           and (not exists (select from pg_trigger x where x.tgfoid = p.oid)
             or exists (select from pg_trigger x where x.tgfoid = p.oid
                        and (x.tgrelid = $1 or x.tgrelid in (select relid from pg_partition_tree($1)))))",
    )
    .bind(found.oid)
    .fetch_all(&mut *conn)
    .await?;
    for function in functions {
        // The triggers depend on it and go with it.
        let drop = format!("-- source.capture.remove\n drop function {function}() cascade");
        let dropped = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *conn).await;
        dropped.map_err(|cause| denied_or_else(table, cause))?;
    }
    Ok(())
}

/// The head of every trigger function: its writer's settings must not show in a key's text, or one key would have two, and its
/// rights must not matter.
const HEAD: &str = "returns trigger language plpgsql security definer set search_path = '' set timezone = 'UTC'
  set datestyle = 'ISO' set intervalstyle = 'postgres' set bytea_output = 'hex' set extra_float_digits = 1";

/// The statements that make functions and triggers.
fn triggers(found: &Found, key: &[String], relations: &[String]) -> Vec<String> {
    // Not named after the table: it may be renamed, or dumped and restored beside another one.
    let id = uuid::Uuid::new_v4().simple();
    let name = |what: &str| format!("cdc_export.capture_{id}_{what}");
    let mut statements =
        if found.kind == "p" { by_row(key, relations, &name) } else { by_statement(key, relations, &name) };
    for relation in relations {
        statements.push(format!(
            "-- source.capture.always
             do $$ declare name name; begin
               for name in select tgname from pg_trigger where tgrelid = {}::regclass and tgname like 'cdc\\_export\\_%' loop
                 execute format('alter table {relation} enable always trigger %I', name);
               end loop;
             end $$",
            select::literal(relation)
        ));
    }
    statements
}

/// A plain table: one call a statement, which sees all its rows.
fn by_statement(key: &[String], relations: &[String], name: &dyn Fn(&str) -> String) -> Vec<String> {
    let logged_key = |row: &str| key_of(key, row);
    let same =
        key.iter().map(|column| format!("n.{0} = o.{0}", select::quoted(column))).collect::<Vec<_>>().join(" and ");
    let logged = "insert into cdc_export.change_log (tbl, op, pk";
    let table = &relations[0];
    vec![
        format!(
            "-- source.capture.insert
             create function {i}() {HEAD} as $f$ begin
               {logged}) select tg_relid, 'I', {key} from n;
               return null;
             end $f$;
             create trigger cdc_export_i after insert on {table} referencing new table as n
               for each statement execute function {i}()",
            i = name("i"),
            key = logged_key("n")
        ),
        // One trigger sees the rows before and after, so a key that was changed is logged as gone. plpgsql keeps the plan of a
        // session's first, small update; as a nested loop it would never end on 200,000 rows.
        format!(
            "-- source.capture.update
             create function {u}() {HEAD} set enable_nestloop = off as $f$ begin
               {logged}) select tg_relid, 'U', {new} from n;
               {logged}, old) select tg_relid, 'D', {old}, to_jsonb(o) from o
                 where not exists (select from n where {same});
               return null;
             end $f$;
             create trigger cdc_export_u after update on {table} referencing old table as o new table as n
               for each statement execute function {u}()",
            u = name("u"),
            new = logged_key("n"),
            old = logged_key("o")
        ),
        format!(
            "-- source.capture.delete
             create function {d}() {HEAD} as $f$ begin
               {logged}, old) select tg_relid, 'D', {key}, to_jsonb(o) from o;
               return null;
             end $f$;
             create trigger cdc_export_d after delete on {table} referencing old table as o
               for each statement execute function {d}()",
            d = name("d"),
            key = logged_key("o")
        ),
        format!(
            "-- source.capture.truncate
             create function {t}() {HEAD} as $f$ begin
               {logged}) values (tg_relid, 'T', null);
               return null;
             end $f$;
             create trigger cdc_export_t after truncate on {table} for each statement execute function {t}()",
            t = name("t")
        ),
    ]
}

/// A partitioned table: one call a row. Postgres clones row triggers to every partition, those to come too, so that they see
/// what is written directly into one; statement triggers of the parent wouldn't. A row that moves is a delete and an insert.
fn by_row(key: &[String], relations: &[String], name: &dyn Fn(&str) -> String) -> Vec<String> {
    let (new, old) = (key_of(key, "new"), key_of(key, "old"));
    let logged = "insert into cdc_export.change_log (tbl, op, pk";
    let (r, t, table) = (name("r"), name("t"), &relations[0]);
    let mut statements = vec![format!(
        "-- source.capture.rows
         create function {r}() {HEAD} as $f$ declare root oid := pg_catalog.pg_partition_root(tg_relid); begin
           if tg_op <> 'DELETE' then
             {logged}) values (root, case tg_op when 'INSERT' then 'I' else 'U' end::\"char\", {new});
           end if;
           if tg_op = 'DELETE' or tg_op = 'UPDATE' and {old} <> {new} then
             {logged}, old) values (root, 'D', {old}, to_jsonb(old));
           end if;
           return null;
         end $f$;
         create trigger cdc_export_r after insert or update or delete on {table} for each row execute function {r}();
         create function {t}() {HEAD} as $f$ begin
           -- A partition that was detached keeps this trigger, and is no part of any tree.
           {logged}) values (coalesce(pg_catalog.pg_partition_root(tg_relid), tg_relid), 'T', null);
           return null;
         end $f$"
    )];
    for relation in relations {
        statements.push(format!(
            "-- source.capture.truncate_partition
             create trigger cdc_export_t after truncate on {relation} for each statement execute function {t}()"
        ));
    }
    statements
}

/// A row's key as the log has it: a text for one column, a JSON array of texts for several.
fn key_of(key: &[String], row: &str) -> String {
    let columns: Vec<_> = key.iter().map(|column| format!("{row}.{}::text", select::quoted(column))).collect();
    match columns.as_slice() {
        [column] => column.clone(),
        columns => format!("jsonb_build_array({})::text", columns.join(", ")),
    }
}
