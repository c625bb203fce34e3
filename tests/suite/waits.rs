//! Waits of commands and of a start: each has a line that names what the process waits for.

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Database, HANG_TIMEOUT, Start};

/// Starts a process that waits, and reads its lines up to one with these words.
async fn says(database: &Database, arguments: &'static [&'static str], words: &[&str]) {
    let start = Start::on(database).with("FAILPOINTS", "wait.unlogged=time:100").with("SEED_ROWS", 10);
    let (mut waiting, _folder) = start.arguments(arguments).spawn();
    let mut lines = BufReader::new(waiting.stderr.take().unwrap()).lines();
    let named = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if words.iter().all(|word| line.contains(word)) {
                return;
            }
        }
        panic!("{arguments:?} ends without a line that has {words:?}");
    };
    tokio::time::timeout(HANG_TIMEOUT, named)
        .await
        .unwrap_or_else(|_| panic!("{arguments:?} says nothing of {words:?}"));
    waiting.kill().await.unwrap();
}

#[tokio::test]
async fn a_process_that_waits_for_another_session_names_the_wait_and_the_remedy() {
    let database = Database::with_users(5).await;
    let table = ("lock table users in row exclusive mode", "sessions keep the table from being locked");
    let row = ("select from cdc_export.locks where name = 'track' for update", "keeps the row of cdc_export.locks");
    let migration =
        ("select pg_advisory_xact_lock(hashtextextended('cdc_export.migrate', 0))", "the lock of the migrations");
    let demo = ("lock table users in exclusive mode", "another process fills public.users");
    for ((held, words), arguments) in [
        (table, &["untrack", "users"][..]),
        (row, &["track", "users"]),
        (row, &["migrate"]),
        (row, &["serve"]),
        (migration, &["migrate"]),
        (demo, &["seed", "--rows", "20"]),
    ] {
        let holder = database.open(held).await;
        says(&database, arguments, &[words]).await;
        holder.rollback().await.unwrap();
    }
}
