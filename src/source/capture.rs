//! Change capture: the triggers that write the keys of changed rows to the log.
//!
//! Knows no consumer.

mod functions;
mod triggers;

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::dataset::catalog::{Catalog, Faults};
use crate::dataset::{Capture, Dataset, Shape, Table};
use crate::source::{quote, shape};

pub use functions::renew;

/// The lock that triggers need queues the table's writers behind it, so it is not waited for longer than this.
const LOCK_TIMEOUT: &str = "2s";
/// How often it is tried, with a pause for the writers in between.
const TRIES: u32 = 20;

/// Why a table's changes can't be captured. Each is one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such table.
    #[error("there is no table `{0}`")]
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
    #[error("{0}")]
    Mismatch(Faults),
    /// The dataset wants no triggers.
    #[error("`{0}` has capture = \"timestamp\", which needs no triggers")]
    ByTimestamp(String),
    /// Another dataset is of the same table.
    #[error(
        "dataset `{other}` is of the same table as `{dataset}`, and needs its triggers: take that out of the file first"
    )]
    Shared {
        /// The dataset.
        dataset: String,
        /// The other one.
        other: String,
    },
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

/// What the triggers log that a table `t` (of `pg_class`), in the schema `n`, was given; null: it was given none. Before it was kept,
/// that was the primary key.
macro_rules! logged_key {
    () => {
        "(select coalesce(k.key, array(
            select a.attname::text
            from pg_index x
            cross join lateral unnest(x.indkey) with ordinality as i (attnum, place)
            join pg_attribute a on a.attrelid = t.oid and a.attnum = i.attnum
            where x.indrelid = t.oid and x.indisprimary and i.place <= x.indnkeyatts
            order by i.place))
          from cdc_export.tracked k where k.schema_name = n.nspname and k.table_name = t.relname)"
    };
}
pub(crate) use logged_key;

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

/// Puts the triggers back on the demo's own table, where they are missing. Not on one that somebody brought: that is for `track`.
///
/// # Errors
/// If they are missing and can't be installed.
pub async fn restore(pool: &PgPool) -> Result<(), Error> {
    let users = Dataset::users();
    let ours: Option<Option<Vec<String>>> = sqlx::query_scalar(
        "-- source.capture.ours
         select (select k.key from cdc_export.tracked k where (k.schema_name, k.table_name) = (o.schema_name, o.table_name))
         from cdc_export.owned o
         join pg_namespace n on n.nspname = o.schema_name
         join pg_class c on c.relnamespace = n.oid and c.relname = o.table_name
         where c.oid = cdc_export.table_of_role($1)",
    )
    .bind(quote::relation(&users.table))
    .fetch_optional(pool)
    .await?;
    match ours {
        None => Ok(()),
        // What the triggers log is for `track` to change.
        Some(key) => track(pool, &Dataset { key, ..users }).await,
    }
}

/// Removes the triggers from a dataset's table, which is exported no more.
///
/// # Errors
/// If there is no such table, another dataset needs its triggers, or the role may not.
pub async fn untrack(pool: &PgPool, dataset: &Dataset, catalog: &Catalog) -> Result<(), Error> {
    let mut conn = pool.acquire().await?;
    let mut tx = conn.begin().await?;
    let found = find(&mut tx, dataset).await?;
    lock(&mut tx, dataset, &found).await?;
    let found = find(&mut tx, dataset).await?;
    for other in catalog.iter().filter(|other| other.name != dataset.name && other.capture == Capture::Triggers) {
        if find(&mut tx, other).await.is_ok_and(|its| its.oid == found.oid) {
            return Err(Error::Shared { dataset: dataset.name.clone(), other: other.name.clone() });
        }
    }
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
    one_at_a_time(&mut tx).await?;
    let found = find(&mut tx, dataset).await?;
    let key = dataset.key.as_ref().unwrap_or(&found.primary_key);
    let installed = found.captured && found.logged_key.as_ref().unwrap_or(&found.primary_key) == key;
    if !installed {
        check(&found, dataset)?;
        lock(&mut tx, dataset, &found).await?;
        let shape = look(&mut tx, dataset).await?;
        remove(&mut tx, &dataset.table, &found).await?;
        let denied = |cause| denied_or_else(&dataset.table, cause);
        let relations = relations(&mut tx, &found).await?;
        let key: Vec<_> = shape.key.iter().map(|part| part.column.name.to_string()).collect();
        let names: Vec<_> = relations.iter().map(|relation| relation.name.clone()).collect();
        let made = triggers::statements(found.kind == "p", &key, &names);
        let mut owners: Vec<_> = relations.into_iter().map(|relation| relation.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        let definer = functions::definer(&mut tx).await?;
        for function in &made.functions {
            functions::make(&mut tx, function, &owners, definer.as_ref()).await.map_err(denied)?;
        }
        for statement in made.triggers {
            sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *tx).await.map_err(denied)?;
        }
        for name in &names {
            always(&mut tx, name).await.map_err(denied)?;
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

/// Replicas that start at once: one installs, the others find it done.
async fn one_at_a_time(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let lock = sqlx::raw_sql(
        "-- source.capture.one_at_a_time
         set local statement_timeout = 0; set local lock_timeout = 0;
         select from cdc_export.locks where name = 'track' for update",
    );
    lock.execute(conn).await.map(drop)
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
           ",
        logged_key!(),
        " as logged_key, ",
        captured!(),
        " as captured
         from pg_class t join pg_namespace n on n.oid = t.relnamespace where t.oid = cdc_export.table_of_role($1)"
    ))
    .bind(quote::relation(&dataset.table))
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

async fn lock(conn: &mut PgConnection, dataset: &Dataset, found: &Found) -> Result<(), Error> {
    let table = Table { schema: Some(found.schema_name.clone()), name: found.table_name.clone() };
    let lock = format!(
        "-- source.capture.lock
         set local lock_timeout = '{LOCK_TIMEOUT}';
         lock table {} in share row exclusive mode",
        quote::relation(&table)
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

/// A table or a partition.
struct Relation {
    /// Quoted, with its schema.
    name: String,
    owner: String,
}

/// The table, and its partitions if it has any.
async fn relations(conn: &mut PgConnection, found: &Found) -> Result<Vec<Relation>, Error> {
    let found: Vec<(String, String, String)> = sqlx::query_as(
        "-- source.capture.relations
         select n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.oid = $1 or c.oid in (select relid from pg_partition_tree($1))
         order by c.oid <> $1",
    )
    .bind(found.oid)
    .fetch_all(conn)
    .await?;
    let relation = |(schema, name, owner): (String, String, String)| {
        let name = format!("{}.{}", quote::quoted(&schema), quote::quoted(&name));
        Relation { name, owner }
    };
    Ok(found.into_iter().map(relation).collect())
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

/// Lets the triggers of a table fire whatever `session_replication_role` says.
async fn always(conn: &mut PgConnection, relation: &str) -> Result<(), sqlx::Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "-- source.capture.triggers
         select tgname::text from pg_trigger where tgrelid = to_regclass($1) and tgname like 'cdc\\_export\\_%'",
    )
    .bind(relation)
    .fetch_all(&mut *conn)
    .await?;
    for name in names {
        let name = quote::quoted(&name);
        let always = format!("-- source.capture.always\n alter table {relation} enable always trigger {name}");
        sqlx::raw_sql(AssertSqlSafe(always)).execute(&mut *conn).await?;
    }
    Ok(())
}
