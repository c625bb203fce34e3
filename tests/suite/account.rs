//! The users of a machine: the one that runs the private server, the one who starts the service, and others who may
//! write to its folders.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use nix::unistd::geteuid;
use private_postgres::Server;

use crate::harness::{Start, embedded_settings, embedded_settings_with_cluster, reachable_folder, serving_users};

const SECRET: &str = "for-root-alone";

#[tokio::test]
async fn the_server_does_not_have_roots_environment() {
    let folder = reachable_folder();
    let data = folder.path().join("data");
    embedded_settings_with_cluster(&data).await;
    let start = Start::plain().with("DATA_DIR", data.display()).with("SEED_ROWS", "1").with("NOTED_SECRET", SECRET);
    let _service = start.service().await;
    let pid = fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    let environment = fs::read(format!("/proc/{}/environ", pid.lines().next().unwrap())).unwrap();
    let has_secret = String::from_utf8_lossy(&environment).contains(SECRET);
    // An ordinary user's server is himself.
    assert!(!has_secret || !geteuid().is_root());
}

#[tokio::test]
async fn a_download_goes_on_in_no_other_file_than_its_own() {
    let (_, service) = serving_users(10).await;
    let (job, _) = service.export("full", "a").await;
    let (id, whole) = (job["jobId"].as_str().unwrap(), service.path(&job));
    let name = whole.file_name().unwrap().to_str().unwrap();
    let folder = reachable_folder();
    let (victim, part) = (folder.path().join("victim"), folder.path().join(format!(".{name}.{id}.part")));
    let here = folder.path().to_str().unwrap();
    let refused = async |what: &str| {
        let arguments = ["download", id, "--output", here, "--server", &service.address];
        let (code, _, said) = Start::plain().arguments(&arguments).output().await;
        assert_eq!((code, said.lines().count()), (1, 1), "{what}: {said}");
        assert!(said.contains(&format!("{name}.{id}.part")), "{what}: {said}");
        assert_eq!(fs::read_to_string(&victim).unwrap(), SECRET, "{what}");
        assert!(!folder.path().join(name).exists(), "{what}");
        fs::remove_file(&part).unwrap();
    };
    fs::write(&victim, SECRET).unwrap();
    symlink(&victim, &part).unwrap();
    refused("a link").await;
    fs::hard_link(&victim, &part).unwrap();
    refused("a second name").await;
    assert!(Command::new("mkfifo").arg(&part).status().unwrap().success());
    refused("a pipe").await;
    if geteuid().is_root() {
        fs::write(&part, "id").unwrap();
        chown(&part, Some(54_321), Some(54_321)).unwrap();
        refused("another user's file").await;
    }
}

#[tokio::test]
async fn root_keeps_its_data_where_nobody_else_can_exchange_it() {
    // An ordinary user is himself wherever the data is.
    if !geteuid().is_root() {
        return;
    }
    let made = |mode: u32, owner: u32| {
        let folder = reachable_folder();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        chown(folder.path(), Some(owner), Some(owner)).unwrap();
        folder
    };
    let refused = async |data: &Path, what: &str| match Server::start(&embedded_settings(data)).await {
        Ok(_) => panic!("{what}"),
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("DATA_DIR") && said.lines().count() == 1, "{what}: {said}");
        }
    };
    let anothers = made(0o755, 54_321);
    refused(anothers.path(), "another user's folder").await;
    refused(&anothers.path().join("data"), "below another user's folder").await;
    fs::create_dir(anothers.path().join("of-root")).unwrap();
    refused(&anothers.path().join("of-root/data"), "further below").await;
    let open = made(0o777, 0);
    refused(&open.path().join("data"), "below a folder that everybody may write to").await;
    let sticky = made(0o1777, 0);
    refused(&sticky.path().join("data"), "whose owner may rename it").await;

    let folder = made(0o755, 0);
    let (link, inner) = (folder.path().join("link"), folder.path().join("of-root"));
    fs::create_dir(&inner).unwrap();
    symlink(&inner, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(54_321), Some(54_321)).unwrap();
    refused(&link, "another user's link").await;
    refused(&link.join("data"), "below another user's link").await;
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 0);
    let roots = folder.path().join("roots");
    symlink(&link, &roots).unwrap();
    refused(&roots, "root's link to another user's").await;

    let chosen = sticky.path().join("postgres");
    fs::create_dir(&chosen).unwrap();
    chown(&chosen, Some(54_321), Some(54_321)).unwrap();
    refused(sticky.path(), "whoever makes the inner folder isn't lent").await;
    assert_eq!(fs::read_dir(&chosen).unwrap().count(), 0);
}

#[tokio::test]
async fn a_name_that_no_header_takes_is_no_exports_name() {
    let (database, service) = serving_users(10).await;
    let (job, _) = service.export("full", "a").await;
    for name in ["a\nb.csv", "a\"b.csv", "a\u{e9}b.csv"] {
        let path = service.path(&service.job(job["jobId"].as_str().unwrap()).await);
        fs::rename(&path, path.with_file_name(name)).unwrap();
        database.run(&format!("update cdc_export.exports set output_filename = '{name}'")).await;
        let id = job["jobId"].as_str().unwrap();
        assert_eq!(service.call("GET", &format!("/exports/{id}/download"), &[]).await.status(), 410, "{name:?}");
    }
}

#[tokio::test]
async fn settings_are_read_from_no_file_above() {
    let folder = reachable_folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
        command.env_clear().env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
        let output = command.args(["keys", "list"]).current_dir(&inner).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    // A `.env` that is read stops the start with 2.
    fs::write(folder.path().join(".env"), "PORT=none\n").unwrap();
    let (code, said) = run();
    assert_eq!(code, 1, "a folder above: {said}");
    let file = inner.join(".env");
    fs::write(&file, "PORT=none\n").unwrap();
    let (code, said) = run();
    assert!(code == 2 && said.contains("PORT"), "{said}");
    fs::write(&file, "").unwrap();
    assert_eq!(run().0, 1);
}

#[tokio::test]
async fn a_start_survives_a_crash_a_setgid_folder_and_a_strict_umask() {
    let folder = reachable_folder();
    let data = folder.path().join("data");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o2755)).unwrap();
    Server::start(&embedded_settings(&data)).await.unwrap().stop().await;
    // Leaves the lock as a crash does between its creation and its handover.
    let lock = data.join("supervisor.lock");
    fs::remove_file(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    Server::start(&embedded_settings(&data)).await.unwrap().stop().await;

    let start = Start::plain().under_umask("077").with("SEED_ROWS", "1");
    start.with("DATA_DIR", folder.path().join("a/b/data").display()).service().await.stop().await;
}

#[test]
fn a_message_has_no_control_characters() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdc-export"));
    // The name of a folder that isn't there.
    let output = command.env_clear().args(["verify", "/tmp/\u{1b}]0;title\u{7}"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("]0;title") && said.trim_end().chars().all(|letter| !letter.is_control()), "{said:?}");
}
