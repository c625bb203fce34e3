//! Postgres's own programs, run on a test's server.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

use crate::harness::Database;

/// Returns a command for one of Postgres's programs, run by the owner of a folder.
pub(crate) async fn program(server: &PgConnectOptions, name: &str, folder: &Path) -> tokio::process::Command {
    let programs = Database::at(server.clone()).programs().await;
    let mut program = std::process::Command::new(programs.join(name));
    let owner = std::fs::metadata(folder).unwrap();
    if nix::unistd::geteuid().is_root() {
        program.uid(owner.uid()).gid(owner.gid());
    }
    program.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(password) = server.to_url_lossy().password() {
        program.env("PGPASSWORD", password);
    }
    let mut program = tokio::process::Command::from(program);
    program.kill_on_drop(true);
    program
}

pub(crate) fn connection(of: &PgConnectOptions) -> [String; 6] {
    let host = of.get_socket().map_or(of.get_host().to_owned(), |socket| socket.to_str().unwrap().to_owned());
    let [h, p, u] = ["-h", "-p", "-U"].map(str::to_owned);
    [h, host, p, of.get_port().to_string(), u, of.get_username().to_owned()]
}

pub(crate) async fn output(program: &mut tokio::process::Command) -> String {
    let done = program.output().await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}
