//! Attacks that take long to set up: thousands of traps in `public`, and a row larger than any text.

#[path = "../suite/attacks/attacker.rs"]
mod attacker;

use serde_json::json;

use crate::attacks::attacker::Attacker;
use crate::catalog::{Catalog, export};
use crate::harness::Database;

/// In `public`, for each function and operator of Postgres's that takes what isn't just of its types, one that fits
/// better, and that raises an error wherever it is called.
const TRAPS: &str = r#"
create function public.trapped(what text) returns void language plpgsql as $t$ begin raise exception 'trapped: %', what; end $t$;
do $do$
declare
  f record; variant int; a text; types text[]; kinds text[]; result text; body text; l text; r text; name text;
  trapped_types constant text[] := '{text,name,varchar,int2,int4,int8,oid,regclass,"char",bool,timestamptz,timestamp,interval,numeric,float8,text[],int2[],int2vector,oid[],name[],jsonb,json,uuid,bytea,xid8,pg_snapshot,citext}';
begin
  for f in select p.proname, p.proargtypes::oid[] as args, p.prorettype, p.provariadic, p.prokind from pg_proc p
           where p.pronamespace = 'pg_catalog'::regnamespace and p.prokind = 'f' and not p.proretset and p.pronargs between 1 and 4
             and p.prorettype not in ('trigger'::regtype, 'internal'::regtype, 'event_trigger'::regtype, 'cstring'::regtype)
             and p.proname !~ '(in|out|recv|send|sel|typanalyze|support|handler|validator|_accum|_sortsupport)$' loop
    for variant in 1..5 loop
      types := '{}';
      foreach a in array f.args::regtype[]::text[] loop
        types := types || case
          when a = 'text' then ('{varchar,name,text,citext,varchar}'::text[])[variant]
          when a in ('anyarray', 'anycompatiblearray') then ('{text[],int2[],oid[],name[],int4[]}'::text[])[variant]
          when a in ('anyelement', 'anynonarray', 'anycompatible', 'anycompatiblenonarray') then ('{text,int2,oid,name,int4}'::text[])[variant]
          when a = 'anyenum' then 'text'
          when a = '"any"' then ('{text,int4,timestamptz,name,bytea}'::text[])[variant]
          when a in ('bigint', 'numeric', 'double precision') then ('{int4,int2,int4,int8,oid}'::text[])[variant]
          when a = 'record' then 'text'
          else a end;
      end loop;
      result := f.prorettype::regtype::text;
      result := case when result like 'any%array' then types[1] when result like 'any%' or result like '"any%' then 'text' else result end;
      begin
        execute format('create function public.%I(%s) returns %s language plpgsql as %L', f.proname, array_to_string(types, ', '),
          case when result = 'record' then 'text' else result end,
          format('begin perform public.trapped(%L); return null; end', f.proname));
      exception when others then null;
      end;
    end loop;
  end loop;
  for f in select * from unnest(array['array_agg', 'max', 'min', 'count', 'string_agg', 'bool_or', 'sum', 'jsonb_agg']) as proname loop
    foreach l in array trapped_types loop
      begin
        execute format('create function public.step(s %s, v %s) returns %s language plpgsql as %L', l, l, l,
          'begin perform public.trapped(''aggregate''); return s; end');
      exception when others then null; end;
      begin
        execute format('create aggregate public.%I(%s) (sfunc = public.step, stype = %s)', f.proname, l, l);
      exception when others then null; end;
    end loop;
  end loop;
  foreach l in array trapped_types loop
    foreach r in array trapped_types loop
      begin
        execute format('create function public.compared(a %s, b %s) returns bool language plpgsql as %L', l, r,
          format('begin perform public.trapped(%L); return null; end', l || ' with ' || r));
      exception when others then null; end;
      foreach name in array '{=,<>,<,<=,>,>=,||,~~,!~~,->,->>,@>,<@,&&,+,-,*,/,%,?}'::text[] loop
        begin
          if not exists (select from pg_operator o where o.oprnamespace = 'pg_catalog'::regnamespace and o.oprname = name
                         and o.oprleft = l::regtype and o.oprright = r::regtype) then
            execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.compared)', name, l, r);
          end if;
        exception when others then null; end;
      end loop;
    end loop;
  end loop;
end $do$;
"#;

#[tokio::test]
async fn what_somebody_puts_into_public_is_never_called() {
    let schema = "
        create schema kept; create extension citext schema kept;
        create table kept.orders (a varchar(20), b name, c kept.citext, at timestamptz not null default now(), note text, gone boolean,
          many int[], primary key (a, b, c));
        create table kept.events (id bigint primary key, at timestamp not null default now(), kind varchar(10))";
    let database = Database::empty_with(schema).await;
    let attacker = Attacker::new(&database).await;
    database.run(&format!("grant all on schema public to {0}; grant usage on schema kept to {0}", attacker.name)).await;
    attacker.runs(&format!("set search_path = pg_catalog, kept; {TRAPS}; reset search_path")).await;
    let traps: i64 = database
        .one("select pg_catalog.count(*) from pg_catalog.pg_proc where pronamespace = 'public'::regnamespace")
        .await;
    assert!(traps > 1000, "{traps}");
    let trapped = sqlx::query("select array_position('{1}'::int2[], 1::int2)").execute(&database.pool).await;
    assert!(trapped.unwrap_err().to_string().contains("trapped"), "a trap that holds nobody proves nothing");

    let catalog = Catalog::of(
        "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\n
         [[dataset]]\nname = \"orders\"\ntable = \"kept.orders\"\nupdated_at = \"at\"\ndeleted = \"gone\"\n
         [[dataset]]\nname = \"events\"\ntable = \"kept.events\"\nupdated_at = \"at\"\nfilter = \"kind operator(pg_catalog.<>) 'x'::text\"\n",
    );
    let start = || catalog.start(&database).with("SEED_ROWS", 50).with("RETAIN_FILES", 1).with("RETAIN_JOBS", 3);
    let service = start().service().await;
    for dataset in ["orders", "events"] {
        catalog.track(&database, dataset).await;
    }
    for arguments in [
        vec!["datasets", "check"],
        vec!["datasets", "list"],
        vec!["keys", "create", "--name", "k"],
        vec!["keys", "list"],
        vec!["keys", "revoke", "k"],
        vec!["status"],
        vec!["seed", "--rows", "60"],
    ] {
        let (code, printed, errors) = start().arguments(&arguments).output().await;
        assert!(code == 0, "{arguments:?}: {printed} {errors}");
    }
    // A catalog that has no such name yet.
    let (code, printed, errors) =
        start().with("DATASETS", "").arguments(&["datasets", "add", "kept.orders"]).output().await;
    assert!(code == 0, "{printed} {errors}");
    let changes = [
        "insert into kept.orders values ('a', 'b', 'C', default, 'n'), ('d', 'e', 'F', default, 'n'); insert into kept.events values (1), (2)",
        "update kept.orders set note = 'm' where note is not null; delete from kept.events; update public.users set name = 'z'",
        "delete from kept.orders; truncate kept.events",
    ];
    for change in changes {
        database.run(&format!("set search_path = pg_catalog, kept; {change}; reset search_path")).await;
        for dataset in ["users", "orders", "events"] {
            for export_type in ["full", "incremental", "delta"] {
                let job = export(&service, export_type, dataset, "a").await;
                assert_eq!(job["status"], "completed", "{job}");
            }
        }
    }
    let selection = json!({"dataset": "orders", "limit": 3, "columns": ["a", "note"], "filter": [
        {"column": "a", "op": "eq", "value": "x"}, {"column": "b", "op": "in", "value": ["x", "y"]}, {"column": "c", "op": "lt", "value": "x"},
        {"column": "at", "op": "gte", "value": "2020-01-01"}, {"column": "note", "op": "isNull", "value": false}]});
    let job = crate::catalog::ended(&service, "/exports", None, selection).await;
    assert_eq!(job["status"], "completed", "{job}");
    for path in [
        "/datasets",
        "/datasets/orders",
        "/consumers",
        "/exports?status=completed",
        "/exports?consumer=a&dataset=users&exportType=delta",
        "/metrics",
        "/health",
        "/health/ready",
    ] {
        assert_eq!(service.call("GET", path, &[]).await.status(), 200, "{path}");
    }
    for (method, path) in [("DELETE", "/users/3"), ("DELETE", "/exports/watermark")] {
        let answer = service.call(method, path, &[("X-Consumer-ID", "a")]).await;
        assert!(answer.status().is_success(), "{method} {path}: {}", answer.status());
    }
    let log = service.log();
    assert!(!log.contains("trapped"), "{log}");
    service.stop().await;
    attacker.assert_gained_nothing(&database).await;
}
