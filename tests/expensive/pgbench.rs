//! pgbench, against a test's database.

use tokio::process::Command;

use crate::harness::Database;

/// Runs pgbench against a database.
pub(crate) async fn pgbench(database: &Database, arguments: &[&str]) {
    // Without the parameters that are our driver's own.
    let mut url = reqwest::Url::parse(&database.url()).unwrap();
    let host = url.query_pairs().find(|(name, _)| name == "host").map(|(_, host)| host.into_owned());
    url.set_query(host.map(|host| format!("host={host}")).as_deref());
    let program = database.programs().await.join("pgbench");
    let output = Command::new(program).args(arguments).arg(url.as_str()).output().await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
