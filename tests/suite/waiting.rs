//! Changes that wait where the table's times alone tell since when.

pub(crate) mod page;

use serde_json::Value;

use crate::catalog::Catalog;
use crate::harness::Database;
use crate::waiting::page::consumers;

#[tokio::test]
async fn an_index_of_the_times_tells_since_when_changes_wait() {
    let schema = "
        create table ordered (id int primary key, at timestamptz);
        insert into ordered select n, now() - n * interval '1 minute' from generate_series(1, 50) n;
        create table without_index (like ordered including constraints);
        alter table without_index add primary key (id);
        insert into without_index select * from ordered;
        create index on ordered (at);
        insert into watermarks (consumer_id, dataset, last_exported_at)
        select name, name, now() - interval '630 seconds' from (values ('ordered'), ('without_index')) tables (name)";
    let database = Database::new_with(schema).await;
    let blocks = ["ordered", "without_index"].map(|name| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"at\"\ncapture = \"timestamp\"\n")
    });
    let service = Catalog::of(&blocks.concat()).start(&database).service().await;
    let page = consumers(&service).await;
    let behind = |at: usize| page["items"][at]["behindSeconds"].clone();
    assert!(behind(0).as_u64().is_some_and(|seconds| (600..900).contains(&seconds)), "{page}");
    assert_eq!(behind(1), Value::Null, "nobody knows without reading all of it");
}
