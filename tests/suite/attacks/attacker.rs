//! An attacker, and the proof that the attack gained nothing.

use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};

use crate::harness::{Database, until};

/// Somebody without rights, connected once: his temporary objects stay.
pub(crate) struct Attacker {
    pub(crate) name: String,
    pub(crate) pool: PgPool,
}

impl Attacker {
    pub(crate) async fn new(database: &Database) -> Attacker {
        let name = database.role().await;
        let grants = format!("create schema {name} authorization {name}; grant usage on schema public to {name}");
        database.run(&grants).await;
        let options = database.options.clone().username(&name).password("pass");
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        Attacker { name, pool }
    }

    pub(crate) async fn tries(&self, sql: &str) -> Result<(), sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&self.pool).await.map(drop)
    }

    pub(crate) async fn runs(&self, sql: &str) {
        self.tries(sql).await.unwrap_or_else(|error| panic!("{error}: {sql}"));
    }

    /// A function that does, as whoever runs it, what no attacker may.
    pub(crate) async fn makes_a_trap(&self, signature: &str, result: &str) {
        self.runs(&format!(
            "create or replace function {signature} language plpgsql as $$ begin
               execute 'alter role {} superuser'; return {result}; end $$",
            self.name
        ))
        .await;
    }

    pub(crate) async fn assert_gained_nothing(self, database: &Database) {
        let is_superuser: bool =
            database.one(&format!("select rolsuper from pg_roles where rolname = '{}'", self.name)).await;
        assert!(!is_superuser, "the attacker's function ran as a superuser");
        self.pool.close().await;
        let sessions = format!("select count(*) from pg_stat_activity where usename = '{}'", self.name);
        until("his session ends", async || database.one::<i64>(&sessions).await == 0).await;
    }
}
