//! A catalogue against the live tables: everything in it that can't be.

use sqlx::PgPool;
use sqlx::postgres::types::Oid;

use crate::dataset::Capture;
use crate::dataset::catalog::{Catalog, Fault, Faults};
use crate::source::quote::relation;
use crate::source::{filter, shape};

/// Holds a whole catalogue against the live tables.
///
/// # Errors
/// If the database fails. What doesn't fit is the result.
pub async fn check(pool: &PgPool, catalog: &Catalog) -> Result<Faults, sqlx::Error> {
    let mut conn = pool.acquire().await?;
    let (mut faults, mut seen) = (Vec::new(), Vec::<(Oid, String, Vec<String>)>::new());
    for dataset in catalog.iter() {
        let shape = match shape::look(&mut conn, dataset).await {
            Ok(shape) => shape,
            Err(shape::Error::Faults(found)) => {
                faults.extend(found.0);
                continue;
            }
            Err(shape::Error::Sql(cause)) => return Err(cause),
        };
        faults.extend(filter::check(&mut conn, dataset, &shape.table).await?);
        if dataset.capture != Capture::Triggers {
            continue;
        }
        let oid = sqlx::query_scalar("-- source.catalog.oid\n select cdc_export.table_of_role($1)::oid");
        let oid: Oid = oid.bind(relation(&dataset.table)).fetch_one(&mut *conn).await?;
        let key: Vec<_> = shape.key.iter().map(|part| part.column.name.to_string()).collect();
        // The triggers of a table log one key.
        if let Some((_, other, _)) = seen.iter().find(|(table, _, its)| *table == oid && *its != key) {
            let why = format!("`{}` is captured for `{other}` too, which has another key", dataset.table);
            faults.push(Fault { dataset: dataset.name.clone(), member: "key", item: None, why });
        }
        seen.push((oid, dataset.name.clone(), key));
    }
    Ok(Faults(faults))
}
