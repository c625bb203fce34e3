//! Creates the triggers that capture the changes of a dataset's table, and renews them.

use std::ops::Deref;
use std::sync::LazyLock;

use sqlx::postgres::types::Oid;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};

use crate::capture::waiting::{Queue, Wait};
use crate::capture::{Error, Triggers, function_text, functions, one_at_a_time, stamps};
use crate::captured::CAPTURE;
use crate::relation_locks::Room;
use crate::trigger::TriggerKind;
use crate::{quote, rights, table_schema};
use cdc_dataset::{Capture, Dataset, TableSchema};
use pg_session::statement::with_pieces;
use pg_session::table_name::Table;

static LOCATE: LazyLock<String> =
    LazyLock::new(|| with_pieces(include_str!("tracking/locate.sql"), &[("captured.sql", CAPTURE)]));

/// The facts about a dataset's table that its capture depends on.
#[derive(sqlx_macros::FromRow)]
pub(super) struct TableState {
    pub(super) oid: Oid,
    pub(super) schema_name: String,
    pub(super) table_name: String,
    kind: String,
    pub(super) parent: Option<String>,
    /// Why no triggers can capture all changes of the table, and what helps.
    uncapturable: Option<String>,
    captured: bool,
    is_log_altered: bool,
    logs_every_truncate: bool,
    /// The common prefix of the names of the table's functions.
    set: Option<String>,
    primary_key: Vec<String>,
    logged_key: Option<Vec<String>>,
    role: String,
    /// The table's owner, if the session's role isn't a member of it.
    other_owner: Option<String>,
    may_make_functions: bool,
}

impl TableState {
    /// Returns an error if the session's role isn't the table's owner. The error names both roles, because the error of
    /// Postgres names neither.
    pub(super) fn require_owner(&self, table: &Table) -> Result<(), Error> {
        let (table, role) = (table.to_string(), self.role.clone());
        self.other_owner.clone().map_or(Ok(()), |owner| Err(Error::NotOwner { table, role, owner }))
    }

    fn table(&self) -> Table {
        Table { schema: Some(self.schema_name.clone()), name: self.table_name.clone() }
    }

    /// Returns an error if no triggers can capture all changes of the table.
    fn require_capturable(&self) -> Result<(), Error> {
        self.uncapturable.clone().map_or(Ok(()), |why| Err(Error::Uncapturable(why)))
    }

    /// Returns true if the triggers log every change, by `key`.
    fn logs(&self, key: &[String]) -> bool {
        self.captured && self.logged_key.as_ref().unwrap_or(&self.primary_key) == key
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracked {
    /// Triggers were missing or wrong, and were installed.
    Now,
    /// The triggers were complete before.
    Before,
}

impl Triggers<'_> {
    /// Installs the triggers on a dataset's table if they are missing, and allows its exports. Tries again while the
    /// table is busy. After an error nothing is changed.
    pub async fn track(&self, dataset: &Dataset) -> Result<Tracked, Error> {
        self.track_next(&mut Queue::of([dataset])).await.expect("the queue has a dataset").1
    }

    /// Does what [`track`](Triggers::track) does for the datasets of a queue, until one of them is done. Returns that
    /// one with its result. Returns `None` if the queue is empty.
    pub async fn track_next<D>(&self, queue: &mut Queue<D>) -> Option<(D, Result<Tracked, Error>)>
    where
        D: Deref<Target = Dataset>,
    {
        loop {
            let mut turn = queue.next().await?;
            let tracked = try_track(self.0, &turn.item, &mut turn.wait).await;
            if let Some(done) = queue.settle(turn, tracked) {
                return Some(done);
            }
        }
    }

    /// Installs missing triggers on the demo's own table. For every other table the user runs `track`.
    pub async fn restore(&self) -> Result<(), Error> {
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
        .fetch_optional(self.0)
        .await?;
        match ours {
            None => Ok(()),
            // Only `track` changes the key that the triggers log.
            Some(key) => match self.track(&Dataset { key, ..users }).await {
                // The check of a start says so.
                Err(Error::LogAltered | Error::LogRefuses { .. }) => Ok(()),
                done => done.map(drop),
            },
        }
    }

    /// Does what [`track`](Triggers::track) does, and tries once. After an error nothing is changed.
    pub async fn track_once(&self, dataset: &Dataset) -> Result<Tracked, Error> {
        try_track(self.0, dataset, &mut Wait::default()).await
    }
}

async fn try_track(pool: &PgPool, dataset: &Dataset, wait: &mut Wait) -> Result<Tracked, Error> {
    if dataset.capture != Capture::Triggers {
        return Err(Error::NeedsNone(dataset.name.clone()));
    }
    let mut tx = pool.begin().await?;
    one_at_a_time(&mut tx).await?;
    let state = locate(&mut tx, &dataset.table).await?;
    if state.is_log_altered {
        return Err(Error::LogAltered);
    }
    let key = dataset.key.as_ref().unwrap_or(&state.primary_key);
    if state.logs(key) && state.logs_every_truncate {
        list(&mut tx, &state, key).await?;
        try_log(&mut tx, &dataset.table, &state).await?;
        tx.commit().await?;
        return Ok(Tracked::Before);
    }
    state.require_capturable()?;
    state.require_owner(&dataset.table)?;
    if !state.may_make_functions {
        return Err(Error::NoCreate(state.role));
    }
    let kept_of = |state: &TableState| {
        // Correct triggers are kept, so that consumers' positions stay valid.
        let key = dataset.key.as_ref().unwrap_or(&state.primary_key);
        state.set.clone().filter(|_| state.logs(key))
    };
    let kept = kept_of(&state);
    require_room(&mut tx, &dataset.table, &state).await?;
    let state = lock(&mut tx, &dataset.table, &state, kept.as_deref(), wait).await?;
    state.require_capturable()?;
    if kept_of(&state) != kept {
        return Err(Error::busy(&dataset.table));
    }
    let kept = kept.as_deref();
    let before = if kept.is_some() { stamps::read(&mut tx, &[state.oid]).await? } else { Vec::new() };
    remove(&mut tx, &dataset.table, &state, kept).await?;
    let schema = introspect(&mut tx, dataset).await?;
    let key: Vec<_> = schema.key.iter().map(|part| part.column.name.to_string()).collect();
    make(&mut tx, &state, kept, &key).await.map_err(|cause| Error::of_table(&dataset.table, cause))?;
    list(&mut tx, &state, &key).await?;
    try_log(&mut tx, &dataset.table, &state).await?;
    stamps::record(&mut tx, &before).await?;
    tx.commit().await?;
    tracing::info!(event = "table_tracked", table = %dataset.table);
    Ok(Tracked::Now)
}

/// Requires that the locks of a table and its partitions leave half of the free places of Postgres's lock table.
async fn require_room(conn: &mut PgConnection, table: &Table, state: &TableState) -> Result<(), Error> {
    if state.kind == "p" {
        let Room { relations: locks, free, .. } = Room::find(conn, &[(&state.table(), None)], &[false]).await?;
        if locks * 2 > free {
            return Err(Error::TooManyLocks { table: table.to_string(), locks, free });
        }
    }
    Ok(())
}

/// Writes to the log as the table's triggers do, and takes it back.
async fn try_log(tx: &mut PgConnection, table: &Table, state: &TableState) -> Result<(), Error> {
    let writer: Option<String> = sqlx::query_scalar(
        "-- source.capture.writer
         select quote_ident(pg_get_userbyid(p.proowner))
         from pg_trigger x
         cross join lateral (select p.proowner, p.pronamespace from pg_proc p where p.oid = x.tgfoid offset 0) p
         where x.tgrelid = $1 and p.pronamespace = to_regnamespace('cdc_export') and pg_has_role(p.proowner, 'member')
         limit 1",
    )
    .bind(state.oid)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(writer) = writer else { return Ok(()) };
    let mut trial = tx.begin().await?;
    let write = format!(
        "-- source.capture.try_log
         set local role {writer};
         insert into cdc_export.change_log (table_oid, operation, key) values ({}, 'I', '')",
        state.oid.0
    );
    let tried = sqlx::raw_sql(AssertSqlSafe(write)).execute(&mut *trial).await;
    trial.rollback().await?;
    tried.map(drop).map_err(|cause| Error::LogRefuses { table: table.to_string(), cause })
}

/// Lists a table as one whose changes are captured by this key.
async fn list(conn: &mut PgConnection, state: &TableState, key: &[String]) -> Result<(), sqlx::Error> {
    let tracked = sqlx::query(
        "-- source.capture.track
         with listed_again as (delete from cdc_export.untracked where schema_name = $1 and table_name = $2)
         insert into cdc_export.tracked (schema_name, table_name, key) values ($1, $2, $3)
         on conflict (schema_name, table_name) do update set key = excluded.key",
    );
    tracked.bind(&state.schema_name).bind(&state.table_name).bind(key).execute(conn).await.map(drop)
}

/// Creates the missing triggers and functions of the set `kept`. Creates a new set if `kept` is `None`.
async fn make(
    conn: &mut PgConnection,
    state: &TableState,
    kept: Option<&str>,
    key: &[String],
) -> Result<(), sqlx::Error> {
    let relations = relations(conn, state).await?;
    let mut owners: Vec<_> = relations.iter().map(|relation| relation.owner.clone()).collect();
    owners.sort_unstable();
    owners.dedup();
    let definer = functions::definer(conn).await?;
    let id = match kept.and_then(|set| set.strip_prefix("capture_")?.strip_suffix('_')) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::new_v4().simple().to_string(),
    };
    let is_plain = functions::are_plain(conn, [(state.oid, key)].into_iter()).await?[0];
    for function in function_text::functions(&id, state.kind == "p", state.oid.0, key, is_plain) {
        // A new set has no triggers yet.
        let has_it: Vec<Oid> = match kept {
            Some(_) => {
                sqlx::query_scalar(
                    "-- source.capture.has_it
                 select x.tgrelid from pg_trigger x where x.tgfoid = to_regprocedure($1 || '()')",
                )
                .bind(function.name())
                .fetch_all(&mut *conn)
                .await?
            }
            None => Vec::new(),
        };
        if has_it.is_empty() {
            functions::make(conn, &function, &owners, definer.as_ref()).await?;
        }
        for (n, relation) in relations.iter().enumerate() {
            if (n == 0 || function.kind == TriggerKind::Truncates) && !has_it.contains(&relation.oid) {
                sqlx::raw_sql(AssertSqlSafe(function.trigger(&relation.name))).execute(&mut *conn).await?;
            }
        }
    }
    for relation in &relations {
        enable(conn, relation, &format!("capture_{id}_")).await?;
    }
    Ok(())
}

/// Corrects when the triggers of a table fire (`ENABLE`, `ENABLE REPLICA` or `ENABLE ALWAYS`), if they call functions
/// of `set`.
async fn enable(conn: &mut PgConnection, relation: &Relation, set: &str) -> Result<(), sqlx::Error> {
    let others: Vec<(String, String)> = sqlx::query_as(
        "-- source.capture.others
         select x.tgname::text, case fires.setting when 'A' then 'always' when 'R' then 'replica' else '' end
         from pg_trigger x
         join pg_proc p on p.oid = x.tgfoid and p.pronamespace = to_regnamespace('cdc_export') and left(p.proname::text, -1) = $2
         cross join lateral (
           select case right(p.proname::text, 1) when 's' then 'R' when 'r' then 'A' when 't' then 'A' else 'O' end as setting) fires
         where x.tgrelid = $1 and x.tgenabled::text <> fires.setting",
    )
    .bind(relation.oid)
    .bind(set)
    .fetch_all(&mut *conn)
    .await?;
    for (trigger, how) in others {
        let (table, trigger) = (&relation.name, quote::quoted(&trigger));
        let enable = format!("-- source.capture.enable\n alter table {table} enable {how} trigger {trigger}");
        sqlx::raw_sql(AssertSqlSafe(enable)).execute(&mut *conn).await?;
    }
    Ok(())
}

pub(super) async fn locate(conn: &mut PgConnection, table: &Table) -> Result<TableState, Error> {
    let state: Option<TableState> =
        sqlx::query_as(AssertSqlSafe(LOCATE.as_str())).bind(quote::relation(table)).fetch_optional(conn).await?;
    state.ok_or_else(|| Error::NoTable(table.to_string()))
}

async fn introspect(conn: &mut PgConnection, dataset: &Dataset) -> Result<TableSchema, Error> {
    let failed = |cause| Error::of_table(&dataset.table, cause);
    let access = rights::read_access(conn, dataset).await.map_err(failed)?;
    let mut schemas = table_schema::introspect_all(conn, &[(dataset, &access)]).await.map_err(failed)?;
    schemas.remove(0).map_err(Error::Mismatch)
}

/// Locks a table and its partitions against writes and changes, and reads its state again, because the state may have
/// changed meanwhile. `kept`: the set of functions whose triggers are not removed.
///
/// Takes all locks in one statement, in the strongest mode that the transaction needs. A later, stronger lock could
/// wait for a writer that waits for this transaction.
pub(super) async fn lock(
    conn: &mut PgConnection,
    table: &Table,
    state: &TableState,
    kept: Option<&str>,
    wait: &mut Wait,
) -> Result<TableState, Error> {
    let removes = !triggers(conn, state, kept).await?.is_empty();
    let mode = if removes { "access exclusive" } else { "share row exclusive" };
    wait.lock(conn, table, (state.oid, &state.table()), mode).await?;
    let locked = locate(conn, table).await?;
    // The name may now belong to another table, which isn't locked.
    if locked.oid == state.oid { Ok(locked) } else { Err(Error::busy(table)) }
}

#[derive(sqlx_macros::FromRow)]
struct Relation {
    oid: Oid,
    /// Quoted, with its schema.
    name: String,
    owner: String,
}

async fn relations(conn: &mut PgConnection, state: &TableState) -> Result<Vec<Relation>, sqlx::Error> {
    sqlx::query_as(
        "-- source.capture.relations
         select c.oid, format('%I.%I', n.nspname, c.relname) as name, pg_get_userbyid(c.relowner)::text as owner
         from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where c.oid = $1 or c.oid in (select relid from pg_partition_tree($1))
         order by c.oid <> $1",
    )
    .bind(state.oid)
    .fetch_all(conn)
    .await
}

/// Returns the triggers of a table and its partitions, except those that call functions of the set `kept`: the oid of
/// the function, and the trigger with its table.
async fn triggers(
    conn: &mut PgConnection,
    state: &TableState,
    kept: Option<&str>,
) -> Result<Vec<(Oid, String)>, sqlx::Error> {
    sqlx::query_as(include_str!("tracking/triggers.sql")).bind(state.oid).bind(kept).fetch_all(conn).await
}

/// Removes the triggers of a table and its partitions, except those that call functions of the set `kept`. Also removes
/// the functions of their sets that no other trigger calls. If the table was a partition, its former root may still use
/// them.
pub(super) async fn remove(
    conn: &mut PgConnection,
    table: &Table,
    state: &TableState,
    kept: Option<&str>,
) -> Result<bool, Error> {
    let triggers = triggers(conn, state, kept).await?;
    let denied = |cause| Error::of_table(table, cause);
    for (_, trigger) in &triggers {
        let drop = format!("-- source.capture.remove\n drop trigger {trigger}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *conn).await.map_err(denied)?;
    }
    let functions: Vec<_> = triggers.iter().map(|(function, _)| *function).collect();
    let unused: Vec<String> = sqlx::query_scalar(
        "-- source.capture.unused_of
         select format('cdc_export.%I', p.proname)
         from pg_proc p
         where p.pronamespace = to_regnamespace('cdc_export') and p.oid not in (select x.tgfoid from pg_trigger x)
           and left(p.proname::text, -1) in (select left(f.proname::text, -1) from pg_proc f where f.oid = any ($1))",
    )
    .bind(functions)
    .fetch_all(&mut *conn)
    .await?;
    for name in unused {
        let drop = format!("-- source.capture.remove.function\n drop function {name}()");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *conn).await.map_err(denied)?;
    }
    Ok(!triggers.is_empty())
}
