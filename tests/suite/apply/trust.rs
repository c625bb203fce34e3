//! `apply` runs no code of other roles, and lets the source choose no table that it has not made.

use cdc_manifest::Manifest;

use crate::apply::SIMPLE;
use crate::apply::pair::{Pair, rows};
use crate::catalog::export;
use crate::harness::{Start, ends, silent};

/// A trap that takes what only the role that falls into it can read, in every form that a table can run.
const TRAPS: &str = "create table public.loot (what text); grant all on loot to public;
    create function public.trap() returns trigger language plpgsql as $$ begin
      insert into public.loot select current_user || s from public.secret; return new; end $$;
    create function public.spring(anyelement) returns boolean language plpgsql immutable as $$ begin
      insert into public.loot select current_user || s from public.secret; return true; end $$;";

/// A target that two roles share. `loader` runs `apply`. `mallory` may create in `public`, and nothing else.
struct Shared {
    pair: Pair,
    loader: String,
    mallory: String,
}

impl Shared {
    async fn of(table: &str) -> Shared {
        let pair = Pair::started(table, |start| start.with("MANIFESTS", "on")).await;
        let database = pair.target.options.get_database().unwrap().to_owned();
        let (loader, mallory) = (pair.target.role().await, pair.target.role().await);
        let statements = format!(
            "grant create on database {database} to {loader}; grant create, usage on schema public to {loader}, {mallory};
             create table secret (s text); insert into secret values ('only the loader reads this');
             grant select on secret to {loader};
             set role {mallory}; {TRAPS} reset role"
        );
        pair.target.run(&statements).await;
        Shared { pair, loader, mallory }
    }

    /// Runs statements as a role.
    async fn run_as(&self, role: &str, statements: &str) {
        self.pair.target.run(&format!("set role {role}; {statements}; reset role")).await;
    }

    fn apply(&self, more: &[&str]) -> Start {
        let to = self.pair.target.url_as(&self.loader, "pass");
        self.pair.apply_to(&to, &[&["--server", &self.pair.service.address], more].concat())
    }

    async fn applied(&self, more: &[&str]) {
        silent(self.apply(more).output().await);
    }

    /// Requires that the loader refuses, and a superuser as well, who is a member of every role for Postgres.
    async fn refused_to_all(&self, object: &str, context: &str) {
        self.refuses(self.apply(&[]), object, context).await;
        self.refuses(self.pair.apply(&[]), object, context).await;
    }

    async fn refuses(&self, call: Start, object: &str, context: &str) {
        let (code, printed, said) = call.output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{context}: {said}");
        assert!(said.contains(&format!("another_owner: {object} belongs to {}", self.mallory)), "{context}: {said}");
        assert_eq!(rows(&self.pair.target, "loot").await, Vec::<String>::new(), "{context}");
        // In the superuser's call, a schema that the loader has made would belong to another role.
        if !object.contains("cdc_apply") {
            self.pair.target.run("drop schema if exists cdc_apply cascade").await;
        }
    }
}

#[tokio::test]
async fn another_roles_table_runs_no_code_of_its_owner() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, loader, pair } = &shared;
    let table = "create table t (id bigint primary key, name text, at timestamptz); grant all on t to public;
         create trigger trap before insert on t for each row execute function trap()";
    shared.run_as(mallory, table).await;
    shared.refused_to_all("public.t", "a table").await;
    // Nor if the loader may act as the owner, and not after apply has made it.
    pair.target.run(&format!("grant {mallory} to {loader}")).await;
    shared.refused_to_all("public.t", "a membership").await;
    pair.target.run(&format!("revoke {mallory} from {loader}; drop table t")).await;
    shared.applied(&[]).await;
    pair.target.run(&format!("alter table t owner to {mallory}")).await;
    ends(shared.apply(&[]).output().await, 1, &format!("another_owner: public.t belongs to {mallory}"));
}

#[tokio::test]
async fn a_table_that_could_run_code_or_stop_a_load_is_refused_until_that_is_undone() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, loader, pair } = &shared;
    pair.target.run("create table parent (id bigint primary key, name text, at timestamptz)").await;
    pair.target.run(&format!("alter table parent owner to {loader}")).await;
    shared.applied(&[]).await;
    pair.target.run(&format!("grant trigger, references on t to {mallory}")).await;
    pair.source.run("update t set name = 'new' where id = 1").await;
    for (role, change, undo, why) in [
        (
            mallory,
            "create trigger x before insert on t for each row execute function trap()",
            "drop trigger x on t",
            "has triggers",
        ),
        (
            loader,
            "create trigger x after delete on t for each row execute function trap()",
            "drop trigger x on t",
            "has triggers",
        ),
        (
            mallory,
            "create table cascades (t bigint references t on delete cascade);
             create trigger x after delete on cascades for each row execute function trap()",
            "drop table cascades",
            "has a foreign key, or is referenced by one",
        ),
        (
            loader,
            "insert into parent select * from t; alter table t add constraint f foreign key (id) references parent",
            "alter table t drop constraint f; delete from parent",
            "has a foreign key, or is referenced by one",
        ),
        (
            loader,
            "create rule r as on insert to t where spring(new.id) do instead nothing",
            "drop rule r on t",
            "has rules",
        ),
        (
            loader,
            "alter table t enable row level security, force row level security; create policy p on t using (spring(id))",
            "drop policy p on t; alter table t disable row level security",
            "has row security",
        ),
        (loader, "create table child () inherits (t)", "drop table child", "is a part of another table, or has parts"),
        (
            loader,
            "create table whole (id bigint not null, name text, at timestamptz) partition by range (id);
             create trigger x before insert on whole for each row execute function trap();
             alter table whole attach partition t default",
            "alter table whole detach partition t; drop table whole",
            "is a part of another table, or has parts",
        ),
    ] {
        shared.run_as(role, change).await;
        let (code, printed, said) = shared.apply(&[]).output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{change}: {said}");
        assert!(said.contains(&format!("target_changed: public.t {why}")), "{change}: {said}");
        assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new(), "{change}");
        pair.target.run(undo).await;
        pair.source.run("update t set name = name || '.' where id = 1").await;
        shared.applied(&[]).await;
        pair.require_equal(undo).await;
    }
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
}

#[tokio::test]
async fn another_roles_type_of_a_sources_name_runs_no_code() {
    let positive = "create domain public.positive as int check (value > 0);";
    let shared = Shared::of(&format!(
        "{positive} create table t (id bigint primary key, n positive); insert into t values (1, 1)"
    ))
    .await;
    let trap = "create domain public.positive as int check (public.spring(value))";
    shared.run_as(&shared.mallory, trap).await;
    shared.applied(&[]).await;
    // A new column, and one whose type changes.
    for change in ["alter table t add m positive default 7", "alter table t alter n type bigint, alter m type positive"]
    {
        shared.pair.source.run(change).await;
        let (code, _, said) = shared.apply(&[]).output().await;
        assert_eq!(code, 0, "{change}: {said}");
        shared.pair.require_equal(change).await;
    }
    assert_eq!(rows(&shared.pair.target, "loot").await, Vec::<String>::new());
}

#[tokio::test]
async fn another_roles_schema_is_refused() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, pair, loader } = &shared;
    let database = pair.target.options.get_database().unwrap();
    pair.target.run(&format!("grant create on database {database} to {mallory}")).await;
    let columns =
        "target text primary key, consumer text, dataset text, source jsonb, job uuid, number bigint, digest text,
                   details jsonb, applied_at timestamptz";
    for objects in [
        String::new(),
        format!(
            "create table cdc_apply.positions ({columns}); grant all on cdc_apply.positions to public;
             create trigger trap before insert on cdc_apply.positions for each row execute function trap()"
        ),
        "create view cdc_apply.positions as select 'a' as consumer where spring(1); grant all on cdc_apply.positions to public".to_owned(),
    ] {
        shared.run_as(mallory, &format!("create schema cdc_apply; grant all on schema cdc_apply to public; {objects}")).await;
        shared.refused_to_all("schema cdc_apply", &objects).await;
        pair.target.run("drop schema cdc_apply cascade").await;
    }
    // The loader's schema, in which mallory may create.
    shared.run_as(loader, &format!("create schema cdc_apply; grant all on schema cdc_apply to {mallory}")).await;
    shared.run_as(mallory, &format!("create table cdc_apply.positions ({columns})")).await;
    shared.refuses(shared.apply(&[]), "cdc_apply.positions", "a table in our schema").await;
    pair.target.run("drop schema cdc_apply cascade").await;
    // The owner of the table's schema can exchange the table at any time.
    shared.run_as(mallory, "create schema mart; grant all on schema mart to public").await;
    ends(shared.apply(&["--table", "mart.t"]).output().await, 1, "another_owner: schema mart belongs to ");
    // The schema of the service is none of ours here.
    shared
        .run_as(
            mallory,
            "create schema cdc_export; grant all on schema cdc_export to public;
             create function cdc_export.equal(text[], text[]) returns boolean language sql as 'select spring(1)';
             create operator cdc_export.= (leftarg = text[], rightarg = text[], function = cdc_export.equal)",
        )
        .await;
    shared.applied(&[]).await;
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
    // A table of its own that could run code is refused as well.
    shared
        .run_as(
            loader,
            "create trigger trap before update on cdc_apply.positions for each row execute function public.trap()",
        )
        .await;
    ends(shared.apply(&[]).output().await, 1, "target_changed: cdc_apply.positions has triggers");
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
}

/// Writes a manifest anew that names another table of the target.
async fn forge(pair: &Pair, table: &str) {
    let manifest = pair.service.path(&export(&pair.service, "full", "t", "a").await).with_extension("manifest.json");
    let mut forged = Manifest::read(std::fs::read(&manifest).unwrap().as_slice()).unwrap();
    forged.export.table = Some(table.to_owned());
    let urls = forged.entries.iter().map(|entry| entry.url.clone()).collect();
    std::fs::write(&manifest, Manifest::new(forged.number, forged.export, urls).text()).unwrap();
}

#[tokio::test]
async fn the_source_chooses_no_table_that_apply_has_not_made() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let canary = "create table canary (id bigint primary key, name text, at timestamptz)";
    pair.target.run(&format!("{canary}; insert into canary values (-1, 'mine')")).await;
    forge(&pair, "public.canary").await;
    let (code, printed, said) = pair.apply_from(&[]).output().await;
    assert_eq!((code, printed.as_str()), (1, ""), "{said}");
    assert!(said.contains("table_taken: public.canary is there"), "{said}");
    assert_eq!(pair.target.one::<String>("select string_agg(name, '') from canary").await, "mine");
    assert_eq!(pair.target.one::<i64>("select count(*) from cdc_apply.positions").await, 0);
    // After its first export the table is the lane's own, whatever a manifest says.
    ends(pair.apply_from(&["--table", "public.copy"]).output().await, 0, "");
    assert_eq!(rows(&pair.target, "copy").await, rows(&pair.source, "t").await);
    forge(&pair, "public.other").await;
    assert_eq!(ends(pair.apply_from(&[]).output().await, 0, "").0, "t: full 2  50 rows written, 50 deleted\n");
    assert_eq!(rows(&pair.target, "copy").await, rows(&pair.source, "t").await);
}

#[tokio::test]
async fn a_schema_of_postgres_or_of_apply_is_no_target() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    export(&pair.service, "full", "t", "a").await;
    let tables = [
        "cdc_apply.positions",
        "cdc_apply.other",
        "cdc_export.t",
        "information_schema.sql_parts",
        "pg_catalog.pg_authid",
        "pg_catalog.t",
        "pg_toast.t",
        "pg_temp.t",
        "pg_temp_3.t",
        "pg_toast_temp_3.t",
    ];
    for table in tables {
        let (code, printed, said) = pair.apply_from(&["--table", table]).output().await;
        assert!((code, printed.as_str()) == (1, "") && said.contains("table_name"), "{table}: {said}");
    }
    for table in tables {
        forge(&pair, table).await;
        let (code, printed, said) = pair.apply_from(&[]).output().await;
        assert!((code, printed.as_str()) == (1, "") && said.contains("table_name"), "{table}: {said}");
    }
}

#[tokio::test]
async fn locks_that_anybody_may_take_do_not_stop_it() {
    let shared = Shared::of(SIMPLE).await;
    let pair = &shared.pair;
    let mut held = pair.target.pool.acquire().await.unwrap();
    let locks = format!(
        "set role {}; select pg_advisory_lock(hashtextextended('cdc_apply', 0)), pg_advisory_lock(hashtextextended('cdc_apply public.t', 0))",
        shared.mallory
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(locks)).execute(&mut *held).await.unwrap();
    let call = tokio::time::timeout(std::time::Duration::from_secs(60), shared.applied(&[])).await;
    assert!(call.is_ok(), "it waits for a lock of mallory's");
    pair.require_equal("in spite of the locks").await;
    held.close().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_is_not_given_up_is_told_with_its_session() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { pair, loader, .. } = &shared;
    shared.applied(&[]).await;
    pair.target.run(&format!("alter role {loader} set lock_timeout = '5s'")).await;
    for lock in [
        "select from cdc_apply.positions for update",
        "lock table cdc_apply.positions",
        "lock table t in share row exclusive mode",
        "update t set name = 'held' where id = 3",
    ] {
        pair.source.run("update t set name = name || 'x' where id = 3").await;
        let mut held = pair.target.open(&format!("set local application_name = 'the holder'; {lock}")).await;
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *held).await.unwrap();
        let (code, _, said) = shared.apply(&[]).output().await;
        let role = pair.target.options.get_username();
        let holder = format!("locked: process {pid} of role {role} (the holder) holds a lock");
        assert!(code == 1 && said.contains(&holder), "{lock}: {code} {said}");
        held.rollback().await.unwrap();
        shared.applied(&[]).await;
        pair.require_equal(lock).await;
    }
}
