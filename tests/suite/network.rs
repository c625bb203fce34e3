//! A Postgres that can't be reached although nothing says so, and an API whose connections are all taken.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Executor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::harness::{Database, Start, eventually, refusal};

/// Stands between a service and its database. Closed, it takes what it is sent and passes nothing on, as a firewall does that
/// lost its table.
pub(crate) struct Proxy {
    port: u16,
    pub(crate) open: watch::Sender<bool>,
}

/// What a server says while it starts or recovers (PostgreSQL documentation, "Message Formats", ErrorResponse).
const STARTING: &[u8] = b"E\0\0\0\x3eSFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0";

impl Proxy {
    pub(crate) async fn to(server: &PgConnectOptions) -> Proxy {
        Proxy::to_starting(server, 0).await
    }

    /// To a server that is starting when it is asked the first few times.
    async fn to_starting(server: &PgConnectOptions, mut refusals: u32) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (open, gate) = watch::channel(true);
        let server = server.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if refusals > 0 {
                    refusals -= 1;
                    let _ = client.read(&mut [0; 1024]).await;
                    client.write_all(STARTING).await.unwrap();
                    continue;
                }
                match server.get_socket() {
                    Some(folder) => {
                        let path = folder.join(format!(".s.PGSQL.{}", server.get_port()));
                        join(client, UnixStream::connect(path).await.unwrap(), &gate);
                    }
                    None => {
                        let address = (server.get_host().to_owned(), server.get_port());
                        join(client, TcpStream::connect(address).await.unwrap(), &gate);
                    }
                }
            }
        });
        Proxy { port, open }
    }
}

fn join(client: TcpStream, server: impl AsyncRead + AsyncWrite + Send + 'static, gate: &watch::Receiver<bool>) {
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = split(server);
    tokio::spawn(pass(from_client, to_server, gate.clone()));
    tokio::spawn(pass(from_server, to_client, gate.clone()));
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut gate: watch::Receiver<bool>) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        if gate.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// A database's address at a proxy.
pub(crate) fn url(database: &Database, proxy: &Proxy) -> String {
    let direct = database.options.to_url_lossy();
    let (user, password) = (direct.username(), direct.password().unwrap_or_default());
    let name = database.options.get_database().unwrap();
    format!("postgres://{user}:{password}@127.0.0.1:{}/{name}?sslmode=disable", proxy.port)
}

#[tokio::test]
async fn a_start_waits_for_a_server_that_is_starting() {
    assert_eq!(usize::from(STARTING[4]), STARTING.len() - 1);
    let database = Database::new().await;
    let proxy = Proxy::to_starting(&database.options, 2).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).service().await;
    assert_eq!(service.events("postgres_starting").len(), 2);
    service.stop().await;
}

#[tokio::test]
async fn a_database_behind_a_black_hole_is_unavailable_within_two_seconds() {
    let database = Database::new().await;
    database.add_users(1, 5).await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("LEASE_SECONDS", 2).service().await;
    let (job, _) = service.export("full", "one").await;

    // A running export too: its rows stop, its heartbeat isn't answered.
    let held = database.hold_exports().await;
    let running = service.submit("delta", "one").await;
    service.becomes(&running, "processing").await;
    proxy.open.send_replace(false);
    held.rollback().await.unwrap();
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    for (method, path) in [("GET", &*path), ("POST", "/exports/full"), ("GET", "/health"), ("GET", "/health/ready")] {
        let begun = Instant::now();
        let answer = service.call(method, path, &[("X-Consumer-ID", "two")]).await;
        let took = begun.elapsed();
        assert!(answer.headers().contains_key("Retry-After"));
        assert_eq!(answer.status(), 503, "{method} {path}");
        assert!(took < Duration::from_millis(2_300), "{method} {path} took {took:?}");
    }
    assert_eq!(service.call("GET", "/health/live", &[]).await.status(), 200);

    proxy.open.send_replace(true);
    eventually("the API answers again", async || {
        (service.call("GET", "/health", &[]).await.status() == 200).then_some(())
    })
    .await;
    assert_eq!(service.ended(&running).await["status"], "completed");
    service.export("delta", "one").await;
    service.stop().await;
}

#[tokio::test]
async fn an_api_without_a_free_connection_says_so_and_is_healthy() {
    let database = Database::new().await;
    let service = Start::on(&database).with("API_CONNECTIONS", 4).service().await;
    let mut held = database.pool.begin().await.unwrap();
    held.execute("lock table cdc_export.lanes in access exclusive mode").await.unwrap();
    let consumers: Vec<String> = (0..500).map(|n| format!("c{n}")).collect();
    let posts = consumers.iter().map(async |consumer| {
        let begun = Instant::now();
        let answer = service.call("POST", "/exports/full", &[("X-Consumer-ID", consumer)]).await;
        (answer, begun.elapsed())
    });
    let health = async {
        let begun = Instant::now();
        let answer = service.call("GET", "/health", &[]).await;
        (answer.status(), begun.elapsed())
    };
    let watch = async {
        let mut most = 0;
        for _ in 0..20 {
            let backends = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'cdc-export'";
            most = most.max(database.one::<i64>(backends).await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        most
    };
    let (answers, (health, took), most) = tokio::join!(join_all(posts), health, watch);
    // As `.env.example` has it, for two workers and two readers; those of the API may just be closing while others open.
    assert!(most <= (4 * 2 + 2 + 1) + (4 + 3) + 4, "{most} connections");
    assert_eq!(health, 200);
    assert!(took < Duration::from_secs(1), "health took {took:?}");
    let mut slowest = Duration::ZERO;
    for (answer, took) in answers {
        assert!(answer.headers().contains_key("Retry-After"));
        assert_eq!(refusal(answer).await, (503, "database_unavailable".to_owned()));
        slowest = slowest.max(took);
    }
    // Two seconds, and what 500 answers take on a machine that runs other tests too.
    println!("slowest {slowest:?}");
    assert!(slowest < Duration::from_secs(4), "{slowest:?}");
    held.rollback().await.unwrap();
    let (job, _) = service.export("full", "c0").await;
    assert_eq!(job["status"], json!("completed"));
    service.stop().await;
}
