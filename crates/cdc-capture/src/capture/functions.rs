//! Creates the trigger functions in the database with the least rights that they need, and renews them in place.
//!
//! A function keeps its oid when its text is replaced. So its triggers don't change, and consumers' positions stay
//! valid.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sqlx::postgres::types::Oid;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::capture::function_text::{Function, VERSION};
use crate::capture::{Triggers, one_at_a_time, stamps};
use crate::quote;
use crate::trigger::TriggerKind;
use pg_session::failure::{SqlFailure, sqlstate};

/// The name of the role that the functions run as, without the database's oid at its end.
///
/// The service creates the role if it may. The role can't log in, and may only insert into the log. Each database has
/// its own role, because everyone who may give functions to a role can write to the log through it.
const DEFINER: &str = "cdc_export_capture_";

/// Creates a function with this version's text, or replaces it. If there is a definer, the function belongs to it. Only
/// `callers` may create triggers with the function.
pub(super) async fn make(
    conn: &mut PgConnection,
    function: &Function,
    callers: &[String],
    definer: Option<&Definer>,
) -> Result<(), sqlx::Error> {
    let name = function.name();
    let mut statements = vec![
        format!("-- source.capture.function\n {}", function.create()),
        format!("-- source.capture.revoke\n revoke execute on function {name}() from public"),
    ];
    statements.extend(callers.iter().map(|role| {
        format!("-- source.capture.grant\n grant execute on function {name}() to {}", quote::quoted(role))
    }));
    if let Some(Definer { role, is_granted_by_superuser }) = definer {
        let owned = format!("-- source.capture.own\n alter function {name}() owner to {role}");
        // Without superuser, the new owner of a function needs the right to create objects in its schema.
        let create = |verb, to| format!("-- source.capture.own.right\n {verb} create on schema cdc_export {to} {role}");
        match is_granted_by_superuser {
            true => statements.push(owned),
            false => statements.extend([create("grant", "to"), owned, create("revoke", "from")]),
        }
    }
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *conn).await?;
    }
    Ok(())
}

/// Returns, for each table and its key, whether the text of the key depends on no setting of a session.
pub(super) async fn are_plain(
    conn: &mut PgConnection,
    keys: impl Iterator<Item = (Oid, &[String])>,
) -> Result<Vec<bool>, sqlx::Error> {
    let (tables, keys): (Vec<_>, Vec<_>) = keys.map(|(table, key)| (table, Json(key))).unzip();
    sqlx::query_scalar(include_str!("functions/is_plain_key.sql")).bind(tables).bind(keys).fetch_all(conn).await
}

/// The role that the functions run as, if the session may make this role the owner of a function.
#[derive(Clone, Debug)]
pub(super) struct Definer {
    role: String,
    is_granted_by_superuser: bool,
}

#[derive(sqlx_macros::FromRow)]
struct Roles {
    definer: String,
    is_superuser: bool,
    may_create: bool,
    definer_exists: bool,
    /// True if the definer has no more rights than one that this service creates.
    is_harmless: bool,
    /// True if the session may make the definer the owner of a function.
    is_member: bool,
    /// True if the definer may write to the log.
    has_rights: bool,
    /// True if the session may let the definer own functions in the service's schema.
    may_grant: bool,
}

/// Creates the role that the functions run as, if it is missing. Returns `None` if the role can't be used. The
/// functions then run as the service's own role.
pub(super) async fn definer(conn: &mut PgConnection) -> Result<Option<Definer>, sqlx::Error> {
    let roles: Roles = sqlx::query_as(
        "-- source.capture.roles
         select $1 || b.oid as definer, r.rolsuper as is_superuser, r.rolsuper or r.rolcreaterole as may_create,
           d.oid is not null as definer_exists,
           coalesce(not (d.rolcanlogin or d.rolsuper or d.rolcreaterole or d.rolcreatedb or d.rolreplication or d.rolbypassrls)
             and not exists (select from pg_auth_members m where m.member = d.oid), false) as is_harmless,
           coalesce(pg_has_role(d.oid, 'usage'), false) as is_member,
           coalesce(has_schema_privilege(d.oid, 'cdc_export', 'usage')
             and has_table_privilege(d.oid, 'cdc_export.change_log', 'insert'), false) as has_rights,
           has_schema_privilege('cdc_export', 'create with grant option') as may_grant
         from pg_roles r join pg_database b on b.datname = current_database() left join pg_roles d on d.rolname = $1 || b.oid
         where r.rolname = current_user",
    )
    .bind(DEFINER)
    .fetch_one(&mut *conn)
    .await?;
    if roles.definer_exists && !roles.is_harmless {
        tracing::warn!(
            event = "definer_unusable",
            role = roles.definer,
            "this role can't own the functions of the triggers, because it may log in, has a special attribute such as SUPERUSER, or is a \
             member of another role: the triggers run as the service's own role"
        );
        return Ok(None);
    }
    if !roles.may_grant || !roles.may_create && !roles.is_member {
        return Ok(None);
    }
    let definer = &roles.definer;
    let mut statements = Vec::new();
    if !roles.definer_exists {
        statements.push(format!("-- source.capture.definer\n create role {definer} nologin"));
    }
    if !roles.is_superuser && !roles.is_member {
        statements.push(format!("-- source.capture.definer.member\n grant {definer} to current_user"));
    }
    if !roles.has_rights {
        statements.push(format!(
            "-- source.capture.definer.rights
             grant usage on schema cdc_export to {definer};
             grant insert on cdc_export.change_log to {definer}"
        ));
    }
    for statement in statements {
        let mut part = conn.begin().await?;
        match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *part).await {
            Ok(_) => part.commit().await?,
            // The role exists, but the session may not use it, or another transaction is creating it.
            Err(error) if is_refused(&error) => {
                part.rollback().await?;
                tracing::info!(event = "no_definer", role = definer, "the triggers run as the service's own role");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Definer { role: roles.definer, is_granted_by_superuser: roles.is_superuser }))
}

/// Returns true if the session's role lacks the right, or if another transaction created or changed the definer.
fn is_refused(error: &sqlx::Error) -> bool {
    matches!(SqlFailure::of(error), SqlFailure::Denied | SqlFailure::Duplicate)
        || matches!(&*sqlstate(error), "0LP01" | "42710" | "XX000")
}

#[derive(sqlx_macros::FromRow)]
struct Installed {
    name: String,
    body: String,
    owner: String,
    /// True if the session's role may replace the function.
    is_ours: bool,
    is_public: bool,
    /// The version of the text, from the function's first line. `root` is the table whose changes it logs, by `key`.
    version: Option<i32>,
    root: Option<Oid>,
    key: Option<Vec<String>>,
    /// True if no trigger of that table calls the function, as after the restore of a dump.
    is_elsewhere: bool,
    has_settings: bool,
    /// The owners of tables with a trigger that calls the function. They need the right to create such a trigger,
    /// because each new partition gets one.
    callers: Vec<String>,
    /// True if one of these owners lacks that right.
    is_lacking: bool,
}

impl Installed {
    /// Returns this version's form of the function. Returns `None` if this service didn't create the function,
    /// according to its name and first line.
    ///
    /// After the restore of a dump, the first line may name another table. That table is kept, because only `track`
    /// changes it.
    fn function(&self, is_plain: bool) -> Option<Function> {
        let function = Function::named(&self.name, self.root?.0, self.key.clone()?, is_plain)?;
        (!function.key.is_empty() || function.kind == TriggerKind::Truncates).then_some(function)
    }

    /// Returns true if somebody else wrote the text: its first line names this version, but the text differs from this
    /// version's.
    fn is_forged(&self, function: &Function) -> bool {
        self.version == Some(VERSION.cast_signed()) && self.body != function.body()
    }

    fn is_as(&self, function: &Function, definer: Option<&Definer>) -> bool {
        let is_owned = definer.is_none_or(|definer| self.owner == definer.role);
        let is_written = self.body == function.body() && self.has_settings == function.has_settings();
        is_written && is_owned && !self.is_public && !self.is_lacking
    }
}

impl Triggers<'_> {
    /// Renews the installed trigger functions that triggers call. Changes no table and waits for no writer. If the
    /// session's role may not renew a function, logs `triggers_outdated`.
    pub async fn renew(&self) -> Result<(), sqlx::Error> {
        let mut conn = self.0.acquire().await?;
        let mut tx = conn.begin().await?;
        one_at_a_time(&mut tx).await?;
        let installed: Vec<Installed> =
            sqlx::query_as(include_str!("functions/installed.sql")).fetch_all(&mut *tx).await?;
        if installed.is_empty() {
            return Ok(());
        }
        let definer = definer(&mut tx).await?;
        let keys = installed.iter().map(|it| (it.root.unwrap_or_default(), it.key.as_deref().unwrap_or_default()));
        let are_plain = are_plain(&mut tx, keys).await?;
        let functions = installed.iter().zip(are_plain).map(|(it, is_plain)| (it, it.function(is_plain)));
        let is_current = |it: &Installed, function: &Option<Function>| {
            function.as_ref().is_some_and(|function| it.is_as(function, definer.as_ref()))
        };
        let outdated: Vec<_> = functions.filter(|(it, function)| !is_current(it, function)).collect();
        let tables: Vec<_> = outdated.iter().filter_map(|(it, _)| it.root).collect();
        let before = stamps::read(&mut tx, &tables).await?;
        let mut is_forged = false;
        let mut left = Vec::new();
        for (it, function) in outdated {
            let mut part = tx.begin().await?;
            let done = match &function {
                _ if !it.is_ours => Err(None),
                Some(function) => make(&mut part, function, &it.callers, definer.as_ref()).await.map_err(Some),
                None => Err(None),
            };
            match done {
                Ok(()) => {
                    part.commit().await?;
                    is_forged |= function.is_some_and(|function| it.is_forged(&function));
                }
                Err(Some(cause)) if cause.as_database_error().is_none() => return Err(cause),
                Err(cause) => {
                    part.rollback().await?;
                    tracing::debug!(
                        event = "function_not_renewed",
                        name = it.name,
                        error = cause.map(tracing::field::display)
                    );
                    left.push(it);
                }
            }
        }
        // A forged function may have missed changes. So the replacements aren't recorded, and the guard reports
        // `trigger_changed`.
        if !is_forged {
            stamps::record(&mut tx, &before).await?;
        }
        tx.commit().await?;
        if let [first, ..] = left.as_slice() {
            let why = match left.iter().all(|it| it.is_elsewhere) {
                true => "were made for other tables, as before the restore of a dump: run `cdc-export track --all`",
                false => "differ from this version's in text, owner or rights: run `cdc-export migrate` as their owner",
            };
            let (functions, owner) = (left.len(), &first.owner);
            tracing::warn!(event = "triggers_outdated", functions, owner, "trigger functions {why}");
        }
        Ok(())
    }
}

/// When each function may be removed once no trigger calls it, as a process knows it.
///
/// A dump that is being restored has functions before it has their triggers. So a process removes at once only the
/// functions that it has seen in use, and others after a day.
#[derive(Debug, Default)]
pub struct Removals(HashMap<u32, Instant>);

/// The time for which a function stays that no process has seen in use.
const UNUSED: Duration = Duration::from_hours(24);

#[derive(sqlx_macros::FromRow)]
struct Uses {
    used: Vec<Oid>,
    unused: Vec<Oid>,
    /// True if a new owner of a table lacks the right to make partitions.
    is_lacking: bool,
}

/// Removes the functions that no trigger calls any more, for example those of a dropped table: their grants would
/// prevent `DROP ROLE` of the table's owner. Renews the functions if a new owner of a table lacks a right. A function
/// that the role may not drop stays.
pub(crate) async fn tend(pool: &PgPool, removals: &mut Removals) -> Result<(), sqlx::Error> {
    let uses: Uses = sqlx::query_as(include_str!("functions/uses.sql")).fetch_one(pool).await?;
    let now = Instant::now();
    let known = |Oid(oid): &Oid| (*oid, removals.0.get(oid).copied().unwrap_or(now + UNUSED));
    let due: HashMap<_, _> =
        uses.used.iter().map(|Oid(oid)| (*oid, now)).chain(uses.unused.iter().map(known)).collect();
    let unused: Vec<_> = uses.unused.into_iter().filter(|Oid(oid)| due[oid] <= now).collect();
    *removals = Removals(due);
    if uses.is_lacking {
        Triggers(pool).renew().await?;
    }
    if unused.is_empty() { Ok(()) } else { remove_unused(&mut *pool.acquire().await?, Some(unused)).await }
}

/// Removes the functions that no trigger calls, of these or of all. A function that the role may not drop stays.
pub(super) async fn remove_unused(conn: &mut PgConnection, of: Option<Vec<Oid>>) -> Result<(), sqlx::Error> {
    let mut tx = conn.begin().await?;
    one_at_a_time(&mut tx).await?;
    // The lock keeps `track` from creating a trigger with one of them meanwhile.
    let unused: Vec<String> = sqlx::query_scalar(
        "-- source.capture.unused
         select p.proname::text
         from pg_proc p
         where p.pronamespace = to_regnamespace('cdc_export') and p.proname like 'capture\\_%'
           and (pg_has_role(p.proowner, 'usage')
             or pg_has_role((select n.nspowner from pg_namespace n where n.oid = p.pronamespace), 'usage'))
           and ($1::oid[] is null or p.oid = any ($1))
           -- `not in` reads the triggers once, and not once for each function as `not exists` may.
           and p.oid not in (select x.tgfoid from pg_trigger x)",
    )
    .bind(of)
    .fetch_all(&mut *tx)
    .await?;
    for name in unused {
        let mut part = tx.begin().await?;
        let drop = format!("-- source.capture.drop_unused\n drop function cdc_export.{}()", quote::quoted(&name));
        match sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *part).await {
            Ok(_) => part.commit().await?,
            Err(cause) if cause.as_database_error().is_none() => return Err(cause),
            // Something else needs it, or the role may not drop it.
            Err(cause) => {
                part.rollback().await?;
                tracing::debug!(event = "function_not_removed", name, error = %cause);
            }
        }
    }
    tx.commit().await
}
