//! A machine without Postgres, played by a failpoint that hides what is installed. A proxy answers in the place of the
//! source of the download.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Start, eventually, free_port, lacks, reachable_folder};

/// A start on a machine without Postgres, with the private server in `data`.
fn bare(data: &Path) -> Start {
    Start::plain()
        .with("FAILPOINTS", "postgres.installed=error@1")
        .with("PG_BIN_DIR", "")
        .with("DATA_DIR", data.display())
        .with("SEED_ROWS", "10")
}

/// A web server with TLS on 127.0.0.1 that gives everybody the same answer. It has the certificate in a folder. To a
/// client that takes it for a proxy, it answers in the place of the host that the client asks for.
fn answering(answer: Vec<u8>, folder: &Path) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let chain = vec![CertificateDer::from_pem_file(folder.join("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            // A client may go away at any time.
            let _ = accepted_by_proxy(&stream).and_then(|()| {
                let mut stream = StreamOwned::new(connection, stream);
                let _ = stream.read(&mut [0; 4096])?;
                stream.write_all(&answer)?;
                stream.flush()
            });
        }
    });
    address
}

/// Accepts the `CONNECT` of a client that has sent one.
fn accepted_by_proxy(mut stream: &TcpStream) -> std::io::Result<()> {
    let mut first = [0];
    stream.peek(&mut first)?;
    if first != *b"C" {
        return Ok(());
    }
    let mut lines = BufReader::with_capacity(1, stream).lines();
    while !lines.next().transpose()?.unwrap_or_default().is_empty() {}
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")
}

/// A web server with TLS on 127.0.0.1 that sends whoever asks to another one.
pub(crate) fn redirecting(to: &str, folder: &Path) -> String {
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}/x.tar.gz\r\nContent-Length: 0\r\n\r\n");
    format!("https://{}", answering(answer.into_bytes(), folder))
}

#[tokio::test]
async fn a_failed_download_ends_in_the_install_line() {
    if lacks("openssl", "openssl") {
        return;
    }
    let home = reachable_folder();
    let data = home.path().join("data");
    crate::tls::certificates(home.path()).await;
    let none = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(), home.path());
    let forged = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged".to_vec(), home.path());
    let checksum = digest(&SHA256, b"forged").as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let gone = SocketAddr::from(([127, 0, 0, 1], free_port()));
    for (proxy, why) in [(none, "404"), (forged, format!("its sha256 is {checksum}, not ").as_str()), (gone, "refused")]
    {
        let start = bare(&data)
            .with("HTTPS_PROXY", format!("http://{proxy}"))
            .with("SSL_CERT_FILE", home.path().join("ca.crt").display());
        let (code, log) = start.until_it_ends().await;
        let line = log.lines().last().unwrap();
        assert_eq!(code, 1, "{line}");
        assert!(line.contains("https://github.com/theseus-rs/postgresql-binaries/") && line.contains(why), "{line}");
        assert!(line.contains("apt-get install postgresql"), "{line}");
        assert!(line.ends_with("`brew install postgresql@17`)"), "{line}");
        let left: Vec<PathBuf> = data.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.iter().all(|path| path.ends_with("supervisor.lock")), "{left:?}");
    }
}

#[tokio::test]
async fn a_redirect_to_http_is_not_followed() {
    if lacks("openssl", "openssl") {
        return;
    }
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    other.set_nonblocking(true).unwrap();
    let home = reachable_folder();
    crate::tls::certificates(home.path()).await;
    let proxy = redirecting(&format!("http://{}", other.local_addr().unwrap()), home.path());
    let (code, log) = bare(&home.path().join("data"))
        .with("HTTPS_PROXY", proxy.replace("https:", "http:"))
        .with("SSL_CERT_FILE", home.path().join("ca.crt").display())
        .until_it_ends()
        .await;
    let line = log.lines().last().unwrap();
    assert!(other.accept().is_err());
    assert!(code == 1 && line.contains("https://github.com/") && line.contains("scheme is not allowed"), "{line}");
}

#[tokio::test]
async fn a_download_is_not_run_on_the_data_of_another_version() {
    let home = reachable_folder();
    let data = home.path().join("data");
    std::fs::create_dir_all(data.join("postgres")).unwrap();
    std::fs::write(data.join("postgres/PG_VERSION"), "12\n").unwrap();
    let (code, log) = bare(&data).until_it_ends().await;
    let line = log.lines().last().unwrap();
    assert!(code == 1 && line.contains("is of Postgres 12") && line.contains("install Postgres 12"), "{line}");
    assert!(!log.contains("postgres_download"), "{log}");
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
    // A proxy that takes the connection and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", silent.local_addr().unwrap());
    let home = reachable_folder();
    let (mut child, _work) = bare(&home.path().join("data")).with("HTTPS_PROXY", proxy).spawn();
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
