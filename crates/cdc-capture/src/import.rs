//! Imports a snapshot that another connection has exported.

use std::time::Duration;

use sqlx::{AssertSqlSafe, PgConnection};

use crate::relation_locks::NO_WAIT;
use crate::{Error, quote, role_path};
use cdc_dataset::{Dataset, TableSchema};
use pg_session::failure::sqlstate;
use pg_session::table_name::Table;

#[derive(Clone, Debug)]
pub(super) struct ImportedSnapshot {
    pub(super) name: String,
    pub(super) encoding: String,
    /// The longest time for which a reader takes no rows.
    pub(super) silence: Duration,
}

/// The statements that make a connection a reader of one snapshot.
#[derive(Clone, Debug)]
pub(super) struct Import(String);

impl Import {
    /// Builds the statements that import the snapshot and lock the table of `dataset`, or only the partition `leaf`.
    pub(super) fn new(
        ImportedSnapshot { name, encoding, silence }: &ImportedSnapshot,
        dataset: &Dataset,
        schema: &TableSchema,
        leaf: Option<&Table>,
    ) -> Import {
        let silence = silence.as_millis();
        // A database in SQL_ASCII doesn't guarantee the encoding of its texts. Postgres sends them unchanged. The
        // encoder checks them, and its error names the column.
        // A merge join has its rows in the order of the key.
        let no_order = if schema.has_masked_key() { "set local enable_mergejoin = off;" } else { "" };
        let raw_texts = if encoding == "SQL_ASCII" { "set local client_encoding = 'SQL_ASCII';" } else { "" };
        let path = role_path::of_reader(dataset, schema, leaf);
        let table = quote::relation(leaf.unwrap_or(&schema.table));
        // The statement that reads the rows locks other relations, and indexes.
        let lock = match schema.relation.can_be_locked() {
            true => format!("{NO_WAIT}; lock table {table} in access share mode"),
            false => NO_WAIT.to_owned(),
        };
        Import(format!(
            "-- source.snapshot.import
             begin isolation level repeatable read read only;
             set transaction snapshot '{name}';
             {NOTICE_A_LOST_CLIENT}
             -- A process that is stopped takes no rows and says nothing.
             set local tcp_user_timeout = {silence};
             set local idle_in_transaction_session_timeout = {silence};
             {raw_texts}
             {no_order}
             set local synchronize_seqscans = off;
             set local enable_tidscan = on;
             set local max_parallel_workers_per_gather = 0;
             set local random_page_cost = 1.1;
             {lock};
             {path}"
        ))
    }

    pub(super) async fn join(&self, conn: &mut PgConnection, table: &Table) -> Result<(), Error> {
        let imported = sqlx::raw_sql(AssertSqlSafe(self.0.clone())).execute(conn).await;
        imported.map(drop).map_err(|cause| match &*sqlstate(&cause) {
            // The snapshot or its transaction no longer exists, because the leader's connection was lost.
            "22023" | "42704" | "55000" => Error::Unavailable(cause),
            _ => Error::from_sql(table)(cause),
        })
    }
}

pub(super) async fn end(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql("-- source.import.end\n commit").execute(conn).await.map(drop)
}

/// Ends a query whose client has disconnected. Postgres 14 and later support this, on most platforms.
pub(super) const NOTICE_A_LOST_CLIENT: &str = "do $$ begin
    perform set_config('client_connection_check_interval', '1s', true);
  exception when others then null; end $$;";
