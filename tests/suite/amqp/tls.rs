//! A broker behind TLS.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::amqp::operator::{EXPORTS, operator};
use crate::harness::{Database, eventually, lacks, reachable_folder};
use crate::tls::{authority, certificates};

/// Protocol header of AMQP 0-9-1 ("2.2.4 Protocol Negotiation" in its specification).
const GREETING: &[u8; 8] = b"AMQP\0\0\x09\x01";

/// Starts a TLS server with the certificate of this folder. Returns its port, and the first bytes of each client.
async fn listener(folder: &Path) -> (u16, Arc<Mutex<Vec<[u8; 8]>>>) {
    let chain = vec![CertificateDer::from_pem_file(folder.join("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut greeting = [0; 8];
            if stream.read_exact(&mut greeting).await.is_ok() {
                said.lock().unwrap().push(greeting);
            }
        }
    });
    (port, heard)
}

#[tokio::test]
async fn a_broker_with_a_trusted_certificate_is_reached_over_tls() {
    if lacks("openssl", "openssl") {
        return;
    }
    let database = Database::new().await;
    let folder = reachable_folder();
    certificates(folder.path()).await;
    authority(folder.path(), "other").await;
    let operator = operator(EXPORTS);
    for (trusted, name) in [("ca.crt", "127.0.0.1"), ("other.crt", "127.0.0.1"), ("ca.crt", "localhost")] {
        let (port, heard) = listener(folder.path()).await;
        let service = operator
            .start(&database)
            .with("RABBIT_AMQP_URL", format!("amqps://guest:guest@{name}:{port}"))
            .with("SSL_CERT_FILE", folder.path().join(trusted).display())
            .service()
            .await;
        if (trusted, name) == ("ca.crt", "127.0.0.1") {
            let greeting = async || heard.lock().unwrap().first().copied();
            assert_eq!(eventually("a greeting", greeting).await, *GREETING);
        } else {
            let complaint = async || service.events("deliveries_failed").into_iter().next();
            let complaint = eventually("a complaint", complaint).await;
            let error = complaint["error"].as_str().unwrap();
            assert!(error.contains("certificate") && !error.contains("speaks"), "{error}");
            assert!(heard.lock().unwrap().is_empty());
        }
        service.stop().await;
    }
}
