//! A setting that is misspelt is said, not ignored.

use std::path::Path;

use crate::command::run_in;
use crate::harness::{Database, Start, reachable_folder};

const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/nothing";

/// Runs a command that needs a database, beside a `.env` with this text.
async fn beside(folder: &Path, text: &str, variables: &[(&str, &str)]) -> (i32, String) {
    std::fs::write(folder.join(".env"), text).unwrap();
    let (code, printed, said) = run_in(folder, &["status"], variables).await;
    assert_eq!(printed, "");
    (code, said)
}

#[tokio::test]
async fn a_name_in_the_file_that_is_no_setting_is_refused_with_the_one_that_is_meant() {
    let folder = reachable_folder();
    for (name, told) in [
        ("OUTPUT_DIRECTORY", "; is it `OUTPUT_DIR`?"),
        ("RETAIN_JOB", "; is it `RETAIN_JOBS`?"),
        ("output_dir", "; is it `OUTPUT_DIR`?"),
        ("OUTPUT_FOLDER", "; is it `OUTPUT_DIR`?"),
        ("FROBNICATE", ""),
        ("PGPASSWORD", ""),
    ] {
        let text = format!("DATABASE_URL={NOWHERE}\n{name}=secret\n");
        let (code, said) = beside(folder.path(), &text, &[]).await;
        assert_eq!((code, said.lines().count()), (2, 1), "{said}");
        assert!(said.starts_with(&format!("cdc-export: .env: {name} is no setting")), "{said}");
        assert!(said.contains(told) && !said.contains("secret"), "{said}");
    }
    let (code, said) = beside(folder.path(), "WORKER=3\nFROBNICATE=1\n", &[]).await;
    let told = "FROBNICATE is no setting; WORKER is no setting; is it `WORKERS`?; .env.example lists them, and what DATASETS names has to end in _AMQP_URL or _SECRET here";
    assert_eq!((code, said.trim_end()), (2, format!("cdc-export: .env: {told}").as_str()));
    // The names that docker-compose reads from the same file, and libpq's that are obeyed, are no mistakes.
    let text = format!("DATABASE_URL={NOWHERE}\nCOMPOSE_PROJECT_NAME=shop\nPGSSLMODE=disable\nSEED_ROWS=7\n");
    let (code, said) = beside(folder.path(), &text, &[]).await;
    assert!(code == 1 && said.contains("connection refused"), "{said}");
}

#[tokio::test]
async fn a_variable_that_is_nearly_a_setting_is_warned_of() {
    let database = Database::new().await;
    let service = Start::on(&database)
        .with("DATASET", "/nowhere.toml")
        .with("RETAIN_JOB", "30d")
        .with("HOSTNAME", "app")
        .with("TEST_DATABASE_URL", NOWHERE)
        // Nobody has missed this one: the setting itself is there.
        .with("OUTPUT_DIRECTORY", "/nowhere")
        .service()
        .await;
    let told: Vec<_> = service.events("setting_unknown").iter().map(|line| line["message"].clone()).collect();
    assert_eq!(
        told,
        [
            "the variable DATASET is no setting, and is ignored: is DATASETS meant, which is unset?",
            "the variable RETAIN_JOB is no setting, and is ignored: is RETAIN_JOBS meant, which is unset?"
        ]
    );
    service.stop().await;

    let folder = reachable_folder();
    // Without its database the service would begin with an empty one.
    let (code, said) = beside(folder.path(), "", &[("DATABSE_URL", NOWHERE)]).await;
    let told = "cdc-export: DATABASE_URL: unset, and DATABSE_URL is no setting: rename it, or remove it\n";
    assert_eq!((code, said.as_str()), (2, told));
    // Other programs' variables are in nobody's way.
    for (name, value) in
        [("DATABASE_USER", "shop"), ("DATABASE_URL_TEST", NOWHERE), ("DATABASE_URI", "mysql://nobody@127.0.0.1:1/x")]
    {
        let (_, said) = beside(folder.path(), "", &[(name, value)]).await;
        assert!(!said.contains("is no setting: rename it"), "{said}");
    }
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().filter(|it| it.as_ref().unwrap().file_name() != ".env").count(),
        0
    );

    let (_, said) = beside(folder.path(), "", &[("DATABASE_URL", NOWHERE), ("OUTPUT_DIRECTORY", "/secret")]).await;
    let first = said.lines().next().unwrap();
    assert_eq!(
        first,
        "cdc-export: the variable OUTPUT_DIRECTORY is no setting, and is ignored: is OUTPUT_DIR meant, which is unset?",
        "{said}"
    );
}
