//! A cluster that a test may copy and put back.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use crate::harness::{
    Database, connect_options, embedded_settings, embedded_settings_with_cluster, eventually, reachable_folder,
};
use crate::programs::{connection, output, program};

/// A cluster whose data directory a test may copy and put back.
pub(crate) struct Cluster {
    pub(crate) home: TempDir,
    pub(crate) server: Option<private_postgres::Server>,
}

impl Cluster {
    pub(crate) async fn new() -> Cluster {
        let mut cluster = Cluster { home: reachable_folder(), server: None };
        embedded_settings_with_cluster(&cluster.home.path().join("data")).await;
        cluster.start().await;
        cluster
    }

    /// Makes a cluster with these settings, some of which are read only at the start.
    pub(crate) async fn with(settings: &[&str]) -> Cluster {
        let mut cluster = Cluster::new().await;
        for setting in settings {
            cluster.database().run(&format!("alter system set {setting}")).await;
        }
        cluster.stop().await;
        cluster.start().await;
        cluster
    }

    pub(crate) async fn start(&mut self) {
        let settings = embedded_settings(&self.home.path().join("data"));
        self.server = Some(private_postgres::Server::start(&settings).await.unwrap());
    }

    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    pub(crate) fn database(&self) -> Database {
        Database::at(connect_options(self.server.as_ref().unwrap().socket_folder()))
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.home.path().join("data/postgres")
    }

    /// A place for a copy of the data.
    pub(crate) fn copy(&self) -> PathBuf {
        self.home.path().join("copy")
    }

    /// Copies the data of the server while it is stopped.
    pub(crate) async fn copy_cold(&mut self) {
        self.stop().await;
        copied(&self.data(), &self.copy());
        self.start().await;
    }

    /// Copies the data of the server while it runs, with the WAL that a recovery needs.
    pub(crate) async fn copy_hot(&self) {
        std::fs::create_dir(self.copy()).unwrap();
        let owner = std::fs::metadata(self.data()).unwrap();
        std::os::unix::fs::chown(self.copy(), Some(owner.uid()), Some(owner.gid())).unwrap();
        std::fs::set_permissions(self.copy(), PermissionsExt::from_mode(0o700)).unwrap();
        let options = connect_options(self.server.as_ref().unwrap().socket_folder());
        let mut backup = program(&options, "pg_basebackup", &self.copy()).await;
        output(backup.args(connection(&options)).args(["-X", "fetch", "-c", "fast", "-D"]).arg(self.copy())).await;
    }

    /// Stops the server and starts it from the copy.
    pub(crate) async fn put_back(&mut self) {
        self.stop().await;
        self.take_copy();
        self.start().await;
    }

    pub(crate) fn take_copy(&self) {
        std::fs::remove_dir_all(self.data()).unwrap();
        copied(&self.copy(), &self.data());
    }

    /// Has the copy recover as a server of its own timeline does when it starts: to the end of the WAL that it has.
    pub(crate) fn recovers(&self, signal: &str) {
        let owner = std::fs::metadata(self.data()).unwrap();
        let file = self.data().join(signal);
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        let settings = self.data().join("postgresql.auto.conf");
        let text = std::fs::read_to_string(&settings).unwrap();
        std::fs::write(&settings, format!("{text}restore_command = 'false'\n")).unwrap();
    }

    /// Waits until the server takes writes.
    pub(crate) async fn promoted(&self) {
        let database = self.database();
        eventually("it is promoted", || async {
            let mut conn = PgConnection::connect_with(&database.options).await.ok()?;
            let recovers: bool = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut conn).await.ok()?;
            (!recovers).then_some(())
        })
        .await;
    }
}

pub(crate) fn copied(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

pub(crate) async fn timeline(database: &Database) -> String {
    database.one("select left(pg_walfile_name(pg_current_wal_lsn()), 8)").await
}
