//! `apply`, killed again and again.

#[path = "../suite/apply/pair.rs"]
mod pair;

use crate::apply::pair::Pair;
use crate::harness::KILLED;

/// Kills `apply` between all steps, and where the answer to COMMIT is lost.
#[tokio::test]
async fn each_export_is_applied_once_whatever_is_killed() {
    let pair = Pair::of("create table t (id bigint primary key, n bigint not null default 0)").await;
    pair.applied(&[]).await;
    // The log shows a delta that is applied twice or left out. An index writes the log: its function runs once for each
    // row that is written.
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
