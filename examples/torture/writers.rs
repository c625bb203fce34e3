//! The writers change a table, also in transactions that stay open or are rolled back. They bypass the proxy: the table
//! isn't the service's, so only crashes of Postgres affect its writers, and no other faults of the service.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::cluster::DATABASE;
use crate::random::Random;
use crate::trial::World;

pub(crate) const WRITERS: u64 = 2;
/// Longest time until a writer hears that it must stop.
const STOPS_WITHIN: Duration = Duration::from_millis(100);
/// Number of keys that the writers change. With so many, the next change of a row seldom hides a lost one.
const KEYS: u64 = 2_400;

/// Texts that a sloppy writer or reader of CSV gets wrong.
const AWKWARD: [&str; 9] = ["", "\"", "a,b", "line\nline", "\r\n", "=1+1", "ü€😀", " end ", "\\N"];

/// Number of rows that are deleted before the first export. Their blocks stay before those of the other rows. So a full
/// export has several ranges to read, with several readers, but few rows to send through slow proxies.
const GONE: u64 = 400_000;

pub(crate) async fn fill(conn: &mut PgConnection) -> Result<()> {
    let sql = format!(
        "alter table users set (autovacuum_enabled = off);
         create temp table as_it_was as
           select tgname, tgenabled from pg_trigger where tgrelid = 'users'::regclass and not tgisinternal;
         alter table users disable trigger user;
         insert into users (id, name, email, created_at, updated_at)
         select 2000000 + n, repeat('x', 40), 'gone-' || n, now(), now() from generate_series(1, {GONE}) n;
         delete from users;
         do $$ declare was record; begin
           for was in select * from as_it_was loop
             execute format('alter table users enable %s trigger %I',
               case was.tgenabled when 'A' then 'always' when 'R' then 'replica' else '' end, was.tgname);
           end loop;
         end $$;
         insert into users (id, name, email, created_at, updated_at, is_deleted)
         select n, 'first-' || n, 'first-' || n || '@example.com', t, t, n % 20 = 0
         from generate_series(1, {KEYS}) n cross join lateral (select now() - n * interval '1 minute' as t) times;
         select setval(pg_get_serial_sequence('users', 'id'), 1000000)"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(conn).await?;
    Ok(())
}

pub(crate) type Change = Box<dyn FnMut(&mut Random, u64) -> String + Send>;

pub(crate) struct Writer {
    pub(crate) database: &'static str,
    pub(crate) random: Random,
    pub(crate) change: Change,
    pub(crate) rest: fn(&mut Random) -> Duration,
    /// Bounds in milliseconds of the pause in one of ten transactions.
    pub(crate) pause: (u64, u64),
    /// The percentage of transactions that fire no ordinary trigger, like those of a replication tool.
    pub(crate) replicating: u64,
}

impl Writer {
    /// Writes until the writers must stop. Returns the number of transactions that are known to be committed.
    pub(crate) async fn write(mut self, world: &World) -> usize {
        let (mut committed, mut number) = (0, 0);
        while world.writing.load(Ordering::SeqCst) {
            // Postgres crashes now and then.
            let Ok(mut conn) = world.cluster.connect_to(self.database).await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let _ = conn.execute("set lock_timeout = '3s'").await;
            while world.writing.load(Ordering::SeqCst) {
                match self.transaction(&mut conn, &mut number).await {
                    Ok(whole) => committed += usize::from(whole),
                    // A column has another name at the moment, or a partition is detached.
                    Err(sqlx::Error::Database(_)) if conn.execute("rollback").await.is_ok() => {}
                    Err(_) => break,
                }
                let mut left = (self.rest)(&mut self.random);
                while !left.is_zero() && world.writing.load(Ordering::SeqCst) {
                    let nap = left.min(STOPS_WITHIN);
                    tokio::time::sleep(nap).await;
                    left -= nap;
                }
            }
        }
        committed
    }

    async fn transaction(&mut self, conn: &mut PgConnection, number: &mut u64) -> Result<bool, sqlx::Error> {
        conn.execute("begin").await?;
        if self.replicating > 0 && self.random.percent(self.replicating) {
            conn.execute("set local session_replication_role = replica").await?;
        }
        for _ in 0..self.random.between(1, 3) {
            *number += 1;
            let change = (self.change)(&mut self.random, *number);
            conn.execute(AssertSqlSafe(change)).await?;
        }
        if self.random.percent(10) {
            tokio::time::sleep(self.random.millis(self.pause.0, self.pause.1)).await;
        }
        let whole = !self.random.percent(10);
        conn.execute(if whole { "commit" } else { "rollback" }).await?;
        Ok(whole)
    }
}

pub(crate) async fn write(world: Arc<World>, writer: u64) -> usize {
    let change = move |random: &mut Random, number| {
        // No two versions of a row have the same name.
        let change = change(random, &format!("w{writer}-{number}"));
        match random.below(10) {
            0 => format!("savepoint s; {change}; rollback to s"),
            1 => format!("savepoint s; {change}; release s"),
            _ => change,
        }
    };
    let (random, rest) = (Random::new(world.seed, 100 + writer), |random: &mut Random| random.millis(5, 40));
    let writer =
        Writer { database: DATABASE, random, change: Box::new(change), rest, pause: (200, 1_500), replicating: 0 };
    writer.write(&world).await
}

fn change(random: &mut Random, version: &str) -> String {
    let (key, few) = (1 + random.below(KEYS), random.between(1, 8));
    let time = match random.below(10) {
        0..5 => "now()",
        5 => "clock_timestamp()",
        6 | 7 => "now() - interval '20 s'",
        8 => "timestamptz '2001-02-03 04:05:06.7+00'",
        _ => "now() + interval '300 ms'",
    };
    let updated = if random.percent(20) { "users.updated_at" } else { time };
    let awkward = random.pick(&AWKWARD).unwrap_or_default();
    let name = format!("'{version}' || '{awkward}'");
    let columns = "(id, name, email, created_at, updated_at)";
    let row = format!("{key}, {name}, '{version}@example.com', {time}, {time}");
    match random.below(100) {
        0..8 => format!(
            "insert into users (name, email, created_at, updated_at) values ({name}, '{version}@example.com', {time}, {time})"
        ),
        8..22 => format!(
            "insert into users {columns} values ({row}) on conflict (id) do update
             set name = excluded.name, updated_at = {updated}, is_deleted = false"
        ),
        22..60 => {
            format!("update users set name = {name}, updated_at = {updated}, is_deleted = false where id = {key}")
        }
        60..70 => format!(
            "update users set name = {name} || id, updated_at = {updated} where id between {key} and {key} + {few}"
        ),
        70..82 => {
            format!("update users set name = {name}, updated_at = {updated}, is_deleted = true where id = {key}")
        }
        82..92 => format!("delete from users where id = {key}"),
        92..95 => format!("delete from users where id between {key} and {key} + {few}"),
        // Makes more subtransactions than a backend shows to others.
        95 => format!(
            "do $$ begin
               for n in {key}..{key} + 80 loop
                 begin
                   update users set name = {name} || n, updated_at = {updated} where id = n;
                   if n % 3 = 0 then raise 'undone'; end if;
                 exception when raise_exception then null; end;
               end loop;
             end $$"
        ),
        _ => format!("delete from users where id = {key}; insert into users {columns} values ({row})"),
    }
}
