//! Creates the database cluster in the data folder, completely or not at all. Starts no server.

use crate::account::run;
use crate::binaries::Binaries;
use crate::data_dir::DataDir;
use crate::{DATABASE, Error, ROLE};

/// Creates the cluster if there is none. Runs `initdb` and creates the database in a scratch folder, and renames the
/// folder at the end.
///
/// The server asks for no password, because only its own user can reach its socket. It accepts no other connection.
pub(super) async fn ensure(data_dir: &DataDir, binaries: &Binaries) -> Result<(), Error> {
    let data = data_dir.cluster();
    if data.exists() {
        return Ok(());
    }
    tracing::info!(event = "postgres_initialising", folder = %data.display(), major = binaries.major, "creating a Postgres data folder");
    let scratch = data_dir.make_scratch()?;
    let mut initdb = data_dir.account.command(binaries.program("initdb"), scratch.path());
    initdb
        // The messages are searched for the error, so they must not be translated.
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .args(["--auth-local=trust", "--auth-host=reject", "--data-checksums"])
        .args(["--encoding=UTF8", "--locale=C", "--username", ROLE])
        .arg("--pgdata")
        .arg(scratch.path());
    run(initdb, b"").await?;
    let mut single = data_dir.account.command(binaries.program("postgres"), scratch.path());
    single.env("LC_ALL", "C").args(["--single", "-D"]).arg(scratch.path()).args([
        "-c",
        "exit_on_error=on",
        "-c",
        "log_destination=stderr",
        "-c",
        "logging_collector=off",
        "postgres",
    ]);
    run(single, format!("create database {DATABASE}\n").as_bytes()).await?;
    data_dir.place(&scratch, &data)
}
