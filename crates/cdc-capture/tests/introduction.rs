//! An introduction: track a table, change its rows, and read what changed. Needs no service.

#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "only this test needs the environment")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use cdc_capture::capture::Triggers;
use cdc_capture::{LaneEvidence, NewPosition, Progress, Purpose, ReceiverClosed, RowReceiver, RowRequest, Source};
use cdc_dataset::{CellMax, Dataset, Selection};
use pg_rows::encoding::Format;
use pg_rows::export_type::ExportType;
use pg_session::table_name::Table;
use private_postgres::Server;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::types::Json;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(60);

/// Collects the rows of an export in Postgres's binary form.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<u8>>>);

impl RowReceiver for Collector {
    fn receive(&mut self, rows: &[u8]) -> bool {
        self.0.lock().unwrap().extend_from_slice(rows);
        false
    }

    async fn flush(&mut self) -> Result<(), ReceiverClosed> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_has_what_changed_since_the_position() {
    let Some((server, options)) = server().await else { return };
    let pool = pool(&options).await;
    let run = async |statement: &'static str| sqlx::raw_sql(statement).execute(&pool).await.unwrap();
    run("create table public.orders (id int primary key, state text); insert into public.orders values (1, 'new'), (2, 'new')").await;

    let table = Table { schema: Some("public".to_owned()), name: "orders".to_owned() };
    let dataset = Arc::new(Dataset::new("orders".to_owned(), table));
    Triggers(&pool).track(&dataset).await.unwrap();
    let source = Source::new(options, pool.clone(), 1);

    let (rows, position) = read(&source, &dataset, ExportType::Full).await;
    assert!(contains(&rows, "new") && !contains(&rows, "INSERT"), "a full export has no operations");
    save(&pool, &position).await;

    run("update public.orders set state = 'paid' where id = 1; delete from public.orders where id = 2").await;
    let (rows, _) = read(&source, &dataset, ExportType::Delta).await;
    assert!(contains(&rows, "UPDATE") && contains(&rows, "paid") && contains(&rows, "DELETE"));
    assert!(!contains(&rows, "INSERT"), "no other row changed");
    pool.close().await;
    server.stop().await;
}

/// Reads an export of the consumer `search`. Returns its rows, and the position that it leads to.
async fn read(source: &Source, dataset: &Arc<Dataset>, export_type: ExportType) -> (Vec<u8>, NewPosition) {
    let job = Uuid::new_v4();
    let purpose = Purpose { dataset, consumer: Some("search"), export_type, format: Format::Csv };
    let connections = source.connections(LEASE).await.unwrap();
    let mut snapshot =
        connections.open(&[purpose], LEASE, LEASE, async |_| Ok(vec![LaneEvidence::default()])).await.unwrap();
    let (_, mut reading) = snapshot.split();
    let (collector, selection) = (Collector::default(), Selection::default());
    let request = RowRequest { job, export_type, selection: &selection, order: None };
    let rows = reading.rows(0).await.unwrap();
    rows.read(request, CellMax(64 << 20), &Progress::default(), || collector.clone()).await.unwrap();
    reading.end(LEASE).await;
    let position = snapshot.tables[0].new_position.clone();
    snapshot.give_up().await;
    (std::mem::take(&mut collector.0.lock().unwrap()), position)
}

/// Saves the consumer's position, as the commit of an export does.
async fn save(pool: &PgPool, position: &NewPosition) {
    let table = &position.table;
    sqlx::query(
        "insert into public.watermarks (consumer_id, dataset, live_snapshot, deletions_snapshot, saved_at, deletions_saved_at,
           table_oid, relfilenode, table_columns_hash, cluster_id, definition_hash, column_types, guard_state)
         values ('search', 'orders', $1::pg_snapshot, $1::pg_snapshot, now(), now(),
           $2::int8::oid, $3::int8::oid, $4, $5, md5($6), $7, $8)",
    )
    .bind(&position.snapshot)
    .bind(i64::from(table.table_oid))
    .bind(table.relfilenode.map(i64::from))
    .bind(&table.table_columns_hash)
    .bind(table.cluster_id)
    .bind(&table.definition)
    .bind(Json(&table.types))
    .bind(Json(&table.guard_state))
    .execute(pool)
    .await
    .unwrap();
}

fn contains(rows: &[u8], text: &str) -> bool {
    rows.windows(text.len()).any(|bytes| bytes == text.as_bytes())
}

/// Connects with the settings that the statements need.
async fn pool(options: &PgConnectOptions) -> PgPool {
    let pool = PgPoolOptions::new().after_connect(|conn, _| Box::pin(pg_session::set_up(conn, "")));
    pool.connect_with(options.clone()).await.unwrap()
}

/// Starts a server with the crate's tables. Returns `None` if no Postgres is installed, except in CI.
async fn server() -> Option<(Server, PgConnectOptions)> {
    let folder = tempfile::tempdir().unwrap().keep();
    let settings = private_postgres::Settings {
        data_dir: Some(folder.join("data")),
        bin_dir: std::env::var_os("TEST_PG_BIN_DIR").filter(|folder| !folder.is_empty()).map(Into::into),
        ignores_installed: false,
        download: None,
        search_path: std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect(),
        runtime_dir: None,
    };
    let server = match Server::start(&settings).await {
        Err(private_postgres::Error::NotInstalled(why)) if std::env::var_os("CI").is_none() => {
            println!("not run: no Postgres is installed {why}");
            return None;
        }
        started => started.unwrap(),
    };
    let options = PgConnectOptions::new_without_pgpass()
        .socket(server.socket_folder())
        .port(private_postgres::PORT)
        .username(private_postgres::ROLE)
        .database(private_postgres::DATABASE);
    let pool = pool(&options).await;
    let schema = cdc_capture::SCHEMA.replace("{schema_name}", "'public'").replace("{schema}", "public");
    let view = "create view cdc_export.watermarks as table public.watermarks";
    let statements = format!("create schema cdc_export; {schema} {view}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&pool).await.unwrap();
    pool.close().await;
    Some((server, options))
}
