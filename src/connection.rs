//! A connection to Postgres, its session set up as every statement of ours expects it, and what its errors mean,
//! whichever module it is for.
//!
//! Knows no table.

pub(crate) mod failure;
pub(crate) mod statement;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection};

/// Where our statements find what they name: in Postgres's own schema and in ours, which nobody else may put things
/// into. In a schema of the role's own path, `public` above all, somebody may have a function or an operator that fits
/// its arguments better than Postgres's. Temporary objects come last, and are said for that: they would come first.
pub(crate) const SEARCH_PATH: &str = "pg_catalog, cdc_export, pg_temp";

/// Sets a session up, whatever the server's or the role's defaults are. By statements: poolers refuse what is asked for
/// when connecting. The role's own path is kept beside, to find a user's table by; a pooler may hand on a session that
/// has ours. plpgsql makes no extra checks of our functions. A commit waits for the server's own disk, because a crash
/// would otherwise lose what clients were told of; every other value of `synchronous_commit` stays as the operator has
/// set it. Then come all settings that change how Postgres reads or writes a value, except `client_encoding`, which the
/// driver sets, and `lc_monetary`, which says what an amount of `money` is. Row-level security is an error where it
/// would filter: hidden rows would look deleted, and a policy's function is somebody's. To compile a statement of ours
/// takes longer than to run it, by seconds where somebody's planner settings make it look dear. The server learns
/// within a minute that our end of an idle connection is gone; the system's own default is hours.
pub(crate) const SET_UP: &str =
    "select pg_catalog.set_config('cdc_export.role_path', pg_catalog.current_setting('search_path'), false)
     where pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, cdc_export, pg_temp';
   set search_path = pg_catalog, cdc_export, pg_temp;
   set plpgsql.extra_errors = ''; set plpgsql.extra_warnings = '';
   select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off';
   set array_nulls = on; set bytea_output = 'hex'; set datestyle = 'ISO, MDY'; set extra_float_digits = 1;
   set gin_fuzzy_search_limit = 0; set intervalstyle = 'postgres'; set quote_all_identifiers = off;
   set standard_conforming_strings = on; set timezone = 'UTC'; set transform_null_equals = off; set xmloption = 'content';
   set row_security = off;
   set jit = off;
   set default_transaction_isolation = 'read committed'; set default_transaction_read_only = off;
   set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3;";

/// A name as an identifier: whatever is in it, it is one name.
pub(crate) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A connection whose session is set up.
///
/// # Errors
/// If Postgres refuses or can't be reached.
pub(crate) async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut conn = PgConnection::connect_with(options).await?;
    set_up(&mut conn).await?;
    Ok(conn)
}

/// Sets up the session of a connection.
///
/// # Errors
/// If Postgres refuses.
pub(crate) async fn set_up(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let set = sqlx::AssertSqlSafe(format!("-- connection.set_up\n {SET_UP}"));
    sqlx::raw_sql(set).execute(conn).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_path_is_set_and_known_again() {
        assert_eq!(SET_UP.matches(SEARCH_PATH).count(), 2);
    }
}
