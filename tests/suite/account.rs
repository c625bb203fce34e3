//! The user that runs the private server, against the one who started it: that user may put whatever it likes into the folders
//! that are its own, and gets nothing by it that it hasn't. As root runs these tests, that is user `postgres` against root.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use cdc_export::postgres::embedded::{Error, Server, Settings, join};
use nix::unistd::{Pid, geteuid};
use sqlx::ConnectOptions;
use tempfile::TempDir;

use crate::harness::{Start, embedded_settings, reachable_folder};

const SECRET: &str = "for-root-alone";

/// A private server, and a folder beside it that its user can't enter.
struct Home {
    folder: TempDir,
    server: Server,
}

impl Home {
    async fn started() -> Home {
        let folder = reachable_folder();
        let server = Server::start(&embedded_settings(&folder.path().join("data"))).await.unwrap();
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
        self.server.connect_options().get_socket().unwrap().clone()
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
        Ok(joined) => panic!("{what}: {}", joined.unwrap().to_url_lossy()),
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
    join(&home.settings()).unwrap().unwrap().connect().await.unwrap();
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
        Ok(joined) => Ok(joined.unwrap().connect().await.map(drop)),
        Err(error) => Err(error),
    };
    assert_eq!(String::from_utf8_lossy(&sent.lock().unwrap()), "");
    assert!(matches!(refused, Err(Error::Impostor { .. })), "{refused:?}");
    fs::rename(&real, &socket).unwrap();
    join(&home.settings()).unwrap().unwrap().connect().await.unwrap();
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
    let start = Start::plain().with("DATA_DIR", data.display()).with("SEED_ROWS", "1").with("NOTED_SECRET", SECRET);
    let service = start.service().await;
    let pid = fs::read_to_string(data.join("postgres/postmaster.pid")).unwrap();
    let environment = fs::read(format!("/proc/{}/environ", pid.lines().next().unwrap())).unwrap();
    let has_secret = String::from_utf8_lossy(&environment).contains(SECRET);
    // An ordinary user's server is himself.
    assert!(!has_secret || !geteuid().is_root());
    service.stop().await;
}
