//! The user that runs the private server, against the one who started it: that user may put whatever it likes into the
//! folders that are its own, and gets nothing by it that it hasn't. As root runs these tests, that is user `postgres`
//! against root.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use nix::unistd::{Pid, geteuid};
use private_postgres::{Error, Server, Settings, join};
use sqlx::ConnectOptions;
use tempfile::TempDir;

use crate::harness::{
    Database, Start, connect_options, embedded_settings, embedded_settings_with_cluster, reachable_folder,
};

const SECRET: &str = "for-root-alone";

/// A private server, and a folder beside it that its user can't enter.
struct Home {
    folder: TempDir,
    server: Server,
}

impl Home {
    async fn started() -> Home {
        let folder = reachable_folder();
        let settings = embedded_settings_with_cluster(&folder.path().join("data")).await;
        let server = Server::start(&settings).await.unwrap();
        let home = Home { folder, server };
        fs::create_dir(home.closed()).unwrap();
        fs::set_permissions(home.closed(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(home.closed().join("secret"), SECRET).unwrap();
        home
    }

    fn settings(&self) -> Settings {
        embedded_settings(&self.data_dir())
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn closed(&self) -> PathBuf {
        self.folder.path().join("closed")
    }

    fn socket_folder(&self) -> PathBuf {
        connect_options(self.server.endpoint()).get_socket().unwrap().clone()
    }

    fn postmaster(&self) -> Pid {
        let text = fs::read_to_string(self.data_dir().join("postgres/postmaster.pid")).unwrap();
        Pid::from_raw(text.lines().next().unwrap().parse().unwrap())
    }

    /// Gives a file to the user that runs the server.
    fn give_away(&self, path: &Path) {
        let owner = fs::metadata(self.data_dir().join("postgres")).unwrap();
        chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
}

#[tokio::test]
async fn no_password_is_read_from_another_file_than_the_accounts_own() {
    let home = Home::started().await;
    let password = home.data_dir().join("postgres.password");
    let ours = fs::read_to_string(&password).unwrap();
    let secret = home.closed().join("secret");
    fs::remove_file(&password).unwrap();

    let refused = |what: &str| match join(&home.settings()) {
        Err(Error::File { path, .. }) => assert_eq!(path, password, "{what}"),
        Err(error) => panic!("{what}: {error}"),
        Ok(joined) => panic!("{what}: {}", joined.unwrap().password),
    };
    symlink(&secret, &password).unwrap();
    refused("a link to another's file");
    fs::remove_file(&password).unwrap();
    fs::hard_link(&secret, &password).unwrap();
    refused("a second name of another's file");
    home.give_away(&password);
    refused("a second name of a file");
    fs::remove_file(&password).unwrap();
    fs::create_dir(&password).unwrap();
    refused("a folder");
    fs::remove_dir(&password).unwrap();
    assert!(Command::new("mkfifo").arg(&password).status().unwrap().success());
    home.give_away(&password);
    refused("a pipe");
    fs::remove_file(&password).unwrap();
    fs::write(&password, "x".repeat(1 << 20)).unwrap();
    home.give_away(&password);
    refused("a large file");
    fs::remove_file(&password).unwrap();
    if geteuid().is_root() {
        fs::write(&password, SECRET).unwrap();
        refused("root's own file");
        fs::remove_file(&password).unwrap();
    }

    fs::write(&password, &ours).unwrap();
    home.give_away(&password);
    connect_options(&join(&home.settings()).unwrap().unwrap()).connect().await.unwrap();
    home.server.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_the_password_itself_gets_nothing() {
    let home = Home::started().await;
    let socket = home.socket_folder().join(".s.PGSQL.5432");
    let real = socket.with_extension("real");
    fs::rename(&socket, &real).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    home.give_away(&socket);
    let sent = Arc::<Mutex<Vec<u8>>>::default();
    let record = Arc::clone(&sent);
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut greeting = [0; 4];
            client.read_exact(&mut greeting).unwrap_or_default();
            let mut rest = vec![0; (u32::from_be_bytes(greeting) as usize).saturating_sub(4)];
            client.read_exact(&mut rest).unwrap_or_default();
            // AuthenticationCleartextPassword
            let _ = client.write_all(b"R\0\0\0\x08\0\0\0\x03");
            let mut answer = [0; 512];
            let read = client.read(&mut answer).unwrap_or_default();
            record.lock().unwrap().extend(&answer[..read]);
        }
    });
    let refused = match join(&home.settings()) {
        Ok(joined) => Ok(connect_options(&joined.unwrap()).connect().await.map(drop)),
        Err(error) => Err(error),
    };
    assert_eq!(String::from_utf8_lossy(&sent.lock().unwrap()), "");
    assert!(matches!(refused, Err(Error::Impostor { .. })), "{refused:?}");
    fs::rename(&real, &socket).unwrap();
    connect_options(&join(&home.settings()).unwrap().unwrap()).connect().await.unwrap();
    home.server.stop().await;
}

#[tokio::test]
async fn a_server_told_to_let_everybody_in_is_not_trusted() {
    let home = Home::started().await;
    let rules = home.data_dir().join("postgres/pg_hba.conf");
    fs::write(&rules, "local all all trust\n").unwrap();
    let settings = home.settings();
    let folder = home.folder;
    home.server.stop().await;
    let error = Server::start(&settings).await.unwrap_err();
    assert!(matches!(error, Error::Impostor { .. }), "{error}");
    assert!(error.to_string().contains("asks for no password") && error.to_string().contains("pg_hba.conf"), "{error}");
    assert!(!folder.path().join("data/postgres/postmaster.pid").exists(), "the server is left running");
}

#[tokio::test]
async fn a_link_among_half_made_folders_leads_nowhere() {
    let home = Home::started().await;
    let settings = home.settings();
    let (elsewhere, planted) = (home.closed().join("postmaster.pid"), home.data_dir().join("postgres.new-planted"));
    fs::write(&elsewhere, "1\n").unwrap();
    symlink(home.closed(), &planted).unwrap();
    let _folder = home.folder;
    home.server.stop().await;
    Server::start(&settings).await.unwrap().stop().await;
    assert!(elsewhere.exists(), "what a link leads to was swept");
}

#[tokio::test]
async fn whoever_owns_what_a_link_leads_to_is_not_lent() {
    // Only root lends Postgres another user.
    if !geteuid().is_root() {
        return;
    }
    let home = Home::started().await;
    let (settings, data) = (home.settings(), home.data_dir().join("postgres"));
    let folder = home.folder;
    home.server.stop().await;
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    chown(&other, Some(54_321), Some(54_321)).unwrap();
    fs::rename(&data, data.with_extension("away")).unwrap();
    symlink(&other, &data).unwrap();
    let error = Server::start(&settings).await.unwrap_err();
    assert!(matches!(&error, Error::File { path, source, .. } if *path == data && source.to_string().contains("link")));
}

#[tokio::test]
async fn a_link_in_the_place_of_the_sockets_folder_leads_nowhere() {
    // An ordinary user's links lead to where he may go anyway.
    if !geteuid().is_root() {
        return;
    }
    let home = Home::started().await;
    let (folder, anothers) = (home.socket_folder(), home.closed().join(".s.PGSQL.5432"));
    fs::write(&anothers, "").unwrap();
    let away = folder.with_extension("away");
    fs::rename(&folder, &away).unwrap();
    symlink(home.closed(), &folder).unwrap();
    home.server.stop().await;
    fs::remove_file(&folder).unwrap();
    fs::remove_dir_all(&away).unwrap();
    assert!(anothers.exists(), "another server's socket was removed");
}

#[tokio::test]
async fn the_server_has_neither_our_session_nor_roots_environment() {
    let home = Home::started().await;
    let postmaster = home.postmaster();
    assert_eq!(nix::unistd::getsid(Some(postmaster)).unwrap(), postmaster, "it could type into our terminal");
    home.server.stop().await;

    let folder = reachable_folder();
    let data = folder.path().join("data");
    embedded_settings_with_cluster(&data).await;
    let start = Start::plain().with("DATA_DIR", data.display()).with("SEED_ROWS", "1").with("NOTED_SECRET", SECRET);
    let service = start.service().await;
    let pid = fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    let environment = fs::read(format!("/proc/{}/environ", pid.lines().next().unwrap())).unwrap();
    let has_secret = String::from_utf8_lossy(&environment).contains(SECRET);
    // An ordinary user's server is himself.
    assert!(!has_secret || !geteuid().is_root());
    service.stop().await;
}

#[tokio::test]
async fn a_download_goes_on_in_no_other_file_than_its_own() {
    let database = Database::new().await;
    database.add_users(1, 10).await;
    let service = Start::on(&database).service().await;
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
async fn root_removes_nothing_that_the_account_cannot() {
    if !geteuid().is_root() {
        return;
    }
    let home = Home::started().await;
    let (settings, half_made) = (home.settings(), home.data_dir().join("postgres.new-planted"));
    let (anothers, own) = (half_made.join("anothers"), half_made.join("own"));
    for path in [&half_made, &anothers, &own] {
        fs::create_dir(path).unwrap();
    }
    fs::write(anothers.join("kept"), SECRET).unwrap();
    chown(&anothers, Some(54_321), Some(54_321)).unwrap();
    home.give_away(&half_made);
    home.give_away(&own);
    let _folder = home.folder;
    home.server.stop().await;
    Server::start(&settings).await.unwrap().stop().await;
    assert!(anothers.join("kept").exists(), "root removed what is another user's");
    assert!(!own.exists(), "what is the account's stays");
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

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_server_gets_none_of_our_open_files() {
    let folder = reachable_folder();
    let secret = folder.path().join("secret");
    fs::write(&secret, SECRET).unwrap();
    // As one that whoever started us left open.
    let held = fs::File::open(&secret).unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    let settings = embedded_settings_with_cluster(&folder.path().join("data")).await;
    let server = Server::start(&settings).await.unwrap();
    let pid = fs::read_to_string(folder.path().join("data/postgres/postmaster.pid")).unwrap();
    let open = fs::read_dir(format!("/proc/{}/fd", pid.lines().next().unwrap())).unwrap();
    let open: Vec<PathBuf> = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok()).collect();
    server.stop().await;
    assert!(!open.is_empty() && !open.contains(&secret), "{open:?}");
}

#[tokio::test]
async fn a_name_that_no_header_takes_is_no_exports_name() {
    let database = Database::new().await;
    database.add_users(1, 10).await;
    let service = Start::on(&database).service().await;
    let (job, _) = service.export("full", "a").await;
    for name in ["a\nb.csv", "a\"b.csv", "a\u{e9}b.csv"] {
        let path = service.path(&service.job(job["jobId"].as_str().unwrap()).await);
        fs::rename(&path, path.with_file_name(name)).unwrap();
        database.run(&format!("update exports set output_filename = '{name}'")).await;
        let id = job["jobId"].as_str().unwrap();
        let answer = service.call("GET", &format!("/exports/{id}/download"), &[]).await;
        assert_eq!(answer.status(), 410, "{name:?}");
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
    // One that is read stops the start with 2.
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
    let server = Server::start(&embedded_settings(&data)).await.unwrap();
    server.stop().await;
    // As a crash leaves it between its making and its giving away.
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
    command.env_clear().env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/nothing");
    // The name of a file that isn't there.
    let output = command.env("DATASETS", "/tmp/\u{1b}]0;title\u{7}.toml").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("]0;title") && said.trim_end().chars().all(|letter| !letter.is_control()), "{said:?}");
}
