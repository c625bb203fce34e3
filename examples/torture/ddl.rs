//! The tables' owner changes their shape while all others write and export. No trigger sees how this changes values. So
//! each move records the rows itself, in its own transaction.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::patience::at_last;
use crate::random::Random;
use crate::recorder::{Consequence, move_made, record_all, record_gone};
use crate::shapes;
use crate::trial::World;

/// A move. If a move goes to and fro, the catalog says which way it goes this time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shaping {
    VacuumFull,
    /// Adds or drops a column that the dataset doesn't have.
    UnwantedColumn,
    Column,
    Rename,
    /// Reduces the digits of a column, or increases them again.
    Narrow,
    /// Rewrites the values of a column in its own type.
    Rewrite,
    Swap,
    /// Drops a column, and adds another one with the same name.
    Replace,
    /// Does the same with the column that marks deleted rows.
    ReplaceFlag,
    Label,
    Truncate,
    /// Truncates one partition.
    TruncatePartition,
    Disable(Duration),
    /// Drops a trigger of the service, and tracks the table again after this time.
    DropTriggers(Duration),
    /// Detaches a partition with its rows, or attaches it again with changed rows.
    Partition,
    /// Creates or drops an empty partition.
    EmptyPartition,
}

impl Shaping {
    pub(crate) fn draw(random: &mut Random) -> Shaping {
        let time = random.millis(200, 1_500);
        let all = [
            Shaping::VacuumFull,
            Shaping::VacuumFull,
            Shaping::UnwantedColumn,
            Shaping::Column,
            Shaping::Column,
            Shaping::Rename,
            Shaping::Rename,
            Shaping::Narrow,
            Shaping::Rewrite,
            Shaping::Swap,
            Shaping::Replace,
            Shaping::ReplaceFlag,
            Shaping::Label,
            Shaping::Truncate,
            Shaping::TruncatePartition,
            Shaping::Disable(time),
            Shaping::DropTriggers(time),
            Shaping::Partition,
            Shaping::Partition,
            Shaping::EmptyPartition,
        ];
        all[random.below(all.len() as u64) as usize]
    }

    fn table(self) -> &'static str {
        match self {
            Shaping::UnwantedColumn => "users",
            Shaping::TruncatePartition | Shaping::Partition | Shaping::EmptyPartition => "parts",
            _ => "shapes",
        }
    }
}

/// Makes a move, or gives up if the table stays locked. Some moves run `track` of `binary`, the service.
pub(crate) async fn make(world: &World, shaping: Shaping, binary: &Path) -> Result<()> {
    let made = async {
        let mut conn = world.cluster.connect_at_last().await?;
        conn.execute("set lock_timeout = '2s'").await?;
        let table = shaping.table();
        match shaping {
            Shaping::VacuumFull => {
                // `vacuum full` can't run in a transaction: recorded before, and again after for exports in between.
                let noted = move_made(table, "vacuum", Consequence::NewFile);
                conn.execute(AssertSqlSafe(noted.clone())).await?;
                conn.execute("vacuum full shapes").await?;
                conn.execute(AssertSqlSafe(noted)).await?;
            }
            Shaping::Disable(time) => {
                turn_triggers(&mut conn, false).await?;
                tokio::time::sleep(time).await;
                triggers_on(world).await?;
            }
            Shaping::DropTriggers(time) => {
                drop_triggers(&mut conn).await?;
                tokio::time::sleep(time).await;
                track(world, table, binary).await?;
            }
            Shaping::Partition | Shaping::EmptyPartition => {
                transact(&mut conn, shaping).await?;
                track(world, table, binary).await?;
            }
            _ => transact(&mut conn, shaping).await?,
        }
        anyhow::Ok(())
    };
    if let Err(error) = made.await {
        world.report.announce(&format!("{shaping:?} went wrong: {error:#}"));
    }
    Ok(())
}

/// Turns the triggers on and tracks the tables again, for the last exports and after a restore of the database.
pub(crate) async fn rest(world: &World, binary: &Path) -> Result<()> {
    triggers_on(world).await?;
    for dataset in ["shapes", "parts"] {
        track(world, dataset, binary).await?;
    }
    Ok(())
}

/// Longest time for which Postgres may be down, or a table locked.
const PATIENCE: Duration = Duration::from_secs(30);

/// Turns the triggers on. Retries, since no move may leave them off.
async fn triggers_on(world: &World) -> Result<()> {
    at_last(PATIENCE, || async { turn_triggers(&mut connect(world).await?, true).await }).await
}

async fn connect(world: &World) -> Result<PgConnection> {
    let mut conn = world.cluster.connect().await?;
    conn.execute("set lock_timeout = '2s'").await?;
    Ok(conn)
}

async fn track(world: &World, dataset: &str, binary: &Path) -> Result<()> {
    at_last(PATIENCE, || shapes::track(world, binary, dataset)).await?;
    at_last(PATIENCE, || async {
        let noted = move_made(dataset, "track", Consequence::Refused);
        connect(world).await?.execute(AssertSqlSafe(noted)).await?;
        Ok(())
    })
    .await
}

async fn transact(conn: &mut PgConnection, shaping: Shaping) -> Result<()> {
    let table = shaping.table();
    let mut tx = conn.begin().await?;
    tx.execute(AssertSqlSafe(format!("lock table {table} in access exclusive mode"))).await?;
    let columns: Vec<String> = sqlx::query_scalar(
        "select attname::text from pg_attribute where attrelid = $1::regclass and attnum > 0 and not attisdropped",
    )
    .bind(table)
    .fetch_all(&mut *tx)
    .await?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    let (note, all) = (if has("note") { "note" } else { "remark" }, record_all(table, "true"));
    let sql = match shaping {
        Shaping::UnwantedColumn if has("unwanted") => "alter table users drop column unwanted".to_owned(),
        Shaping::UnwantedColumn => "alter table users add column unwanted text default 'unwanted'".to_owned(),
        Shaping::Column if has("extra") => format!("alter table shapes drop column extra; {all}"),
        Shaping::Column => format!("alter table shapes add column extra text default 'extra'; {all}"),
        Shaping::Rename if has("note") => format!("alter table shapes rename column note to remark; {all}"),
        Shaping::Rename => format!("alter table shapes rename column remark to note; {all}"),
        Shaping::Narrow => {
            let wide = "select atttypmod = (12 << 16 | 4) + 4 from pg_attribute where attrelid = 'shapes'::regclass and attname = 'amount'";
            let digits = if one(&mut tx, wide).await? { 1 } else { 4 };
            format!("alter table shapes alter column amount type numeric(12,{digits}); {all}")
        }
        Shaping::Rewrite => {
            format!("alter table shapes alter column label type text using reverse(label); {all}")
        }
        Shaping::Swap => format!(
            "alter table shapes rename column label to swapped; alter table shapes rename column {note} to label;
             alter table shapes rename column swapped to {note}; {all}"
        ),
        Shaping::Replace => format!(
            "alter table shapes drop column {note}; alter table shapes add column {note} text default 'replaced'; {all}"
        ),
        Shaping::ReplaceFlag => format!(
            "alter table shapes drop column hidden; alter table shapes add column hidden boolean not null default false; {all}"
        ),
        Shaping::Label => {
            let good = "select exists (select from pg_enum where enumtypid = 'mood'::regtype and enumlabel = 'good')";
            let (from, to) = if one(&mut tx, good).await? { ("good", "fine") } else { ("fine", "good") };
            format!("alter type mood rename value '{from}' to '{to}'; {all}")
        }
        Shaping::Truncate => format!("{}; truncate shapes", record_gone(table, "true")),
        Shaping::TruncatePartition => {
            let (name, from, to) = shapes::PARTITIONS[1];
            format!("{}; truncate {name}", record_gone(table, &format!("r.id >= {from} and r.id < {to}")))
        }
        Shaping::Partition => {
            let (name, from, to) = shapes::PARTITIONS[2];
            let its = format!("r.id >= {from} and r.id < {to}");
            if one(&mut tx, "select relispartition from pg_class where oid = 'parts_3'::regclass").await? {
                format!("{}; alter table parts detach partition {name}", record_gone(table, &its))
            } else {
                // Changes the partition as if somebody had written to it meanwhile.
                format!(
                    "update {name} set note = 'away-' || coalesce(note, '') where id % 7 = 0; delete from {name} where id % 11 = 0;
                     alter table parts attach partition {name} for values from ({from}) to ({to}); {}",
                    record_all(table, &its)
                )
            }
        }
        Shaping::EmptyPartition => {
            if one(&mut tx, "select to_regclass('parts_4') is null").await? {
                "set local role service; create table parts_4 partition of parts for values from (400) to (500); reset role".to_owned()
            } else {
                "drop table parts_4".to_owned()
            }
        }
        Shaping::VacuumFull | Shaping::Disable(_) | Shaping::DropTriggers(_) => String::new(),
    };
    tx.execute(AssertSqlSafe(sql)).await?;
    tx.execute(AssertSqlSafe(move_made(table, &format!("{shaping:?}"), shaping.consequence()))).await?;
    Ok(tx.commit().await?)
}

impl Shaping {
    fn consequence(self) -> Consequence {
        match self {
            Shaping::VacuumFull => Consequence::NewFile,
            Shaping::Rename => Consequence::Renamed,
            Shaping::UnwantedColumn | Shaping::Column => Consequence::Added,
            Shaping::Replace | Shaping::ReplaceFlag => Consequence::Replaced,
            // A new partition lacks its triggers until somebody tracks the table.
            Shaping::Partition | Shaping::EmptyPartition => Consequence::RefusedUntilNext,
            Shaping::Truncate | Shaping::TruncatePartition => Consequence::Emptied,
            _ => Consequence::Refused,
        }
    }
}

/// Turns the service's triggers of `shapes` off, or back to their first state, which `torture.triggers` has.
async fn turn_triggers(conn: &mut PgConnection, on: bool) -> Result<()> {
    let (which, turned, noted) = if on {
        (
            "tgenabled = 'D'",
            "execute format('alter table shapes enable %s trigger %I',
               (select case enabled when 'A' then 'always' when 'R' then 'replica' end from torture.triggers where name = t.tgname),
               t.tgname)",
            move_made("shapes", "enable", Consequence::Refused),
        )
    } else {
        (
            "true",
            "insert into torture.triggers values (t.tgname, t.tgenabled) on conflict (name) do update set enabled = t.tgenabled;
             execute format('alter table shapes disable trigger %I', t.tgname)",
            move_made("shapes", "disable", Consequence::RefusedUntilNext),
        )
    };
    let sql = format!(
        "do $$ declare t record; begin
           lock table shapes in access exclusive mode;
           for t in select tgname, tgenabled from pg_trigger
                    where tgrelid = 'shapes'::regclass and tgname like 'cdc\\_export\\_%' and {which} loop
             {turned};
           end loop;
           if found then {noted}; end if;
         end $$"
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

async fn one(conn: &mut PgConnection, sql: &'static str) -> Result<bool> {
    Ok(sqlx::query_scalar(sql).fetch_one(conn).await?)
}

async fn drop_triggers(conn: &mut PgConnection) -> Result<()> {
    let mut tx = conn.begin().await?;
    tx.execute("lock table shapes in access exclusive mode").await?;
    let first = "select quote_ident(min(tgname::text)) from pg_trigger
                 where tgrelid = 'shapes'::regclass and tgname like 'cdc\\_export\\_%'";
    let first: Option<String> = sqlx::query_scalar(first).fetch_one(&mut *tx).await?;
    let first = first.context("it is tracked")?;
    tx.execute(AssertSqlSafe(format!("drop trigger {first} on shapes"))).await?;
    tx.execute(AssertSqlSafe(move_made("shapes", "drop", Consequence::RefusedUntilNext))).await?;
    Ok(tx.commit().await?)
}
