//! A name in `.env` that is no setting is refused, not ignored.

use std::path::Path;

use crate::command::run_in;
use crate::harness::reachable_folder;

const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nothing";

/// Runs a command that needs a database, beside a `.env` with this text.
async fn beside(folder: &Path, text: &str, variables: &[(&str, &str)]) -> (i32, String) {
    std::fs::write(folder.join(".env"), text).unwrap();
    let (code, printed, said) = run_in(folder, &["status"], variables).await;
    assert_eq!(printed, "");
    (code, said)
}

#[tokio::test]
async fn a_name_in_the_file_that_is_no_setting_is_refused() {
    let folder = reachable_folder();
    for name in ["OUTPUT_DIRECTORY", "RETAIN_JOB", "output_dir", "FROBNICATE", "PGPASSWORD"] {
        let text = format!("DATABASE_URL={NOWHERE}\n{name}=secret\n");
        let (code, said) = beside(folder.path(), &text, &[]).await;
        assert_eq!((code, said.lines().count()), (2, 1), "{said}");
        assert!(said.starts_with(&format!("cdc-export: .env: {name} is no setting")), "{said}");
        assert!(!said.contains("secret"), "{said}");
    }
    let (code, said) = beside(folder.path(), "WORKER=3\nFROBNICATE=1\n", &[]).await;
    let told = "FROBNICATE is no setting; WORKER is no setting; .env.example lists them, and what DATASETS names has to end in _AMQP_URL or _SECRET here";
    assert_eq!((code, said.trim_end()), (2, format!("cdc-export: .env: {told}").as_str()));
    // The names that docker-compose reads from the same file, and libpq's that are obeyed, are no mistakes.
    let text = format!("DATABASE_URL={NOWHERE}\nCOMPOSE_PROJECT_NAME=shop\nPGSSLMODE=disable\nSEED_ROWS=7\n");
    let (code, said) = beside(folder.path(), &text, &[]).await;
    assert!(code == 1 && said.contains("connection refused"), "{said}");
}
