//! A page of consumers.

use serde_json::Value;

use crate::harness::{Database, Service};

pub(crate) async fn consumers(service: &Service) -> Value {
    let answer = service.call("GET", "/consumers?limit=200", &[]).await;
    assert_eq!(answer.status(), 200);
    answer.json().await.unwrap()
}

/// Copies a consumer's position to others.
pub(crate) async fn copy_position(database: &Database, consumer: &str, copies: u32) {
    let columns: String = database
        .one(
            "select string_agg(attname, ', ') from pg_attribute where attrelid = 'watermarks'::regclass and attnum > 0
              and attname not in ('id', 'consumer_id')",
        )
        .await;
    let statements = format!(
        "insert into watermarks (consumer_id, {columns})
         select '{consumer}-' || n, {columns} from watermarks, generate_series(1, {copies}) n where consumer_id = '{consumer}'"
    );
    database.run(&statements).await;
}
