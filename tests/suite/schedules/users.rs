//! Schedules of the demo's table, and the exports that they have had.

use crate::harness::{Database, eventually};

pub(crate) const USERS: &str = "[[dataset]]\nname = \"users\"\ntable = \"users\"\nupdated_at = \"updated_at\"\n\
                     created_at = \"created_at\"\ndeleted = \"is_deleted\"\nexclude = [\"operation_type\"]\n";

/// A schedule of users, with more members.
pub(crate) fn schedule(name: &str, consumer: &str, more: &str) -> String {
    format!(
        "[[schedule]]\nname = \"{name}\"\nconsumer = \"{consumer}\"\ndataset = \"users\"\nevery = \"366d\"\n{more}\n"
    )
}

pub(crate) async fn users() -> Database {
    Database::with_users(5).await
}

pub(crate) async fn jobs(database: &Database) -> i64 {
    database.one("select count(*) from exports").await
}

/// Waits until this number of exports have ended. Returns their types and statuses in the order of their requests.
pub(crate) async fn ended(database: &Database, number: usize) -> Vec<String> {
    eventually("exports end", async || {
        let ended = "select export_type || ' ' || status from exports
                     where published_at is not null or status = 'failed' order by created_at, job";
        let types: Vec<String> = database.all(ended).await;
        assert!(types.len() <= number, "{types:?}");
        (types.len() == number).then_some(types)
    })
    .await
}
