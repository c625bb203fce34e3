//! `apply` beside pgbench, and killed again and again.

#[path = "../suite/apply/pair.rs"]
mod pair;

use crate::apply::pair::Pair;
use crate::harness::{KILLED, reachable_folder, server_lacks};
use crate::pgbench::pgbench;

/// Between all steps, and where the answer to COMMIT is lost.
#[tokio::test]
async fn each_export_is_applied_once_whatever_is_killed() {
    let pair = Pair::of("create table t (id bigint primary key, n bigint not null default 0)").await;
    pair.applied(&[]).await;
    // Whoever applies a delta twice, or leaves one out, is found out by the log. An index writes it: its function runs
    // once for each row that is written.
    let statements = "create table log (id bigint, n bigint);
         create function log(id bigint, n bigint) returns void language sql as 'insert into public.log values (id, n)';
         create function note(id bigint, n bigint) returns bigint immutable language plpgsql as $$ begin
           perform public.log(id, n); return n; end $$;
         create index on t (note(id, n))";
    pair.target.run(statements).await;
    let mut changes = 0;
    for fault in [
        "apply.staged=kill",
        "apply.applied=kill",
        "apply.committed=kill",
        "apply.committed=error",
        "apply.staged=error",
        "apply.applied=error",
    ] {
        changes += 1;
        pair.source.run(&format!("insert into t values ({changes}) ; update t set n = n + 1 where id = 1")).await;
        let (code, _, said) = pair.apply(&[]).with("FAILPOINTS", fault).output().await;
        let expected = if fault.ends_with("kill") { KILLED } else { i32::from(!fault.starts_with("apply.committed")) };
        assert_eq!(code, expected, "{fault}: {said}");
        if fault.starts_with("apply.committed") {
            pair.require_equal(fault).await;
        }
        pair.applied(&[]).await;
        pair.require_equal(fault).await;
    }
    let of_first = "select array_agg(n order by n) = array(select generate_series(1, 6)::bigint) from log where id = 1";
    assert!(pair.target.one::<bool>(of_first).await, "each change once");
}

/// The copy of a table that many write to is some state of it at each moment: whatever was committed together comes
/// together. In one transaction pgbench moves an amount between accounts here, so their sum never changes; two
/// processes apply, and are killed.
#[tokio::test]
async fn it_follows_while_pgbench_writes_and_processes_are_killed() {
    if server_lacks("pgbench").await {
        return;
    }
    let pair = Pair::of("create table t (id int primary key, amount int not null); insert into t select g, 0 from generate_series(1, 500) g")
        .await;
    let folder = reachable_folder();
    let script = folder.path().join("move.sql");
    let text = "\\set a random(1, 500)\n\\set b random(1, 500)\n\\set x random(1, 100)\nbegin;\n\
                update t set amount = amount - :x where id = least(:a, :b);\nupdate t set amount = amount + :x where id = greatest(:a, :b);\ncommit;\n";
    std::fs::write(&script, text).unwrap();
    pair.applied(&[]).await;
    let file = format!("--file={}", script.display());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let is_stopped = || stop.load(std::sync::atomic::Ordering::Relaxed);
    // Until the copy was seen in some states, however long those take.
    let writing = async {
        while !is_stopped() {
            pgbench(&pair.source, &["--client=4", "--transactions=500", "--no-vacuum", &file]).await;
        }
    };
    let following = async {
        let (mut kills, mut looks) = (0, std::collections::BTreeSet::new());
        while kills <= 4 || looks.len() <= 4 {
            let (mut one, _folder) = pair.apply(&["--every", "100ms"]).spawn();
            let (mut two, _other) = pair.apply(&["--every", "150ms"]).spawn();
            // Longer each time: on a busy machine the first ones end before they have applied anything.
            for _ in 0..20 + 5 * kills {
                let sums: String =
                    pair.target.one("select sum(amount) || ' ' || count(*) || ' ' || sum(abs(amount)) from t").await;
                assert!(sums.starts_with("0 500 "), "{sums}");
                looks.insert(sums);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            one.kill().await.unwrap();
            two.kill().await.unwrap();
            kills += 2;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    tokio::join!(writing, following);
    pair.apply(&[]).output().await;
    pair.require_equal("all of it").await;
}
