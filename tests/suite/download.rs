//! A machine without Postgres, played by a failpoint that hides what is installed, and a mirror that serves those very
//! programs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::http::{StatusCode, Uri};
use flate2::{Compression, write::GzEncoder};
use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Database, Start, eventually, lacks, lent_user, reachable_folder};

/// A web server that has what it is given under names that end so, and remembers what it was asked for.
struct Mirror {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    async fn serving(files: Vec<(&'static str, Vec<u8>)>) -> Mirror {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let record = Arc::clone(&asked);
        let files = Arc::new(files);
        let router = Router::new().fallback(move |uri: Uri| {
            record.lock().unwrap().push(uri.path().to_owned());
            let found = files.iter().find(|(end, _)| uri.path().ends_with(end)).map(|(_, body)| body.clone());
            async move { found.ok_or(StatusCode::NOT_FOUND) }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}/builds", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Mirror { address, asked }
    }

    /// One that states what is right of its archive, which proves nothing.
    async fn of(archive: Vec<u8>) -> Mirror {
        let stated = format!("{}  postgresql.tar.gz\n", sha256(&archive));
        Mirror::serving(vec![(".tar.gz", archive), (".tar.gz.sha256", stated.into_bytes())]).await
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The installed programs with what they need, all in one folder as a mirror has them.
async fn archive() -> Vec<u8> {
    let programs = Database::empty().await.programs().await;
    tokio::task::spawn_blocking(move || {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for program in ["postgres", "initdb"] {
            add(&mut archive, &programs.join(program), &format!("bin/{program}"));
        }
        let home = programs.parent().unwrap();
        // Debian keeps `share` elsewhere, where the programs find it from any place.
        for part in ["lib", "share"].into_iter().filter(|part| home.join(part).is_dir()) {
            add_folder(&mut archive, &home.join(part), part);
        }
        archive.into_inner().unwrap().finish().unwrap()
    })
    .await
    .unwrap()
}

fn add(archive: &mut tar::Builder<impl Write>, path: &Path, name: &str) {
    archive.append_file(format!("postgresql-0-test/{name}"), &mut File::open(path).unwrap()).unwrap();
}

fn add_folder(archive: &mut tar::Builder<impl Write>, folder: &Path, name: &str) {
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        match entry.path() {
            // Code for the optimiser, as large as all the rest.
            folder if folder.ends_with("bitcode") => {}
            folder if folder.is_dir() => add_folder(archive, &folder, &name),
            file => add(archive, &file, &name),
        }
    }
}

/// A start on a machine without Postgres, with the private server in `data`.
fn bare(data: &Path) -> Start {
    Start::plain()
        .with("FAILPOINTS", "postgres.installed=error@1")
        .with("PG_BIN_DIR", "")
        .with("DATA_DIR", data.display())
        .with("SEED_ROWS", "10")
}

#[tokio::test]
async fn a_machine_without_postgres_fetches_one_once() {
    let archive = archive().await;
    let checksum = sha256(&archive).to_uppercase();
    let mirror = Mirror::of(archive).await;
    let home = reachable_folder();
    let data = home.path().join("data");
    let start = bare(&data).with("PG_DOWNLOAD", &mirror.address).with("PG_DOWNLOAD_SHA256", checksum);
    let service = start.service().await;
    let (job, _) = service.export("full", "one").await;
    assert_eq!((job["status"].as_str(), mirror.asked().len()), (Some("completed"), 1), "{job}");
    let said = service.events("postgres_download");
    assert_eq!(said.len(), 1);
    assert!(said[0]["url"].as_str().unwrap().starts_with(&mirror.address), "{said:?}");
    service.stop().await;

    // What it downloaded is found again, and nothing of the download is left beside it.
    let service = bare(&data).service().await;
    assert_eq!((service.events("postgres_download").len(), mirror.asked().len()), (0, 1));
    service.stop().await;
    let left: Vec<PathBuf> = data.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains(".new-")), "{left:?}");
}

#[tokio::test]
async fn a_failed_download_ends_in_the_install_line() {
    let home = reachable_folder();
    let data = home.path().join("data");
    let not_an_archive = b"not an archive".to_vec();
    let checksum = sha256(&not_an_archive);
    let none = Mirror::serving(Vec::new()).await;
    let broken = Mirror::of(not_an_archive).await;
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let another = sha256(b"another");
    for (address, checksum, why) in [
        (none.address, &checksum, "404"),
        (broken.address.clone(), &another, &*format!("its sha256 is {checksum}, not {another}")),
        (broken.address, &checksum, "can't be unpacked"),
        (format!("http://{gone}"), &checksum, "refused"),
    ] {
        let start = bare(&data).with("PG_DOWNLOAD", &address).with("PG_DOWNLOAD_SHA256", checksum);
        let (code, log) = start.until_it_ends().await;
        let line = log.lines().last().unwrap();
        assert_eq!(code, 1, "{line}");
        assert!(line.contains(&address) && line.contains(why), "{line}");
        assert!(
            line.contains("apt-get install postgresql") && line.ends_with("`brew install postgresql@17`)"),
            "{line}"
        );
        let left: Vec<PathBuf> = data.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.ends_with("supervisor.lock")), "{left:?}");
    }
}

#[tokio::test]
async fn what_the_mirror_says_of_its_archive_is_not_believed() {
    let home = reachable_folder();
    let data = home.path().join("data");
    let forged = Mirror::of(archive().await).await;
    let (code, log) = bare(&data).with("PG_DOWNLOAD", &forged.address).until_it_ends().await;
    let line = log.lines().last().unwrap();
    assert!(code == 1 && line.contains("its sha256 is "), "{line}");
    assert_eq!(forged.asked().len(), 1);
}

/// A web server on 127.0.0.1 that sends whoever asks to another one: over TLS where there is a folder with its
/// certificate.
pub(crate) async fn redirecting(to: &str, certificate: Option<&Path>) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}/x.tar.gz\r\nContent-Length: 0\r\n\r\n");
    let tls = certificate.map(|folder| {
        let chain = vec![CertificateDer::from_pem_file(folder.join("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap())
    });
    let scheme = if tls.is_some() { "https" } else { "http" };
    std::thread::spawn(move || {
        let serve = |stream: &mut dyn ReadWrite| {
            let _ = stream.read(&mut [0; 4096]).and_then(|_| stream.write_all(answer.as_bytes()));
            let _ = stream.flush();
        };
        for mut stream in listener.incoming().map_while(Result::ok) {
            match &tls {
                None => serve(&mut stream),
                Some(tls) => {
                    let connection = ServerConnection::new(Arc::clone(tls)).unwrap();
                    serve(&mut StreamOwned::new(connection, stream));
                }
            }
        }
    });
    format!("{scheme}://{address}")
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

#[tokio::test]
async fn a_redirect_to_http_is_not_followed() {
    if lacks("openssl", "openssl") {
        return;
    }
    let archive = archive().await;
    let checksum = sha256(&archive);
    let mirror = Mirror::of(archive).await;
    let home = reachable_folder();
    crate::tls::certificates(home.path()).await;
    for (certificate, why) in [(Some(home.path()), "https"), (None, "302")] {
        let address = redirecting(&mirror.address, certificate).await;
        let (code, log) = bare(&home.path().join("data"))
            .with("PG_DOWNLOAD", &address)
            .with("PG_DOWNLOAD_SHA256", &checksum)
            .with("SSL_CERT_FILE", home.path().join("ca.crt").display())
            .until_it_ends()
            .await;
        let line = log.lines().last().unwrap();
        assert_eq!(mirror.asked(), Vec::<String>::new());
        assert!(code == 1 && line.contains(&address) && line.contains(why), "{line}");
    }
}

#[tokio::test]
async fn a_download_is_not_run_on_the_data_of_another_version() {
    let archive = archive().await;
    let checksum = sha256(&archive);
    let mirror = Mirror::of(archive).await;
    let home = reachable_folder();
    let data = home.path().join("data");
    std::fs::create_dir_all(data.join("postgres")).unwrap();
    std::fs::write(data.join("postgres/PG_VERSION"), "12\n").unwrap();
    // Root lends the server the folder's owner.
    if nix::unistd::geteuid().is_root() {
        let user = lent_user();
        for folder in [&data, &data.join("postgres"), &data.join("postgres/PG_VERSION")] {
            std::os::unix::fs::chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
    }
    let start = bare(&data).with("PG_DOWNLOAD", &mirror.address).with("PG_DOWNLOAD_SHA256", checksum);
    let (code, log) = start.until_it_ends().await;
    let line = log.lines().last().unwrap();
    assert!(code == 1 && line.contains("is of Postgres 12") && line.contains("install Postgres 12"), "{line}");
}

#[tokio::test]
async fn a_download_may_be_forbidden() {
    let home = reachable_folder();
    let data = home.path().join("data");
    let (code, log) = bare(&data).with("PG_DOWNLOAD", "off").until_it_ends().await;
    let line = log.lines().last().unwrap();
    assert!(code == 1 && line.starts_with("cdc-export: no installed Postgres found: set DATABASE_URL"), "{line}");
    assert!(!data.exists());
}

#[tokio::test]
async fn a_signal_ends_a_download() {
    // A mirror that takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let home = reachable_folder();
    let (mut child, _work) = bare(&home.path().join("data")).with("PG_DOWNLOAD", address).spawn();
    let (_held, _) = silent.accept().await.unwrap();
    let id = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = eventually("it ends", || {
        let ended = child.try_wait().unwrap();
        async move { ended }
    })
    .await;
    assert!(status.success());
}
