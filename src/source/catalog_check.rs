//! Compares a catalog with the live tables. Finds mismatches, and tables whose changes aren't captured.

use std::sync::LazyLock;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};

use crate::connection::failure::SqlFailure;
use crate::connection::statement::with_pieces;
use crate::dataset::catalog::Catalog;
use crate::dataset::fault::{Fault, Faults};
use crate::dataset::{Capture, Dataset, Table, TableSchema, no_right_to_log};
use crate::source::capture::untracking;
use crate::source::captured::CAPTURE;
use crate::source::quote::relation;
use crate::source::rights::TableAccess;
use crate::source::{filter, lag, parallel_apply, rights, role_path, table_schema};

/// The result of a check of a catalog's tables.
#[derive(Debug, Default)]
pub struct Findings {
    /// Mismatches between datasets and tables.
    pub faults: Faults,
    /// Faults of datasets that fit their tables: rights that the role or the triggers lack, and tables that Postgres
    /// can't read.
    pub unreadable: Vec<Fault>,
    /// The datasets that fit their tables and need triggers, but whose tables are not in `cdc_export.tracked`.
    pub untracked: Vec<String>,
    /// The datasets whose tables were tracked, and whose changes aren't captured now: a trigger is missing, or the key
    /// differs.
    pub broken: Vec<Fault>,
    /// The datasets whose incrementals and deltas read the whole table, because no index begins with `updated_at`.
    pub slow: Vec<Fault>,
    /// The tables whose changes are captured although no dataset needs them.
    pub without_dataset: Vec<Table>,
    /// Subscriptions that may wait for ever at the dataset's table.
    pub stalling: Vec<Fault>,
}

/// Compares a whole catalog with the live tables, and returns what doesn't fit.
pub async fn check(pool: &PgPool, catalog: &Catalog) -> Result<Findings, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    let (mut found, mut others) = (Findings::default(), Vec::<Logged>::new());
    for dataset in catalog.iter() {
        let Faults(faults) = &mut found.faults;
        let access = rights::read_access(&mut conn, dataset).await?;
        if let Some(fault) = access.hidden() {
            found.unreadable.push(fault.clone());
            continue;
        }
        let Some(schema) = fits(&mut conn, dataset, &access, faults).await? else { continue };
        match access.unreadable {
            Some(fault) => found.unreadable.push(fault),
            None => found.unreadable.extend(role_path::check(&mut conn, dataset, &schema).await?),
        }
        found.slow.extend(without_index(&mut conn, dataset, &schema).await?);
        if let Some(logged) = Logged::read(&mut conn, dataset, &schema).await? {
            faults.extend(others.iter().find_map(|other| logged.conflict(other)));
            others.push(logged);
            let CapturedKey { captured, logged_key, mute_role } = captured_key(&mut conn, dataset).await?;
            match logged_key {
                None => found.untracked.push(dataset.name.clone()),
                Some(key) if captured && schema.has_key(&key) => {
                    found.unreadable.extend(mute_role.map(|role| capture_fault(dataset, no_right_to_log(&role))));
                }
                Some(_) => found.broken.push(broken(dataset)),
            }
            found.stalling.extend(parallel_apply::read_stalling(&mut conn, dataset).await?);
        }
    }
    found.without_dataset = untracking::without_dataset(&mut conn, catalog).await?;
    Ok(found)
}

/// Returns a fault if no index begins with the dataset's `updated_at`: each incremental and delta then reads the whole
/// table.
async fn without_index(
    conn: &mut PgConnection,
    dataset: &Dataset,
    schema: &TableSchema,
) -> Result<Option<Fault>, sqlx::Error> {
    let Some(time) = &schema.updated_at else { return Ok(None) };
    let why = format!("no index begins with `{}`: each incremental and delta reads the whole table", time.name);
    let fault = Fault { dataset: dataset.name.clone(), member: "updated_at", item: None, why };
    Ok((!lag::has_index(conn, &relation(&schema.table), &time.name).await?).then_some(fault))
}

/// Compares one dataset with its table, and with the other datasets that share its triggers, and returns what doesn't
/// fit. Other faults of those datasets are left out.
pub async fn check_one(pool: &PgPool, catalog: &Catalog, dataset: &Dataset) -> Result<Faults, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    let mut faults = Vec::new();
    let access = rights::read_access(&mut conn, dataset).await?;
    let Some(schema) = fits(&mut conn, dataset, &access, &mut faults).await? else { return Ok(Faults(faults)) };
    if access.unreadable.is_none() {
        faults.extend(role_path::check(&mut conn, dataset, &schema).await?);
    }
    let Some(logged) = Logged::read(&mut conn, dataset, &schema).await? else { return Ok(Faults(faults)) };
    for other in catalog.iter().filter(|other| other.name != dataset.name) {
        let access = rights::read_access(&mut conn, other).await?;
        let Some(schema) = introspect(&mut conn, other, &access).await?.ok() else { continue };
        let other = Logged::read(&mut conn, other, &schema).await?;
        faults.extend(other.and_then(|other| logged.conflict(&other)));
    }
    Ok(Faults(faults))
}

/// Returns the subscriptions that may wait for ever at a dataset's table because it has triggers.
pub async fn stalling(pool: &PgPool, dataset: &Dataset) -> Result<Vec<Fault>, sqlx::Error> {
    parallel_apply::read_stalling(&mut *pool.acquire().await?, dataset).await
}

static CAPTURED_KEY: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("catalog_check/captured_key.sql"), &[("captured.sql", CAPTURE)]));

#[derive(Default, sqlx_macros::FromRow)]
struct CapturedKey {
    captured: bool,
    /// `None` if the table is not in `cdc_export.tracked`.
    logged_key: Option<Vec<String>>,
    mute_role: Option<String>,
}

/// Reads whether the changes of a dataset's table are captured, and by which key.
async fn captured_key(conn: &mut PgConnection, dataset: &Dataset) -> Result<CapturedKey, sqlx::Error> {
    let found: Option<CapturedKey> = sqlx::query_as(AssertSqlSafe(CAPTURED_KEY.as_str()))
        .bind(relation(&dataset.table))
        .fetch_optional(conn)
        .await?;
    Ok(found.unwrap_or_default())
}

fn broken(dataset: &Dataset) -> Fault {
    let why = format!(
        "the changes of its table are no longer captured: `cdc-export track {}`, then a full export for each consumer",
        dataset.name
    );
    capture_fault(dataset, why)
}

fn capture_fault(dataset: &Dataset, why: String) -> Fault {
    Fault { dataset: dataset.name.clone(), member: "capture", item: None, why }
}

/// The key that a dataset requires the triggers of its table to log.
struct Logged {
    dataset: String,
    /// The table's name in the catalog.
    table: String,
    oid: Oid,
    key: Vec<String>,
}

impl Logged {
    /// Returns the key of a dataset, or `None` if the dataset needs no triggers.
    async fn read(
        conn: &mut PgConnection,
        dataset: &Dataset,
        schema: &TableSchema,
    ) -> Result<Option<Logged>, sqlx::Error> {
        if dataset.capture != Capture::Triggers {
            return Ok(None);
        }
        let oid = sqlx::query_scalar("-- source.catalog_check.oid\n select cdc_export.table_of_role($1)::oid");
        let oid = oid.bind(relation(&dataset.table)).fetch_one(conn).await?;
        let key = schema.key.iter().map(|part| part.column.name.to_string()).collect();
        Ok(Some(Logged { dataset: dataset.name.clone(), table: dataset.table.to_string(), oid, key }))
    }

    /// Returns a fault if both datasets have the same table and different keys. The triggers of a table log one key.
    fn conflict(&self, other: &Logged) -> Option<Fault> {
        let why = || format!("`{}` is captured for `{}` too, which has another key", self.table, other.dataset);
        let fault = || Fault { dataset: self.dataset.clone(), member: "key", item: None, why: why() };
        (self.oid == other.oid && self.key != other.key).then(fault)
    }
}

/// Returns the table's schema if the dataset fits it. Adds each mismatch to the faults.
async fn fits(
    conn: &mut PgConnection,
    dataset: &Dataset,
    access: &TableAccess,
    faults: &mut Vec<Fault>,
) -> Result<Option<TableSchema>, sqlx::Error> {
    match introspect(conn, dataset, access).await? {
        Ok(schema) => {
            let fault = match filter::check(conn, dataset, &schema.table).await {
                // Somebody has locked the table. The first export tries the filter.
                Err(cause) if SqlFailure::of(&cause) == SqlFailure::LockTimeout => None,
                checked => checked?,
            };
            let fits = fault.is_none();
            faults.extend(fault);
            Ok(fits.then_some(schema))
        }
        Err(found) => {
            faults.extend(found.0);
            Ok(None)
        }
    }
}

async fn introspect(
    conn: &mut PgConnection,
    dataset: &Dataset,
    access: &TableAccess,
) -> Result<Result<TableSchema, Faults>, sqlx::Error> {
    match table_schema::introspect_visible(conn, dataset, access).await {
        Ok(schema) => Ok(Ok(schema)),
        Err(table_schema::Error::Faults(found)) => Ok(Err(found)),
        Err(table_schema::Error::Hidden(fault)) => Ok(Err(Faults(vec![fault]))),
        Err(table_schema::Error::Sql(cause)) => Err(cause),
    }
}
