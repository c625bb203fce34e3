//! The stamps by which the guard recognizes a table's triggers and functions.
//!
//! If the service replaces a trigger or a function by an equivalent one, this module records the new stamp. So an
//! upgrade costs no consumer a full export.

use std::sync::LazyLock;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, PgConnection};

use crate::captured::CAPTURE;
use pg_session::statement::with_pieces;

static STAMPS: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("stamps.sql"), &[("captured.sql", CAPTURE)]));

/// The stamps of a table whose changes are captured.
#[derive(Debug, sqlx_macros::FromRow)]
pub(super) struct Stamps {
    table_oid: Oid,
    rows: Option<String>,
    functions: Option<String>,
}

/// Reads the stamps of those tables whose changes are captured now.
pub(super) async fn read(conn: &mut PgConnection, tables: &[Oid]) -> Result<Vec<Stamps>, sqlx::Error> {
    sqlx::query_as(AssertSqlSafe(STAMPS.as_str())).bind(tables).fetch_all(conn).await
}

/// Records the stamps that replaced those of `before`, for tables that were captured before and are captured now.
/// Positions that were saved with an old stamp then remain valid.
///
/// The positions themselves are not updated, because a running export saves the stamp that it saw when it began.
pub(super) async fn record(conn: &mut PgConnection, before: &[Stamps]) -> Result<(), sqlx::Error> {
    let tables: Vec<_> = before.iter().map(|was| was.table_oid).collect();
    for now in read(conn, &tables).await? {
        let Some(was) = before.iter().find(|was| was.table_oid == now.table_oid) else { continue };
        for (was, now_is) in [(&was.rows, &now.rows), (&was.functions, &now.functions)] {
            if was == now_is {
                continue;
            }
            let (Some(was), Some(now_is)) = (was, now_is) else { continue };
            sqlx::query(
                "-- source.capture.record
                 update cdc_export.tracked k
                 set renewed = coalesce(
                   (select jsonb_object_agg(r.key, case when r.value = $2 then $3 else r.value end) from jsonb_each_text(k.renewed) r),
                   '{}') || jsonb_build_object($2::text, $3::text)
                 from pg_class t join pg_namespace n on n.oid = t.relnamespace
                 where t.oid = $1 and (k.schema_name, k.table_name) = (n.nspname, t.relname)",
            )
            .bind(now.table_oid)
            .bind(was)
            .bind(now_is)
            .execute(&mut *conn)
            .await?;
        }
    }
    Ok(())
}
