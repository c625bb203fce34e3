//! `pull` and `apply` of many datasets in one process: each dataset gets what it gets alone, and none stops another.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::apply::pair::rows;
use crate::catalog::{Catalog, export};
use crate::harness::{
    Database, HANG_TIMEOUT, KILLED, Service, Start, ends, far, free_port, reachable_folder, silent, stop, until,
};

/// The warning about exports that were not requested together.
const OF_NO_JOB: &str = "joins between tables hold again";

/// A source with tracked tables and their service, and a target.
pub(crate) struct Mirror {
    pub(crate) source: Database,
    pub(crate) target: Database,
    pub(crate) service: Service,
    catalog: Catalog,
    port: u16,
}

fn blocks(tables: &[&str]) -> String {
    let block = |table: &&str| format!("[[dataset]]\nname = \"{table}\"\ntable = \"sales.{table}\"\n");
    tables.iter().map(block).collect()
}

fn start(catalog: &Catalog, source: &Database, port: u16) -> Start {
    catalog.start(source).with("MANIFESTS", "on").with("PORT", port)
}

impl Mirror {
    /// Makes the tables in the schema `sales`, each with 20 rows.
    pub(crate) async fn of(tables: &[&str]) -> Mirror {
        let made = |table: &&str| {
            format!(
                "create table sales.{table} (id int primary key, name text);
                 insert into sales.{table} select g, '{table} ' || g from generate_series(1, 20) g;"
            )
        };
        Mirror::made(tables, &tables.iter().map(made).collect::<String>()).await
    }

    /// Makes the tables of the schema `sales` by these statements.
    pub(crate) async fn made(tables: &[&str], statements: &str) -> Mirror {
        Mirror::of_file(&blocks(tables), &format!("create schema sales; {statements}")).await
    }

    /// Makes the tables by these statements, for the datasets of a file.
    pub(crate) async fn of_file(file: &str, statements: &str) -> Mirror {
        Mirror::with_secret(file, statements, "no secret, since no mask").await
    }

    /// Makes the same mirror with a secret of masks.
    pub(crate) async fn with_secret(file: &str, statements: &str, secret: &str) -> Mirror {
        let (source, target) = (Database::empty().await, Database::empty().await);
        source.run(statements).await;
        let catalog = Catalog::of(file);
        ends(catalog.command(&source, &["track", "--all"]).await, 0, "");
        let port = free_port();
        let service = start(&catalog, &source, port).with("MASK_SECRET", secret).service().await;
        Mirror { source, target, service, catalog, port }
    }

    /// Starts the service again at the same address, with fewer datasets.
    async fn restarted(self, tables: &[&str]) -> Mirror {
        let catalog = Catalog::of(&blocks(tables));
        let next = start(&catalog, &self.source, self.port).sharing_output(&self.service);
        self.service.stop().await;
        Mirror { service: next.service().await, catalog, ..self }
    }

    pub(crate) fn pull(&self, into: &Path, more: &[&str]) -> Start {
        let fixed = ["pull", "--consumer", "a", "--server", &self.service.address, "--into", into.to_str().unwrap()];
        far(&[&fixed, more].concat())
    }

    pub(crate) fn apply(&self, more: &[&str]) -> Start {
        let to = self.target.url();
        far(&[&["apply", "--to", &to, "--consumer", "a", "--server", &self.service.address], more].concat())
    }

    /// Applies all that there is, which nothing is wrong with.
    pub(crate) async fn applies_all(&self, context: &str) {
        let (code, printed, said) = self.apply(&["--all-datasets"]).output().await;
        assert_eq!((code, said.as_str()), (0, ""), "{context}: {printed}");
    }

    pub(crate) async fn require_all_equal(&self, tables: &[&str]) {
        for table in tables {
            self.require_equal(table, &format!("sales.{table}")).await;
        }
    }

    pub(crate) async fn change(&self, tables: &[&str], name: &str) {
        for table in tables {
            self.source.run(&format!("update sales.{table} set name = '{name}' where id = 1")).await;
        }
    }

    /// Waits until the copy of the table has a row of this name.
    async fn arrives(&self, table: &str, name: &str) {
        let made = format!("select to_regclass('sales.{table}') is not null");
        let found = format!("select exists (select from sales.{table} where name = '{name}')");
        until("the row arrives", async || {
            self.target.one::<bool>(&made).await && self.target.one::<bool>(&found).await
        })
        .await;
    }

    async fn changes_arrive(&self, name: &str) {
        for round in 0..3 {
            let name = format!("{name} {round}");
            self.change(&["t1"], &name).await;
            self.arrives("t1", &name).await;
        }
    }

    async fn require_equal(&self, table: &str, copy: &str) {
        assert_eq!(rows(&self.target, copy).await, rows(&self.source, &format!("sales.{table}")).await, "{table}");
    }
}

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

/// The visible files of a folder with this ending.
fn files(folder: &Path, ending: &str) -> BTreeSet<String> {
    let names =
        std::fs::read_dir(folder).into_iter().flatten().map(|it| it.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with('.') && name.ends_with(ending)).collect()
}

#[tokio::test]
async fn each_dataset_is_pulled_into_a_folder_of_its_own() {
    let mirror = Mirror::of(&["t1", "t2"]).await;
    let folder = reachable_folder();
    let printed = silent(mirror.pull(folder.path(), &["--all-datasets", "--request", "delta"]).output().await);
    let own = |name: &str| folder.path().join(name);
    let expected: BTreeSet<_> = ["t1", "t2"]
        .iter()
        .map(|name| {
            format!("{}  20 rows of {name}", own(name).join(files(&own(name), ".csv").first().unwrap()).display())
        })
        .collect();
    assert_eq!(lines(&printed), expected.iter().map(String::as_str).collect());
    assert_eq!(files(folder.path(), ""), ["t1".to_owned(), "t2".to_owned()].into());

    // A folder goes on alone, and with the others.
    mirror.change(&["t1", "t2"], "alone").await;
    let (code, printed, said) = mirror.pull(&own("t1"), &["--request", "delta"]).output().await;
    assert_eq!((code, printed.lines().count(), said.as_str()), (0, 1, ""), "{printed}");
    mirror.change(&["t1"], "together").await;
    let both = ["--dataset", "t1", "--dataset", "t2", "--request", "delta", "--ack"];
    let printed = silent(mirror.pull(folder.path(), &both).output().await);
    assert_eq!((files(&own("t1"), ".csv").len(), files(&own("t2"), ".csv").len()), (3, 2), "{printed}");
    let consumers: serde_json::Value = mirror.service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    let waiting: Vec<_> =
        consumers["items"].as_array().unwrap().iter().map(|item| item["unacknowledged"].clone()).collect();
    assert_eq!(waiting, [0, 0], "{consumers}");

    // A place has the exports of all datasets, and a pulled folder those of its own.
    let (to, place, pulled) = (mirror.target.url(), mirror.service.output().to_str().unwrap(), own("t2"));
    let from = |place| ["apply", "--to", &to, "--consumer", "a", "--dataset", "t2", "--from", place];
    let (code, before, said) = far(&from(pulled.to_str().unwrap())).output().await;
    assert_eq!((code, before.lines().count(), said.as_str()), (0, 2, ""));
    let (code, printed, said) = far(&[&from(place)[..], &["--dataset", "t1"]].concat()).output().await;
    // Somebody requested one of the exports alone.
    assert!(code == 0 && said.lines().count() == 1 && said.contains(OF_NO_JOB), "{said}");
    let expected = [
        "t1: delta 1  20 rows written, 0 deleted",
        "t1: delta 2  1 rows written, 0 deleted",
        "t1: delta 3  1 rows written, 0 deleted",
    ];
    assert_eq!(lines(&printed), expected.into());
    mirror.require_all_equal(&["t1", "t2"]).await;
}

#[tokio::test]
async fn a_dataset_that_fails_is_named_and_stops_its_job_alone() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    let role = mirror.target.role().await;
    let statements = format!(
        "create schema sales; create table sales.t2 (id int primary key, name text);
         alter table sales.t2 owner to {role}"
    );
    mirror.target.run(&statements).await;
    let (code, printed, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!((code, &*printed), (1, ""), "{said}");
    let said: Vec<_> = said.lines().collect();
    assert!(said.len() == 2 && said[0].starts_with("cdc-export: t2: another_owner: "), "{said:?}");
    assert_eq!(said[1], "cdc-export: 3 of 3 datasets failed: t1, t2, t3");
    // Exports of several jobs don't stop each other.
    for table in ["t1", "t2", "t3"] {
        export(&mirror.service, "full", table, "a").await;
    }
    let (code, printed, said) = mirror.apply(&["--all-datasets", "--request", "none"]).output().await;
    let done = ["t1: full 2  20 rows written, 0 deleted", "t3: full 2  20 rows written, 0 deleted"];
    assert_eq!((code, lines(&printed)), (1, done.into()), "{said}");
    assert!(said.ends_with("cdc-export: 1 of 3 datasets failed: t2\n"), "{said}");
    mirror.target.run("drop table sales.t2").await;
    mirror.change(&["t1", "t2", "t3"], "anew").await;
    let (code, _, said) = mirror.apply(&["--all-datasets"]).output().await;
    assert_eq!((code, said.lines().count()), (0, 1), "{said}");
    mirror.require_all_equal(&["t1", "t2", "t3"]).await;

    // A folder that another process fills is left to it.
    let folder = reachable_folder();
    let alone = mirror.pull(&folder.path().join("t2"), &["--dataset", "t2"]).with("FAILPOINTS", "pull.fetched=hold");
    let held = alone.hold("pull.fetched");
    let alone = tokio::spawn(async { alone.output().await });
    held.reached().await;
    let (code, printed, said) = mirror.pull(folder.path(), &["--all-datasets"]).output().await;
    assert_eq!((code, printed.lines().count()), (1, 4), "{said}");
    assert!(said.contains("cdc-export: t2: another process fills"), "{said}");
    assert!(said.ends_with("cdc-export: 1 of 3 datasets failed: t2\n"), "{said}");
    held.release().await;
    assert_eq!(alone.await.unwrap().0, 0);
}

#[tokio::test]
async fn a_lost_output_folder_is_one_refusal_for_all_datasets() {
    let tables = ["t1", "t2", "t3"];
    let mirror = Mirror::of(&tables).await;
    mirror.applies_all("before").await;
    mirror.change(&tables, "changed").await;
    let (output, lost) = (mirror.service.output(), mirror.service.output().with_extension("lost"));
    std::fs::rename(output, &lost).unwrap();
    let (printed, said) = ends(mirror.apply(&["--all-datasets"]).output().await, 1, "");
    let refusal = "cdc-export: the service answers output_missing: the output folder or bucket is missing\n";
    assert_eq!((&*printed, &*said), ("", refusal));
    assert_eq!(mirror.source.one::<i64>("select count(*) from exports").await, 3, "those of before");
    std::fs::rename(lost, output).unwrap();
    mirror.applies_all("afterwards").await;
    mirror.require_all_equal(&tables).await;
}

/// The files that both datasets lack are lost. The message names a full export, and one job makes both.
#[tokio::test]
async fn lost_files_of_many_datasets_are_made_up_for_as_the_message_says() {
    let tables = ["t1", "t2"];
    let mirror = Mirror::of(&tables).await;
    let folder = reachable_folder();
    silent(mirror.pull(folder.path(), &["--all-datasets", "--request", "delta"]).output().await);
    mirror.change(&tables, "lost").await;
    for table in tables {
        export(&mirror.service, "delta", table, "a").await;
    }
    let names = std::fs::read_dir(mirror.service.output()).unwrap().map(|entry| entry.unwrap().path());
    names.for_each(|path| std::fs::remove_file(path).unwrap());
    let mirror = mirror.restarted(&tables).await;
    let pull = |request| mirror.pull(folder.path(), &["--all-datasets", "--request", request]);
    let (_, said) = ends(pull("delta").output().await, 1, "t1: ");
    assert_eq!(said.matches("request a full export").count(), 2, "{said}");
    let (printed, _) = ends(pull("full").output().await, 0, "going on from the full export");
    assert_eq!(printed.matches("/full_").count(), 2, "{printed}");
    let jobs = "select count(distinct job) from exports where export_type = 'full'";
    assert_eq!(mirror.source.one::<i64>(jobs).await, 1, "one job for both");
    silent(pull("delta").output().await);
}

#[tokio::test]
async fn a_second_dataset_of_a_table_fails_alone_and_can_be_left_out() {
    let second = "[[dataset]]\nname = \"t3\"\ntable = \"sales.t1\"\nmask = { name = \"null\" }\n";
    let made = "create schema sales; create table sales.t1 (id int primary key, name text);
                create table sales.t2 (id int primary key, name text); insert into sales.t1 values (1, 'a'), (2, 'b');
                insert into sales.t2 select * from sales.t1";
    let mirror = Mirror::of_file(&format!("{}{second}", blocks(&["t1", "t2"])), made).await;
    for round in ["the tables are new", "t1 has its table", "again"] {
        mirror.change(&["t1", "t2"], round).await;
        let (_, said) = ends(mirror.apply(&["--all-datasets"]).output().await, 1, "t3: another_lane: ");
        assert!(said.ends_with("cdc-export: 1 of 3 datasets failed: t3\n"), "{round}: {said}");
        assert!(!said.contains("remove") && said.lines().count() == 2, "{round}: {said}");
        mirror.require_all_equal(&["t1", "t2"]).await;
    }
    mirror.change(&["t1", "t2"], "alone").await;
    silent(mirror.apply(&["--all-datasets", "--exclude", "t3"]).output().await);
    mirror.require_all_equal(&["t1", "t2"]).await;
    let folder = reachable_folder();
    let pull = ["--all-datasets", "--request", "full", "--exclude", "t3", "--exclude", "t2"];
    silent(mirror.pull(folder.path(), &pull).output().await);
    assert_eq!(files(folder.path(), ""), ["t1".to_owned()].into());
}

#[tokio::test]
async fn datasets_come_and_go_between_rounds() {
    let mirror = Mirror::of(&["t1", "t2", "t3"]).await;
    ends(mirror.catalog.command(&mirror.source, &["untrack", "t2"]).await, 0, "");
    let warning = "cdc-export: warning: t2 is left out, because it is not ready: its changes are not captured: \
                   `cdc-export track t2`";
    let folder = reachable_folder();
    let (code, printed, said) = mirror.pull(folder.path(), &["--all-datasets", "--request", "full"]).output().await;
    assert_eq!((code, printed.lines().count(), said.trim()), (0, 2, warning));

    let (mut child, _work) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn_piped();
    mirror.arrives("t3", "t3 20").await;
    mirror.changes_arrive("t2 is left out").await;
    assert!(!mirror.target.one::<bool>("select to_regclass('sales.t2') is not null").await);
    mirror.catalog.track(&mirror.source, "t2").await;
    mirror.arrives("t2", "t2 20").await;
    let mirror = mirror.restarted(&["t1", "t2"]).await;
    mirror.changes_arrive("t3 is gone").await;
    stop(&mut child).await;
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).await.unwrap();
    let count = |text: &str| said.lines().filter(|line| line.starts_with(text)).count();
    assert_eq!(count(warning), 1, "{said}");
    // The copies of the dataset stay, and a warning says so once.
    let gone = "cdc-export: warning: t3 is left out, because it is not ready: it is no dataset any more, and its copy \
                stays as it is";
    assert_eq!(count(gone), 1, "{said}");
    let (code, _, said) = mirror.pull(folder.path(), &["--all-datasets"]).output().await;
    assert_eq!((code, said.trim()), (0, gone));
    silent(mirror.pull(folder.path(), &["--all-datasets", "--exclude", "t3"]).output().await);
    // The round that began before the restart may have asked for it.
    assert!(count("cdc-export: t3: ") <= 1 && count("cdc-export: t1: ") <= 1, "{said}");
}

/// A restore of a dump leaves the tables without their triggers.
#[tokio::test]
async fn a_copy_that_gets_older_is_a_failure() {
    let mirror = Mirror::of(&["t1", "t2"]).await;
    let folder = reachable_folder();
    let request = ["--all-datasets", "--request", "delta"];
    mirror.applies_all("all").await;
    silent(mirror.pull(folder.path(), &request).output().await);

    ends(mirror.catalog.command(&mirror.source, &["untrack", "t2"]).await, 0, "");
    mirror.change(&["t1"], "x").await;
    let stale = "cdc-export: 1 of 2 datasets failed: t2\n";
    for call in [mirror.apply(&["--all-datasets"]), mirror.pull(folder.path(), &request)] {
        let (_, said) = ends(call.output().await, 1, "warning: t2 is left out, because it is not ready: ");
        assert!(said.ends_with(stale), "{said}");
    }
    mirror.require_equal("t1", "sales.t1").await;
    // A dataset without a copy, and one that is excluded.
    let new = reachable_folder();
    ends(mirror.pull(new.path(), &request).output().await, 0, "warning: t2 is left out");
    silent(mirror.apply(&["--all-datasets", "--exclude", "t2"]).output().await);

    ends(mirror.catalog.command(&mirror.source, &["untrack", "t1"]).await, 0, "");
    let new = reachable_folder();
    for call in [
        mirror.apply(&["--all-datasets"]),
        mirror.apply(&["--all-datasets", "--adopt"]),
        mirror.pull(folder.path(), &request),
        mirror.pull(folder.path(), &["--all-datasets", "--adopt"]),
        mirror.pull(new.path(), &["--all-datasets"]),
    ] {
        let (printed, said) = ends(call.output().await, 1, "warning: t1 is left out");
        assert!(printed.is_empty() && said.lines().count() == 3, "{printed}{said}");
        assert!(said.ends_with("cdc-export: no dataset is ready: nothing was read\n"), "{said}");
    }

    // Rounds go on.
    let (mut child, _work) = mirror.apply(&["--all-datasets", "--every", "100ms"]).spawn_piped();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(HANG_TIMEOUT, said.next_line()).await.expect("a line");
        line.unwrap().unwrap()
    };
    while next().await != "cdc-export: no dataset is ready: nothing was read" {}
    mirror.catalog.track(&mirror.source, "t1").await;
    while next().await != stale.trim() {}
    mirror.catalog.track(&mirror.source, "t2").await;
    mirror.change(&["t1", "t2"], "tracked").await;
    mirror.arrives("t1", "tracked").await;
    mirror.arrives("t2", "tracked").await;
    stop(&mut child).await;

    // A dataset that is gone has failed only if all copies are to go on from another database.
    let mirror = mirror.restarted(&["t1"]).await;
    let gone = "warning: t2 is left out, because it is not ready: it is no dataset any more";
    ends(mirror.apply(&["--all-datasets"]).output().await, 0, gone);
    let (_, said) = ends(mirror.apply(&["--all-datasets", "--adopt"]).output().await, 1, gone);
    assert!(said.ends_with(stale), "{said}");
}

#[tokio::test]
async fn all_copies_go_on_from_a_restored_source_by_one_command() {
    let tables = ["t1", "t2", "t3"];
    let former = Mirror::of(&tables).await;
    former.applies_all("the former source").await;
    let folder = reachable_folder();
    let request = ["--all-datasets", "--request", "delta"];
    silent(former.pull(folder.path(), &request).output().await);
    // The same tables in another database, whose exports have lower numbers.
    let mirror = Mirror { target: former.target, ..Mirror::of(&tables).await };
    mirror.change(&tables, "restored").await;
    ends(mirror.apply(&["--all-datasets"]).output().await, 1, "t3: another_source: ");
    let (_, said) = ends(mirror.pull(folder.path(), &request).output().await, 1, "t3: another_source: ");
    assert!(said.contains("--adopt") && !said.contains("remove"), "{said}");

    ends(mirror.apply(&["--all-datasets", "--adopt"]).output().await, 0, "t3: ");
    mirror.require_all_equal(&tables).await;
    mirror.change(&tables, "afterwards").await;
    mirror.applies_all("the restored source").await;
    mirror.require_all_equal(&tables).await;

    let adopt = ["--all-datasets", "--adopt"];
    let jobs = mirror.source.one::<i64>("select count(*) from cdc_export.jobs").await;
    ends(mirror.pull(folder.path(), &adopt).output().await, 1, "t3: --adopt needs an empty folder, not ");
    assert_eq!(mirror.source.one::<i64>("select count(*) from cdc_export.jobs").await, jobs);
    let mut remove = std::process::Command::new("find");
    remove.arg(folder.path()).args(["-type", "f", "-not", "-name", ".*", "-delete"]);
    assert!(remove.status().unwrap().success());
    let (printed, _) = ends(mirror.pull(folder.path(), &adopt).output().await, 0, "t3: ");
    assert_eq!(printed.matches("/full_").count(), 3, "{printed}");
    silent(mirror.pull(folder.path(), &request).output().await);
}

#[tokio::test]
async fn a_lane_that_was_forgotten_goes_on_by_the_full_export_of_its_job() {
    let mirror = Mirror::of(&["t1", "t2"]).await;
    let folder = reachable_folder();
    let pull = || mirror.pull(folder.path(), &["--all-datasets", "--request", "delta"]);
    silent(pull().output().await);
    // As after a restore: the service doesn't know the export that the folder has, and numbers its exports anew.
    let forget = "delete from cdc_export.exports where dataset = 't1';
                  update cdc_export.lanes set last_number = 0 where dataset = 't1';
                  truncate sales.t1; insert into sales.t1 values (1, 'new')";
    mirror.source.run(forget).await;
    let (printed, said) = ends(pull().output().await, 0, "");
    assert!(said.starts_with("cdc-export: t1: ") && said.contains("going on from the full export"), "{printed}{said}");
    assert!(printed.contains("t1"), "{printed}{said}");
    let fulls = "select count(*) from exports where dataset = 't1' and export_type = 'full'";
    assert_eq!(mirror.source.one::<i64>(fulls).await, 1, "the one of the job");
}

/// Two sources have the same tables, datasets and consumer.
#[tokio::test]
async fn two_sources_are_mirrored_into_schemas_of_one_database() {
    let tables = ["t1", "t2"];
    let first = Mirror::of(&tables).await;
    let target = first.target.url();
    let second = Mirror::of(&tables).await;
    let apply = |mirror: &Mirror, more: &[&str]| {
        let fixed = ["apply", "--to", &target, "--consumer", "a", "--server", &mirror.service.address];
        far(&[&fixed, more].concat())
    };
    for round in 0..2 {
        for (mirror, schema) in [(&first, "north"), (&second, "Süd.1")] {
            mirror.change(&tables, &format!("{schema} {round}")).await;
            silent(apply(mirror, &["--all-datasets", "--target-schema", schema]).output().await);
            for table in tables {
                let copy = rows(&first.target, &format!("\"{schema}\".{table}")).await;
                assert_eq!(copy, rows(&mirror.source, &format!("sales.{table}")).await, "{schema} {table} {round}");
            }
        }
    }
    // One dataset goes on in its schema, and needs a name of one of both.
    first.change(&["t1"], "alone").await;
    silent(apply(&first, &["--dataset", "t1", "--target-schema", "north"]).output().await);
    assert_eq!(rows(&first.target, "north.t1").await, rows(&first.source, "sales.t1").await);
    ends(apply(&first, &["--dataset", "t1"]).output().await, 1, "or --target-schema its schema");
    ends(apply(&first, &["--dataset", "t1", "--target-schema", "cdc_export"]).output().await, 1, "table_name: ");
}

#[tokio::test]
async fn options_that_do_not_fit_several_datasets_are_refused() {
    let server = ["--consumer", "a", "--server", "http://127.0.0.1:1"];
    let apply = ["apply", "--to", "postgres://nobody@127.0.0.1:1/none"];
    let apply_from = [&apply[..], &["--consumer", "a", "--from", "/nowhere"]].concat();
    let apply = [&apply[..], &server].concat();
    let pull = [&["pull", "--into", "/nowhere"], &server[..]].concat();
    let two = ["--dataset", "t1", "--dataset", "t2"];
    for (call, more, why) in [
        (&apply, &[&two[..], &["--table", "t"]].concat()[..], "--table: it needs exactly one --dataset"),
        (&apply, &["--all-datasets", "--table", "t"], "--table: it needs exactly one --dataset"),
        (&apply_from, &["--all-datasets"], "--all-datasets"),
        (&pull, &["--all-datasets", "--dataset", "t1"], "cannot be used with"),
        (&pull, &["--dataset", "t1", "--exclude", "t2"], "cannot be used with"),
        (&pull, &["--exclude", "t2"], "--all-datasets"),
        (&apply_from, &["--dataset", "t1", "--adopt"], "cannot be used with"),
        (&apply_from, &["--dataset", "t1", "--table", "a.b", "--target-schema", "c"], "cannot be used with"),
        (&apply_from, &["--dataset", "t1", "--target-schema", ""], "a value is required"),
        (&pull, &["--adopt", "--every", "1s"], "cannot be used with"),
        (&pull, &["--all-datasets", "--jobs", "0"], "1..=16"),
        (&pull, &["--all-datasets", "--jobs", "17"], "1..=16"),
    ] {
        let (code, printed, said) = far(&[call, more].concat()).output().await;
        assert!((code, printed.as_str()) == (2, "") && said.contains(why), "{more:?}: {code} {said}");
    }
}

/// Some exports are loaded, some are half written, and some not begun.
#[tokio::test]
async fn killed_in_the_middle_of_many_nothing_is_lost_and_nothing_comes_twice() {
    let tables = ["t1", "t2", "t3", "t4", "t5"];
    let mirror = Mirror::of(&tables).await;
    for table in tables {
        for kind in ["full", "delta"] {
            mirror.change(&[table], kind).await;
            export(&mirror.service, kind, table, "a").await;
        }
    }
    let many = ["--all-datasets", "--jobs", "3"];
    let folder = reachable_folder();
    let mut printed_before = 0;
    for fault in ["pull.fetched=kill@2", "pull.named=kill@3", "pull.remembered=kill@2"] {
        let (code, printed, _) = mirror.pull(folder.path(), &many).with("FAILPOINTS", fault).output().await;
        assert_eq!(code, KILLED, "{fault}");
        printed_before += printed.lines().count();
    }
    let (code, printed, said) = mirror.pull(folder.path(), &many).output().await;
    assert_eq!((code, said.as_str()), (0, ""));
    assert!(printed_before > 0 && printed.lines().count() > 0, "{printed_before} {printed}");
    for table in tables {
        let own = folder.path().join(table);
        assert_eq!((files(&own, ".csv").len(), files(&own, ".json").len()), (2, 2), "{table}");
        ends(far(&["verify", own.to_str().unwrap()]).output().await, 0, "");
    }
    assert_eq!(silent(mirror.pull(folder.path(), &many).output().await), "");
    for fault in ["apply.staged=kill@2", "apply.applied=kill@3", "apply.committed=kill@2"] {
        let (code, ..) = mirror.apply(&many).with("FAILPOINTS", fault).output().await;
        assert_eq!(code, KILLED, "{fault}");
    }
    let (code, _, said) = mirror.apply(&many).output().await;
    assert!(code == 0 && said.lines().all(|line| line.contains(OF_NO_JOB)), "{said}");
    mirror.require_all_equal(&tables).await;
    assert_eq!(ends(mirror.apply(&["--all-datasets", "--request", "none"]).output().await, 0, "").0, "");
}

#[tokio::test]
async fn all_tables_are_applied_over_as_many_connections_as_jobs() {
    let tables = ["t1", "t2", "t3", "t4", "t5", "t6"];
    let mirror = Mirror::of(&tables).await;
    let many = ["--all-datasets", "--jobs", "2"];
    let (mut child, _work) = mirror.apply(&[&many[..], &["--every", "100ms"]].concat()).spawn_piped();
    let sessions = async || {
        let sessions = "select array_agg(pid) from pg_stat_activity
                        where datname = current_database() and application_name like 'cdc-export%'";
        mirror.target.one::<Vec<i32>>(sessions).await
    };
    let mut results = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = tokio::time::timeout(HANG_TIMEOUT, results.next_line()).await.expect("the next export is applied");
        line.unwrap().unwrap()
    };
    for _ in tables {
        next().await;
    }
    let mut seen: BTreeSet<i32> = sessions().await.into_iter().collect();
    for round in 0..3 {
        mirror.change(&tables, &format!("round {round}")).await;
        for _ in tables {
            next().await;
        }
        seen.extend(sessions().await);
    }
    assert!((1..=3).contains(&seen.len()), "two jobs, and one that names the holders of locks: {seen:?}");
    stop(&mut child).await;
    mirror.require_all_equal(&tables).await;
}
