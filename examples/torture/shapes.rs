//! The tables whose shape changes, tracked like a user's tables, and their writers: plain tables and a partitioned one.
//! Most of the time, nobody writes to another table, the calm one.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::cluster::{DATABASE, SERVICE, succeed};
use crate::random::Random;
use crate::replica;
use crate::trial::World;
use crate::writers::Writer;

/// Number of keys that a table's writer changes.
pub(crate) const KEYS: u64 = 300;

/// The partitions of `parts`, with their key ranges. The last partition comes and goes.
pub(crate) const PARTITIONS: [(&str, u64, u64); 3] =
    [("parts_1", 0, 100), ("parts_2", 100, 200), ("parts_3", 200, 301)];

pub(crate) async fn make(conn: &mut PgConnection) -> Result<()> {
    let partition = |(name, from, to): &(&str, u64, u64)| {
        format!("create table {name} partition of parts for values from ({from}) to ({to});")
    };
    let partitions: String = PARTITIONS.iter().map(partition).collect();
    let sql = format!(
        "set role {SERVICE};
         create type mood as enum ('good', 'bad', 'none');
         create table shapes (id bigint primary key, note text, label text, amount numeric(12,4), mood mood not null default 'good',
           hidden boolean not null default false);
         create table parts (id bigint primary key, note text, amount numeric(12,4)) partition by range (id);
         {partitions}
         create table fed (id bigint primary key, note text);
         create table calm (id bigint primary key, note text);
         reset role;"
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

pub(crate) async fn fill(conn: &mut PgConnection) -> Result<()> {
    let sql = format!(
        "insert into shapes (id, note, label, amount) select n, 'first-' || n, 'label-' || n, n * 1.0625 from generate_series(1, {KEYS}) n;
         insert into parts (id, note, amount) select n, 'first-' || n, n * 1.0625 from generate_series(1, {KEYS}) n;
         insert into fed (id, note) select n, 'first-' || n from generate_series(1, {KEYS}) n;
         insert into calm (id, note) select n, 'first-' || n from generate_series(1, {KEYS}) n"
    );
    conn.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

/// Runs the service's own command that installs its triggers, over a link without faults.
pub(crate) async fn track(world: &World, binary: &Path, dataset: &str) -> Result<()> {
    let mut command = replica::command(binary, &world.cluster.service_url(world.cluster.port()));
    command.env("DATASETS", &world.datasets).envs(world.place.environment(None)?);
    command.args(["track", dataset]).current_dir(&world.folder);
    tokio::time::timeout(Duration::from_secs(60), succeed(&mut command)).await?
}

pub(crate) async fn write(world: Arc<World>) -> usize {
    let rest = |random: &mut Random| random.millis(10, 80);
    writer(&world, 150, &["shapes", "shapes", "parts", "fed"], rest).write(&world).await
}

/// Writes to the calm table: a few transactions, and then a pause.
pub(crate) async fn write_now_and_then(world: Arc<World>) -> usize {
    let rest = |random: &mut Random| {
        if random.percent(80) { random.millis(10, 300) } else { random.millis(3_000, 60_000) }
    };
    writer(&world, 155, &["calm"], rest).write(&world).await
}

fn writer(world: &World, stream: u64, tables: &'static [&str], rest: fn(&mut Random) -> Duration) -> Writer {
    let change = move |random: &mut Random, number| {
        let table = random.pick(tables).unwrap_or_default();
        change(random, table, &format!("s-{number}"))
    };
    let random = Random::new(world.seed, stream);
    Writer { database: DATABASE, random, change: Box::new(change), rest, pause: (100, 800), replicating: 5 }
}

/// Returns one change, as SQL. No two versions of a row have the same note.
fn change(random: &mut Random, table: &str, note: &str) -> String {
    let key = random.between(1, KEYS);
    let odd = key | 1;
    match (table, random.below(100)) {
        // The publisher has the even keys of `fed`.
        ("fed", 0..70) => {
            format!(
                "insert into fed (id, note) values ({odd}, '{note}') on conflict (id) do update set note = excluded.note"
            )
        }
        ("fed", _) => format!("delete from fed where id = {odd}"),
        ("calm", 0..40) => format!(
            "insert into calm (id, note) values ({key}, '{note}') on conflict (id) do update set note = excluded.note"
        ),
        (_, 0..30) => format!(
            "insert into {table} (id, note, amount) values ({key}, '{note}', {key} * 0.0625)
             on conflict (id) do update set note = excluded.note, amount = excluded.amount"
        ),
        (_, 30..60) => format!("update {table} set note = '{note}' where id = {key}"),
        ("shapes", 60..70) => {
            format!("update shapes set label = '{note}', hidden = not hidden where id between {key} and {key} + 3")
        }
        // Moves a row to another partition, or to another key.
        (_, 60..70) => format!("update {table} set id = {odd}, note = '{note}' where id = {key} and id <> {odd}"),
        ("shapes", 70..80) => format!("update shapes set note = '{note}', amount = amount + 0.0125 where id = {key}"),
        (_, 70..80) => format!("update {table} set note = '{note}', id = id % {KEYS} + 1 where id = {key}"),
        (_, 80..95) => format!("delete from {table} where id = {key}"),
        _ => format!("delete from {table} where id = {key}; insert into {table} (id, note) values ({key}, '{note}')"),
    }
}
