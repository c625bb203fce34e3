//! `apply` runs no code of roles that it has no reason to trust, and lets the source choose no table that has rows.

use cdc_export::manifest::Manifest;

use crate::apply::pair::{Pair, rows};
use crate::catalog::export;
use crate::harness::{Start, far};

const SIMPLE: &str = "create table t (id bigint primary key, name text, at timestamptz default now());
                      insert into t select g, 'n' || g from generate_series(1, 50) g";

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
        let [loader, mallory] = ["loader", "mallory"].map(|name| format!("{name}_{database}"));
        pair.target
            .run(&format!(
                "create role {loader} login password 'pass'; create role {mallory} login password 'pass';
                 grant create on database {database} to {loader}; grant create, usage on schema public to {loader}, {mallory};
                 create table secret (s text); insert into secret values ('only the loader reads this');
                 grant select on secret to {loader};
                 set role {mallory}; {TRAPS} reset role"
            ))
            .await;
        Shared { pair, loader, mallory }
    }

    /// Runs statements as a role.
    async fn run_as(&self, role: &str, statements: &str) {
        self.pair.target.run(&format!("set role {role}; {statements}; reset role")).await;
    }

    fn apply(&self, more: &[&str]) -> Start {
        let to = self.pair.target.url_as(&self.loader, "pass");
        let address = &self.pair.service.address;
        let fixed = ["apply", "--to", &to, "--consumer", "a", "--dataset", "t", "--server", address];
        far(&[&fixed, more].concat())
    }

    async fn applied(&self, more: &[&str]) {
        let (code, printed, said) = self.apply(more).output().await;
        assert_eq!((code, said.as_str()), (0, ""), "{printed}");
    }

    /// Requires that the loader refuses because of this object of mallory's, and that nothing has run.
    async fn refused(&self, object: &str, context: &str) {
        self.refuses(self.apply(&[]), object, context).await;
    }

    /// Requires that the loader refuses, and a superuser as well, who is a member of every role for Postgres.
    async fn refused_to_all(&self, object: &str, context: &str) {
        self.refuses(self.apply(&[]), object, context).await;
        self.refuses(self.pair.apply(&[]), object, context).await;
    }

    async fn refuses(&self, call: Start, object: &str, context: &str) {
        let (code, printed, said) = call.output().await;
        assert_eq!((code, printed.as_str()), (1, ""), "{context}: {said}");
        let owner = format!(" belongs to {}, whose ", self.mallory);
        let names_both = said.contains(&format!("another_owner: {object}")) && said.contains(&owner);
        assert!(names_both && said.contains(" would run as "), "{context}: {said}");
        assert_eq!(rows(&self.pair.target, "loot").await, Vec::<String>::new(), "{context}");
        // One that the loader has made is another role's for the superuser.
        if !object.contains("cdc_apply") {
            self.pair.target.run("drop schema if exists cdc_apply cascade").await;
        }
    }

    async fn end(self) {
        let Shared { pair, loader, mallory } = self;
        pair.target
            .run(&format!("drop owned by {loader}, {mallory} cascade; drop role {loader}; drop role {mallory}"))
            .await;
        pair.end().await;
    }
}

#[tokio::test]
async fn another_roles_table_runs_no_code_of_its_owner() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, loader, .. } = &shared;
    let table = "create table t (id bigint primary key, name text, at timestamptz); grant all on t to public;
         create trigger trap before insert on t for each row execute function trap()";
    shared.run_as(mallory, table).await;
    shared.refused_to_all("public.t", "a table").await;
    let (code, _, said) = shared.apply(&["--table", "public.t"]).output().await;
    assert!(code == 1 && said.contains(&format!("--trust-owner {mallory}")), "{said}");
    assert!(said.contains(&format!("whose triggers would run as {loader}")), "{said}");
    let (code, _, said) = shared.apply(&["--trust-owner", mallory]).output().await;
    assert!(code == 2 && said.contains("--table"), "{said}");
    assert_eq!(rows(&shared.pair.target, "loot").await, Vec::<String>::new());
    // The operator says whom to trust: by the option, or by a membership that was granted.
    shared.run_as(mallory, "drop trigger trap on t; alter table t owner to current_user").await;
    shared.applied(&["--table", "public.t", "--trust-owner", mallory]).await;
    shared.pair.require_equal("a trusted owner").await;
    shared.pair.target.run(&format!("grant {mallory} to {loader}")).await;
    shared.applied(&[]).await;
    shared.end().await;
}

#[tokio::test]
async fn another_roles_objects_of_a_table_run_no_code() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, loader, .. } = &shared;
    let table = "create table t (id bigint primary key, name text, at timestamptz";
    for (of_mallory, of_loader, object) in [
        (
            "",
            format!("{table}); create trigger x before insert on t for each row execute function trap()"),
            "function public.trap(",
        ),
        ("", format!("{table}, own boolean default spring(1))"), "function public.spring("),
        ("", format!("{table}, check (spring(name)))"), "function public.spring("),
        ("", format!("{table}, own boolean generated always as (spring(name)) stored)"), "function public.spring("),
        ("", format!("{table}); create index on t (spring(name))"), "function public.spring("),
        (
            "",
            format!("{table}); create rule r as on delete to t where spring(old.id) do instead nothing"),
            "function public.spring(",
        ),
        (
            "create domain named as text check (spring(value))",
            table.replace("name text", "name named") + ")",
            "type public.named",
        ),
        ("create domain named as text check (spring(value))", format!("{table}, own named[])"), "type public.named"),
        ("create type mood as enum ('n')", format!("{table}, own mood)"), "type public.mood"),
        ("create type two as (a int, b int)", format!("{table}, own two)"), "type public.two"),
        ("create type span as range (subtype = int)", format!("{table}, own span)"), "type public.span"),
        (
            "create function same(int, int) returns boolean language sql as 'select true'; create operator === (leftarg = int, rightarg = int, function = same)",
            format!("{table}, check (1 === 1))"),
            "function public.same(",
        ),
        (
            "create table part (id bigint not null, name text, at timestamptz)",
            "create table t (id bigint primary key, name text, at timestamptz) partition by range (id)".to_owned(),
            "public.part",
        ),
        (
            "create table parent (id bigint not null, name text, at timestamptz) partition by range (id)",
            table.to_owned() + ")",
            "public.parent",
        ),
        ("", format!("{table}); grant references on t to public"), "public.cascades"),
    ] {
        if !of_mallory.is_empty() {
            shared.run_as(mallory, of_mallory).await;
        }
        shared.run_as(loader, &of_loader).await;
        match object {
            "public.part" => shared.pair.target.run("alter table t attach partition part default").await,
            "public.parent" => shared.pair.target.run("alter table parent attach partition t default").await,
            "public.cascades" => {
                let cascades = "create table cascades (t bigint references t on delete cascade);
                                create trigger x after delete on cascades for each row execute function trap()";
                shared.run_as(mallory, cascades).await;
            }
            _ => {}
        }
        shared.refused(object, &of_loader).await;
        shared
            .pair
            .target
            .run(
                "drop table if exists t, part, parent, cascades cascade; drop domain if exists named; drop type if exists mood, two, span;
                 drop operator if exists === (int, int); drop function if exists same(int, int)",
            )
            .await;
    }
    shared.end().await;
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
    shared.refused_to_all("type public.positive", "a new table").await;
    // Without the type, the column is a text.
    let drop = "drop domain positive";
    shared.pair.target.run(drop).await;
    shared.pair.source.run("alter table t add k int").await;
    let (code, _, said) = shared.apply(&[]).output().await;
    assert_eq!(code, 0, "{said}");
    // A new column, to which `alter table` gives values at once, and one whose type changes.
    for change in ["alter table t alter k type positive using 1", "alter table t add m positive default 7"] {
        shared.run_as(&shared.mallory, trap).await;
        shared.pair.source.run(change).await;
        let (code, _, said) = shared.apply(&[]).output().await;
        let why = "another_owner: type public.positive belongs to ";
        assert!(code == 1 && said.contains(why), "{change}: {said}");
        shared.pair.target.run(drop).await;
        shared.pair.source.run("alter table t alter k type int").await;
    }
    assert_eq!(rows(&shared.pair.target, "loot").await, Vec::<String>::new());
    shared.end().await;
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
        let object = match &objects[..] {
            "" => "schema cdc_apply",
            table if table.starts_with("create table") => "cdc_apply.positions",
            _ => "view cdc_apply.positions",
        };
        shared.refused_to_all(object, &objects).await;
        let (code, _, said) = shared.apply(&["--table", "public.t", "--trust-owner", mallory]).output().await;
        assert!(code == 1 && said.contains("another_owner"), "{said}");
        pair.target.run("drop schema cdc_apply cascade").await;
    }
    // The loader's schema, in which mallory may create.
    shared.run_as(loader, &format!("create schema cdc_apply; grant all on schema cdc_apply to {mallory}")).await;
    shared.run_as(mallory, &format!("create table cdc_apply.positions ({columns})")).await;
    shared.refused("cdc_apply.positions", "a table in our schema").await;
    pair.target.run("drop schema cdc_apply cascade").await;
    // The owner of the table's schema can exchange the table at any time.
    shared.run_as(mallory, "create schema mart; grant all on schema mart to public").await;
    let (code, _, said) = shared.apply(&["--table", "mart.t"]).output().await;
    assert!(code == 1 && said.contains("another_owner: schema mart belongs to "), "{said}");
    // The schema of the service is none of ours here.
    shared
        .run_as(
            mallory,
            "create schema cdc_export; grant all on schema cdc_export to public;
             create function cdc_export.equal(text[], text[]) returns boolean language sql as 'select spring(1)';
             create operator cdc_export.= (leftarg = text[], rightarg = text[], function = cdc_export.equal)",
        )
        .await;
    shared.run_as(loader, "create table t (id bigint primary key, name text, at timestamptz)").await;
    shared.applied(&[]).await;
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
    shared.end().await;
}

#[tokio::test]
async fn triggers_find_no_functions_where_others_may_create() {
    let shared = Shared::of(SIMPLE).await;
    let Shared { mallory, pair, loader } = &shared;
    pair.target.run(&format!("alter role {loader} set search_path = own, public")).await;
    shared
        .run_as(
            loader,
            "create schema own; create table own.log (name text);
             create function own.note() returns trigger language plpgsql as $$ begin
               insert into log values (lower(new.name::varchar)); return new; end $$;
             create table public.t (id bigint primary key, name text, at timestamptz);
             create trigger note before insert on public.t for each row execute function own.note()",
        )
        .await;
    let lower = "create function public.lower(varchar) returns text language plpgsql as $$ begin
                 insert into public.loot select current_user || s from public.secret; return 'x'; end $$";
    shared.run_as(mallory, lower).await;
    shared.applied(&[]).await;
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
    assert_eq!(rows(&pair.target, "own.log").await.len(), 50);
    // A function stays when the grant with which it was created is taken back.
    pair.target.run(&format!("revoke create on schema public from {mallory}, public")).await;
    pair.source.run("insert into t values (77, 'NEW')").await;
    shared.applied(&[]).await;
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
    assert_eq!(pair.target.one::<i64>("select count(*) from own.log where name = 'new'").await, 1);
    // So does a table, which the trigger's function would find before the loader's own.
    pair.target.run("drop function lower(varchar)").await;
    pair.target.run(&format!("grant create on schema public to {mallory}")).await;
    let log = "create table public.log (name text); grant all on public.log to public;
               create trigger trap before insert on public.log for each row execute function trap()";
    shared.run_as(mallory, log).await;
    pair.target
        .run(&format!(
            "revoke create on schema public from {mallory}; alter function trap() owner to {loader};
             alter function spring(anyelement) owner to {loader}; alter table loot owner to {loader};
             alter role {loader} set search_path = public, own"
        ))
        .await;
    pair.source.run("insert into t values (79, 'NEW')").await;
    shared.applied(&[]).await;
    assert_eq!(rows(&pair.target, "loot").await, Vec::<String>::new());
    assert_eq!(pair.target.one::<i64>("select count(*) from own.log where name = 'new'").await, 2);
    // A schema that nobody else creates in stays on the path.
    pair.target
        .run("drop table public.log; drop function trap() cascade; drop function spring(anyelement) cascade")
        .await;
    shared.run_as(loader, "alter table own.log set schema public").await;
    pair.source.run("insert into t values (78, 'NEW')").await;
    shared.applied(&[]).await;
    assert_eq!(pair.target.one::<i64>("select count(*) from public.log where name = 'new'").await, 3);
    shared.end().await;
}

/// Writes a manifest anew that names another table of the target.
async fn forge(pair: &Pair, table: &str) {
    let job = export(&pair.service, "full", "t", "a").await;
    let manifest = pair.service.path(&job).with_extension("manifest.json");
    let mut forged = Manifest::read(std::fs::read(&manifest).unwrap().as_slice()).unwrap();
    forged.export.table = Some(table.to_owned());
    let urls = forged.entries.iter().map(|entry| entry.url.clone()).collect();
    let forged = Manifest::new(forged.number, forged.export, urls);
    std::fs::write(&manifest, forged.text()).unwrap();
}

#[tokio::test]
async fn the_source_chooses_no_table_that_has_rows() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let place = pair.service.output().to_owned();
    let canary = "create table canary (id bigint primary key, name text, at timestamptz)";
    pair.target.run(&format!("{canary}; insert into canary values (-1, 'mine')")).await;
    forge(&pair, "public.canary").await;
    let apply = async |more: &[&str]| super::from(&pair, &place, more).output().await;
    let (code, printed, said) = apply(&[]).await;
    assert_eq!((code, printed.as_str()), (1, ""), "{said}");
    assert!(said.contains("has_rows: public.canary has rows") && said.contains("--table public.canary"), "{said}");
    assert_eq!(pair.target.one::<String>("select string_agg(name, '') from canary").await, "mine");
    assert_eq!(pair.target.one::<i64>("select count(*) from cdc_apply.positions").await, 0);
    // The operator may choose it. After that it is the lane's own.
    let (code, _, said) = apply(&["--table", "public.canary"]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(rows(&pair.target, "canary").await, rows(&pair.source, "t").await);
    forge(&pair, "public.other").await;
    let (code, printed, said) = apply(&[]).await;
    assert_eq!((code, printed.as_str()), (0, "t: full 2  0 rows written, 0 deleted\n"), "{said}");
    // An empty table loses nothing.
    pair.target.run(&format!("drop schema cdc_apply cascade; drop table canary; {canary}")).await;
    forge(&pair, "public.canary").await;
    let (code, _, said) = apply(&[]).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(rows(&pair.target, "canary").await, rows(&pair.source, "t").await);
    pair.end().await;
}

#[tokio::test]
async fn a_schema_of_postgres_or_of_apply_is_no_target() {
    let pair = Pair::started(SIMPLE, |start| start.with("MANIFESTS", "on")).await;
    let place = pair.service.output().to_owned();
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
        let (code, printed, said) = super::from(&pair, &place, &["--table", table]).output().await;
        assert!((code, printed.as_str()) == (1, "") && said.contains("reserved_schema"), "{table}: {said}");
    }
    for table in tables {
        forge(&pair, table).await;
        let (code, printed, said) = super::from(&pair, &place, &[]).output().await;
        assert!((code, printed.as_str()) == (1, "") && said.contains("reserved_schema"), "{table}: {said}");
    }
    pair.end().await;
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
    shared.end().await;
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
        let mut held = pair.target.pool.begin().await.unwrap();
        let statements = format!("set local application_name = 'the holder'; {lock}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut *held).await.unwrap();
        let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *held).await.unwrap();
        let (code, _, said) = shared.apply(&[]).output().await;
        let role = pair.target.options.get_username();
        let holder = format!("locked: process {pid} of role {role} (the holder) holds a lock");
        assert!(code == 1 && said.contains(&holder), "{lock}: {code} {said}");
        held.rollback().await.unwrap();
        shared.applied(&[]).await;
        pair.require_equal(lock).await;
    }
    shared.end().await;
}
