//! A catalog for a test, exports of its datasets, and a consumer that keeps a copy by them.

use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Csv, Database, Service, Start, ends};

/// A catalog in a folder of its own.
pub(crate) struct Catalog(TempDir);

impl Catalog {
    pub(crate) fn of(text: &str) -> Catalog {
        let catalog = Catalog(tempfile::tempdir().unwrap());
        catalog.write(text);
        catalog
    }

    pub(crate) fn of_tables(tables: &[&str]) -> Catalog {
        let block = |name: &&str| format!("[[dataset]]\nname = \"{name}\"\ntable = \"{name}\"\n");
        Catalog::of(&tables.iter().map(block).collect::<String>())
    }

    /// Makes a catalog of the datasets `t0`, `t1` and so on, each tracked with its own catalog. A process looks at
    /// every dataset of its catalog, so with one catalog for all the work would grow with their square.
    pub(crate) async fn tracked(database: &Database, blocks: &[String]) -> Catalog {
        for (at, block) in blocks.iter().enumerate() {
            Catalog::of(block).track(database, &format!("t{at}")).await;
        }
        Catalog::of(&blocks.concat())
    }

    pub(crate) fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("datasets.toml")
    }

    pub(crate) fn start(&self, database: &Database) -> Start {
        Start::on(database).with("DATASETS", self.path().display())
    }

    pub(crate) async fn track(&self, database: &Database, dataset: &str) {
        ends(self.command(database, &["track", dataset]).await, 0, "");
    }

    /// A service that has these datasets, tracked.
    pub(crate) async fn serving(&self, database: &Database, datasets: &[&str]) -> Service {
        for dataset in datasets {
            self.track(database, dataset).await;
        }
        self.start(database).service().await
    }

    pub(crate) async fn command(&self, database: &Database, arguments: &[&str]) -> (i32, String, String) {
        self.start(database).arguments(arguments).output().await
    }
}

pub(crate) async fn submit(service: &Service, path: &str, consumer: Option<&str>, body: Value) -> String {
    let answer = post(service, path, consumer, &body).await;
    let (status, answer) = (answer.status(), answer.json::<Value>().await.unwrap());
    assert_eq!(status, 202, "{body} {answer}");
    answer["jobId"].as_str().unwrap().to_owned()
}

pub(crate) async fn ended(service: &Service, path: &str, consumer: Option<&str>, body: Value) -> Value {
    service.ended(&submit(service, path, consumer, body).await).await
}

pub(crate) async fn post(service: &Service, path: &str, consumer: Option<&str>, body: &Value) -> reqwest::Response {
    let consumer = consumer.map(|consumer| ("X-Consumer-ID", consumer));
    service.post(path, consumer.as_slice(), body).await
}

pub(crate) async fn export(service: &Service, export_type: &str, dataset: &str, consumer: &str) -> Value {
    let job = ended(service, &format!("/exports/{export_type}"), Some(consumer), json!({ "dataset": dataset })).await;
    assert_eq!(job["status"], "completed", "{job}");
    job
}

/// A consumer that loads its files with COPY into a table of its own, and applies deltas by the key.
pub(crate) struct Replica<'d> {
    pub(crate) database: &'d Database,
    /// The copied table, and what of it a consumer shall have.
    pub(crate) source: &'d str,
    pub(crate) key: &'d [&'d str],
}

impl Replica<'_> {
    /// Loads a full export into the empty replica, whose columns are those of the file.
    pub(crate) async fn begin(&self, service: &Service, job: &Value) {
        let statements = format!("drop table if exists replica; create table replica as {} with no data", self.source);
        self.database.run(&statements).await;
        assert!(!self.load(service, job, "replica").await.starts_with("\"operation\""));
    }

    pub(crate) async fn apply(&self, service: &Service, job: &Value) {
        let changes = "drop table if exists stage; create table stage (like replica);
                       alter table stage add column operation text";
        self.database.run(changes).await;
        let columns = self.load(service, job, "stage").await;
        let columns = columns.strip_prefix("\"operation\",").unwrap();
        let same = self.key.iter().map(|key| format!("r.\"{key}\" = s.\"{key}\"")).collect::<Vec<_>>().join(" and ");
        let statements = format!(
            "delete from replica r using stage s where {same};
             insert into replica ({columns}) select {columns} from stage where operation <> 'DELETE'"
        );
        self.database.run(&statements).await;
    }

    /// Requires that the replica equals the source, row by row as texts.
    pub(crate) async fn require_equal(&self) {
        let differing = format!(
            "select count(*) from (
               (select s::text from ({0}) s except all select r::text from replica r)
               union all (select r::text from replica r except all select s::text from ({0}) s)) d",
            self.source
        );
        assert_eq!(self.database.one::<i64>(&differing).await, 0, "rows differ");
    }

    async fn load(&self, service: &Service, job: &Value, table: &str) -> String {
        let path = service.path(job);
        let header = Csv::read(&path).header;
        let columns: Vec<_> = header.iter().map(|name| format!("\"{}\"", name.replace('"', "\"\""))).collect();
        let columns = columns.join(",");
        let mut conn = self.database.pool.acquire().await.unwrap();
        let statement = format!("copy {table} ({columns}) from stdin (format csv, header)");
        let mut copy = conn.copy_in_raw(&statement).await.unwrap();
        copy.send(std::fs::read(path).unwrap()).await.unwrap();
        copy.finish().await.unwrap();
        columns
    }
}
