//! A source, a target and the `apply` between them.

use tokio::task::JoinHandle;

use crate::catalog::Catalog;
use crate::harness::{Database, Hold, Service, Start, ends, far, silent};

/// A source with a service and the dataset `t`, and a target.
pub(crate) struct Pair {
    pub(crate) source: Database,
    pub(crate) target: Database,
    pub(crate) catalog: Catalog,
    pub(crate) service: Service,
}

impl Pair {
    /// Makes a pair. These statements make and fill the source's table `t`.
    pub(crate) async fn of(table: &str) -> Pair {
        Pair::started(table, |start| start).await
    }

    pub(crate) async fn started(table: &str, with: impl FnOnce(Start) -> Start) -> Pair {
        Pair::with_options(table, "", with).await
    }

    /// Makes the same pair with options of the dataset.
    pub(crate) async fn with_options(table: &str, options: &str, with: impl FnOnce(Start) -> Start) -> Pair {
        let (source, target) = (Database::new_with(table).await, Database::empty().await);
        let catalog = Catalog::of(&format!("[[dataset]]\nname = \"t\"\ntable = \"t\"\n{options}"));
        if !options.contains("\"none\"") {
            catalog.track(&source, "t").await;
        }
        let service = with(catalog.start(&source)).service().await;
        Pair { source, target, catalog, service }
    }

    pub(crate) fn apply(&self, more: &[&str]) -> Start {
        self.apply_to(&self.target.url(), &[&["--server", &self.service.address], more].concat())
    }

    pub(crate) fn apply_to(&self, to: &str, more: &[&str]) -> Start {
        far(&[&["apply", "--to", to, "--consumer", "a", "--dataset", "t"], more].concat())
    }

    /// Makes a call that reads the manifests of the service's folder.
    pub(crate) fn apply_from(&self, more: &[&str]) -> Start {
        let place = ["--from", self.service.output().to_str().unwrap()];
        self.apply_to(&self.target.url(), &[&place, more].concat())
    }

    /// Starts a call, and waits until it is held at a failpoint.
    pub(crate) async fn held_at(&self, failpoint: &str, more: &[&str]) -> (Hold, JoinHandle<(i32, String, String)>) {
        let call = self.apply(more).with("FAILPOINTS", format!("{failpoint}=hold"));
        let held = call.hold(failpoint);
        let call = tokio::spawn(call.output());
        held.reached().await;
        (held, call)
    }

    /// Runs a call that must succeed silently. Returns the lines that it printed, without the dataset in each.
    pub(crate) async fn applied(&self, more: &[&str]) -> Vec<String> {
        let printed = silent(self.apply(more).output().await);
        printed.lines().map(|line| line.strip_prefix("t: ").expect(line).to_owned()).collect()
    }

    /// Runs a call that asks for a full export, says why, and then goes on.
    pub(crate) async fn healed(&self, why: &str) {
        let (_, said) = ends(self.apply(&[]).output().await, 0, "asking for a full export");
        assert!(said.contains(why), "{said}, not {why}");
    }

    pub(crate) async fn refused(&self, more: &[&str], code: &str) -> String {
        ends(self.apply(more).output().await, 1, code).1
    }

    pub(crate) async fn require_equal(&self, context: &str) {
        let (left, right) = (rows(&self.source, "t").await, rows(&self.target, "public.t").await);
        assert_eq!(right, left, "{context}");
    }
}

/// Returns all rows of a table, as texts.
pub(crate) async fn rows(database: &Database, table: &str) -> Vec<String> {
    let texts = format!("select t::text from {table} t order by 1");
    database.all(&texts).await
}
