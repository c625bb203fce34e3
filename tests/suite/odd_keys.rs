//! Keys whose `=` isn't identity, and types that live off the search_path: a consumer's copy is by the texts that its
//! files have.

mod texts;

use serde_json::json;

use crate::catalog::{Catalog, ended, export};
use crate::odd_keys::texts::{Texts, database};

#[tokio::test]
async fn a_key_of_another_collation_than_its_index_is_compared_in_that_of_the_index() {
    let database = database().await;
    let collations =
        [("\"C\"", "\"und-x-icu\""), ("\"de-x-icu\"", "\"en-x-icu\""), ("\"und-x-icu\"", "\"C\""), ("ci", "\"C\"")];
    let mut blocks = Vec::new();
    for (i, (column, index)) in collations.into_iter().enumerate() {
        blocks.push(format!("[[dataset]]\nname = \"t{i}\"\ntable = \"t{i}\"\nkey = [\"k\"]\n"));
        let statements = format!(
            "create table t{i} (k varchar(9) collate {column} not null, n int); create unique index on t{i} (k collate {index});
             insert into t{i} values ('a', 1), ('b', 2), ('c', 3)"
        );
        database.run(&statements).await;
    }
    let catalog = Catalog::tracked(&database, &blocks).await;
    let service = catalog.start(&database).service().await;
    for (i, of) in collations.iter().enumerate() {
        let table = format!("t{i}");
        let mut texts = Texts::of(1);
        texts.exports(&service, "full", &table, "a").await;
        database.run(&format!("update {table} set n = 4 where k = 'a'; delete from {table} where k = 'b'")).await;
        let (job, _) = texts.exports(&service, "incremental", &table, "a").await;
        assert_eq!(job["rowsExported"], 1, "{of:?}");
        texts.exports(&service, "delta", &table, "a").await;
        texts.require(&database, &table, "k", &format!("{of:?}")).await;
    }
}

#[tokio::test]
async fn a_key_whose_text_depends_on_who_reads_it_is_refused() {
    let database = database().await;
    database.run("create domain ext.relation as regclass").await;
    let types = ["regclass", "ext.relation", "regtype", "regprocedure[]", "money"];
    for name in types {
        database.run(&format!("create table t (k {name}, n int, primary key (n, k))")).await;
        let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
        for arguments in [&["datasets", "check"][..], &["track", "t"]] {
            let (code, _, said) = catalog.command(&database, arguments).await;
            assert!(code != 0 && said.contains("t: key: `k` is ") && said.contains("whose text depends on"), "{said}");
        }
        database.run("drop table t").await;
    }
}

#[tokio::test]
async fn a_key_whose_text_comes_to_show_settings_is_tracked_again() {
    let database = database().await;
    let statements = "create table t (k text primary key, n int); insert into t values ('2026-01-01 12:00:00+00', 1)";
    database.run(statements).await;
    let catalog = Catalog::of("[[dataset]]\nname = \"t\"\ntable = \"t\"\n");
    let service = catalog.serving(&database, &["t"]).await;
    export(&service, "full", "t", "a").await;
    database.run("alter table t alter k type timestamptz using k::timestamptz").await;
    let mut copy = Texts::of(1);
    copy.exports(&service, "full", "t", "a").await;
    let job = ended(&service, "/exports/delta", Some("a"), json!({"dataset": "t"})).await;
    assert_eq!(job["continuity"], "trigger_missing", "the triggers write such a key as each session would: {job}");

    catalog.track(&database, "t").await;
    copy.exports(&service, "full", "t", "a").await;
    let writes = "set timezone = 'Asia/Tokyo'; set datestyle = 'German'; update t set n = 2; update t set k = k + '1 day'; reset all";
    database.run(writes).await;
    copy.exports(&service, "delta", "t", "a").await;
    let texts: Vec<String> = database.all("select distinct key from cdc_export.change_log order by 1").await;
    assert_eq!(texts, ["2026-01-01 12:00:00+00", "2026-01-02 12:00:00+00"], "one key has one text");
    assert_eq!(copy.rows.len(), 1, "{:?}", copy.rows);
}
