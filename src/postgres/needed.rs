//! Functions and catalogs of Postgres that the service's statements use. A managed server may lack some, and an
//! administrator may revoke the rights to them.
//!
//! A start, `track` and `datasets check` ask for all of them at once, so that no request finds out later. What the
//! service does without is not here: a timeline (`cdc_export.timeline`), `pg_subscription` and LISTEN.

use sqlx::{AssertSqlSafe, PgConnection};

use crate::postgres::Error;
use pg_session::failure::sqlstate;

/// The calls and catalogs, each as the rest of a SELECT, without those that the checks before this one use. A call that
/// would change something has `where false`: Postgres then checks only the right to call it.
const NEEDED: &str = "pg_column_size(1); pg_control_system(); pg_current_snapshot(); pg_export_snapshot();
    pg_current_xact_id() from pg_class where false; pg_get_functiondef(oid) from pg_proc where false;
    pg_get_serial_sequence('pg_class', 'oid'); pg_get_userbyid(10); pg_has_role(10, 'usage'); pg_options_to_table('{}');
    pg_notify('cdc_export_needed', ''); pg_partition_ancestors('pg_class'); pg_partition_root('pg_class');
    pg_partition_tree('pg_class'); pg_postmaster_start_time(); pg_relation_filenode('pg_class');
    pg_relation_size('pg_class'); pg_table_size('pg_class'); pg_total_relation_size('pg_class');
    pg_sequence_last_value(oid) from pg_class where false; pg_snapshot_xip(pg_current_snapshot());
    pg_snapshot_xmax(pg_current_snapshot()); pg_snapshot_xmin(pg_current_snapshot()); pg_stat_clear_snapshot();
    pg_stat_get_live_tuples('pg_class'::regclass); pg_terminate_backend(pid) from pg_stat_activity where false;
    pg_try_advisory_lock(0) from pg_class where false; pg_visible_in_snapshot('3', pg_current_snapshot());
    pg_walfile_name(pg_current_wal_lsn()); pg_xact_commit_timestamp(xmin) from pg_class where false;
    from pg_am, pg_amop, pg_attrdef, pg_attribute, pg_auth_members, pg_cast, pg_class, pg_collation, pg_constraint,
      pg_database, pg_depend, pg_enum, pg_index, pg_inherits, pg_locks, pg_namespace, pg_opclass, pg_operator,
      pg_partitioned_table, pg_prepared_xacts, pg_proc, pg_rewrite, pg_roles, pg_settings, pg_stat_activity,
      pg_stat_replication, pg_statistic_ext, pg_subscription_rel, pg_trigger, pg_type where false";

/// The class of SQLSTATEs for a full disk, or no free memory.
const OUT_OF_RESOURCES: &str = "53";

/// Requires that the server has what the statements need, and that the role may use it.
///
/// # Errors
/// [`Error::Lacking`] names the first call that Postgres refuses.
pub(super) async fn require_needed(conn: &mut PgConnection) -> Result<(), Error> {
    let select = |needed: &str| AssertSqlSafe(format!("-- postgres.needed\n select {needed}"));
    let together = NEEDED.replace(';', "; select ");
    if sqlx::raw_sql(select(&together)).execute(&mut *conn).await.is_ok() {
        return Ok(());
    }
    for needed in NEEDED.split(';').map(str::trim) {
        let Err(error) = sqlx::raw_sql(select(needed)).execute(&mut *conn).await else { continue };
        let Some(refusal) = error.as_database_error() else { return Err(error.into()) };
        // A full disk is no refusal: some of the calls write a file. `untrack` has to go on then.
        if sqlstate(&error).starts_with(OUT_OF_RESOURCES) {
            continue;
        }
        let name = needed.split_once('(').map_or("a catalog", |(name, _)| name);
        // The database's own function `cdc_export.timeline` does without it too, but not where a right is missing.
        if name != "pg_walfile_name" || !matches!(&*sqlstate(&error), "55000" | "0A000") {
            return Err(Error::Lacking { name: name.to_owned(), refusal: refusal.message().to_owned() });
        }
        tracing::warn!(
            event = "timeline_unknown",
            error = refusal.message(),
            "Postgres doesn't tell its timeline: only the markers in the output and `after` show a restored database"
        );
    }
    Ok(())
}
