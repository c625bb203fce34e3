//! Tables whose rows go by a flag, by a time, and for good.

use crate::catalog::{Catalog, export};
use crate::harness::{Csv, Database, Service};

/// Tables whose rows go by a flag, by a time, and for good, each with five rows, the fifth deleted and changed last.
pub(crate) const TABLES: &str = "
    create table flag (id int primary key, n int not null default 0, at timestamptz not null, gone bool not null default false);
    create table stamp (id int primary key, n int not null default 0, at timestamptz not null, gone timestamptz);
    create table hard (id int primary key, n int not null default 0, at timestamptz not null);
    insert into flag select id, 0, timestamptz '2026-01-01' + id * interval '1 day', id = 5 from generate_series(1, 5) id;
    insert into stamp select id, n, at, case when gone then at end from flag;
    insert into hard select id, n, at from flag where not gone";

pub(crate) async fn begin() -> (Database, Catalog, Service) {
    let database = Database::empty_with(TABLES).await;
    let of = |name: &str, deleted: &str| {
        format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\nupdated_at = \"at\"\n{deleted}\n")
    };
    let soft = "deleted = \"gone\"";
    let catalog = Catalog::of(&(of("flag", soft) + &of("stamp", soft) + &of("hard", "")));
    let service = catalog.serving(&database, &["flag", "stamp", "hard"]).await;
    (database, catalog, service)
}

/// Returns the rows of a delta, sorted: operation and key of each.
pub(crate) async fn delta(service: &Service, dataset: &str, consumer: &str) -> Vec<String> {
    let file = Csv::read(&service.path(&export(service, "delta", dataset, consumer).await));
    let mut rows: Vec<_> = file.rows.iter().map(|row| format!("{} {}", row[0], row[1])).collect();
    rows.sort();
    rows
}

pub(crate) async fn set_watermark(database: &Database, dataset: &str, consumer: &str, time: &str) {
    let statements = format!(
        "update watermarks set last_exported_at = '{time}' where consumer_id = '{consumer}' and dataset = '{dataset}'"
    );
    database.run(&statements).await;
}
