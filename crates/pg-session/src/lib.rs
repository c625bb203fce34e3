#![doc = include_str!("../README.md")]

pub mod failure;
pub mod pool;
pub mod session_name;
pub mod statement;
pub mod table_name;
pub mod wait;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, PgConnection, Row};

use crate::failure::ReadOnlySession;

/// The search_path of our statements: Postgres's own schema and ours, in which no other user can create objects.
///
/// A schema of the role's own path, for example `public`, may contain functions and operators of other users. These may
/// fit the arguments better than Postgres's own. `pg_temp` is named last, because otherwise temporary objects would be
/// found first.
pub const SEARCH_PATH: &str = "pg_catalog, cdc_export, pg_temp";

/// The search_path of our statements in a target database. A schema `cdc_export` there may be another role's.
const TARGET_SEARCH_PATH: &str = "pg_catalog, pg_temp";

/// The statements that set up a session, independently of the defaults of the server and the role. Poolers refuse such
/// settings as startup parameters.
///
/// - The role's own search_path is kept in `cdc_export.role_path`, to find users' tables. A pooler may provide a
///   session that already has one of our paths.
/// - plpgsql makes no extra checks of our functions.
/// - A commit waits for the server's own disk. Otherwise a crash could lose a commit that clients were notified of.
///   Every other value of `synchronous_commit` remains as the operator has set it.
/// - All settings that change how Postgres reads or writes a value are fixed. Exceptions are `client_encoding`, which
///   the driver sets, and `lc_monetary`, which determines the currency of `money`.
/// - The timeouts of the server, the role and the database are lifted, except `lock_timeout`. Callers set the limits
///   that they need. Not every version of Postgres has all four settings.
/// - Row-level security is an error if it would filter. Hidden rows would look deleted, and a policy may call a
///   function of another user.
/// - JIT compilation is off. It takes longer than our statements themselves, by seconds if the planner settings make a
///   statement look expensive.
/// - The server sends no warnings, which the driver would log. A function of a view or a filter may raise one for each
///   row, and may quote a value. The server's own log has them.
/// - The server detects a dead peer of an idle connection within a minute. The default of the system is hours.
///
/// `default_transaction_read_only` stays as the operator has set it: see [`set_up`].
const SET_UP: &str = "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0;
   select pg_catalog.set_config('cdc_export.role_path', pg_catalog.current_setting('search_path'), false)
     where pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, pg_temp'
       and pg_catalog.current_setting('search_path') operator(pg_catalog.<>) 'pg_catalog, cdc_export, pg_temp';
   set search_path = pg_catalog, cdc_export, pg_temp;
   select set_config(name, '0', false) from unnest(array['idle_session_timeout', 'transaction_timeout']) as name
     where current_setting(name, true) is not null;
   set plpgsql.extra_errors = ''; set plpgsql.extra_warnings = '';
   select set_config('synchronous_commit', 'on', false) where current_setting('synchronous_commit') = 'off';
   set array_nulls = on; set bytea_output = 'hex'; set datestyle = 'ISO, MDY'; set extra_float_digits = 1;
   set gin_fuzzy_search_limit = 0; set intervalstyle = 'postgres'; set quote_all_identifiers = off;
   set standard_conforming_strings = on; set timezone = 'UTC'; set transform_null_equals = off;
   set xmlbinary = 'base64'; set xmloption = 'content';
   set row_security = off;
   set jit = off; set client_min_messages = error;
   set default_transaction_isolation = 'read committed';
   set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3;";

/// Returns a name as a quoted identifier.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut conn = PgConnection::connect_with(options).await?;
    set_up(&mut conn, "").await?;
    Ok(conn)
}

pub async fn connect_target(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let mut conn = PgConnection::connect_with(options).await?;
    run_set_up(&mut conn, &SET_UP.replace(&format!("= {SEARCH_PATH};"), &format!("= {TARGET_SEARCH_PATH};"))).await?;
    Ok(conn)
}

/// Sets up a session, and then runs the statements in `more`.
///
/// # Errors
/// If Postgres fails, or with [`ReadOnlySession`] if the session can't write. The service could lift the operator's
/// setting, but that may guard a full disk.
pub async fn set_up(conn: &mut PgConnection, more: &str) -> Result<(), sqlx::Error> {
    run_set_up(conn, &format!("{SET_UP} {more}")).await
}

async fn run_set_up(conn: &mut PgConnection, statements: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("-- connection.set_up\n {statements}"))).execute(&mut *conn).await?;
    require_writable(conn).await
}

/// Checks that a session answers and can write.
pub async fn require_writable(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    let asked =
        sqlx::raw_sql("-- session.writes\n select pg_is_in_recovery(), current_setting('transaction_read_only')");
    let found = asked.fetch_one(conn).await?;
    match (found.try_get(0)?, found.try_get(1)?) {
        (false, "off") => Ok(()),
        (true, _) => Err(ReadOnlySession::Standby.into()),
        (false, _) => Err(ReadOnlySession::Setting.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_paths_that_are_set_are_the_ones_that_are_compared() {
        assert_eq!(SET_UP.matches(SEARCH_PATH).count(), 2);
        assert_eq!(SET_UP.matches(&format!("= {SEARCH_PATH};")).count(), 1);
        assert_eq!(SET_UP.matches(&format!("'{TARGET_SEARCH_PATH}'")).count(), 1);
    }
}
