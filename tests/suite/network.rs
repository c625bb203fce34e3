//! A Postgres that can't be reached although nothing says so, and an API whose connections are all taken.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::catalog::{Catalog, export};
use crate::harness::{Database, PROMPT, Service, Start, eventually, refusal, until};
use crate::traffic::{Conversation, Traffic};

/// Stands between a service and its database. Closed, it takes what it is sent and passes nothing on, as a firewall
/// does that lost its table.
pub(crate) struct Proxy {
    port: u16,
    /// The server of the connections that come next.
    pub(crate) server: watch::Sender<PgConnectOptions>,
    pub(crate) open: watch::Sender<bool>,
    fuse: Fuse,
    epoch: watch::Sender<u64>,
    pub(crate) traffic: Traffic,
}

/// A text that silences the connection which sends it next: nothing passes there any more, while the other connections
/// live.
#[derive(Clone, Default)]
struct Fuse(Arc<Mutex<Option<&'static str>>>);

impl Fuse {
    /// Returns true if these bytes contain the text, and does so only once.
    fn burns(&self, bytes: &[u8]) -> bool {
        let mut text = self.0.lock().unwrap();
        let found = text.is_some_and(|text| bytes.windows(text.len()).any(|part| part == text.as_bytes()));
        if found {
            *text = None;
        }
        found
    }
}

/// The error of a server that starts or recovers (PostgreSQL documentation, "Message Formats", ErrorResponse).
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
        let (fuse, epoch) = (Fuse::default(), watch::Sender::new(0));
        let (server, burning, begun) = (watch::Sender::new(server.clone()), fuse.clone(), epoch.clone());
        let next = server.subscribe();
        let traffic = Traffic::default();
        let counted = traffic.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                if refusals > 0 {
                    refusals -= 1;
                    let _ = client.read(&mut [0; 1024]).await;
                    client.write_all(STARTING).await.unwrap();
                    continue;
                }
                let server = next.borrow().clone();
                match server.get_socket() {
                    Some(folder) => {
                        let path = folder.join(format!(".s.PGSQL.{}", server.get_port()));
                        // Without a server, the client's connection ends at once.
                        let Ok(server) = UnixStream::connect(path).await else { continue };
                        join(client, server, &gate, &burning, &begun, &counted);
                    }
                    None => {
                        let address = (server.get_host().to_owned(), server.get_port());
                        join(client, TcpStream::connect(address).await.unwrap(), &gate, &burning, &begun, &counted);
                    }
                }
            }
        });
        Proxy { port, server, open, fuse, epoch, traffic }
    }

    /// Silences the connection that next sends a piece with this text.
    pub(crate) fn silence(&self, text: &'static str) {
        *self.fuse.0.lock().unwrap() = Some(text);
    }

    fn has_silenced(&self) -> bool {
        self.fuse.0.lock().unwrap().is_none()
    }
}

fn join(
    client: TcpStream,
    server: impl AsyncRead + AsyncWrite + Send + 'static,
    gate: &watch::Receiver<bool>,
    fuse: &Fuse,
    epoch: &watch::Sender<u64>,
    traffic: &Traffic,
) {
    let (from_client, to_client) = split(client);
    let (from_server, to_server) = split(server);
    // One flag for both ways: if it is set, neither way passes data or reports an end of the other side.
    let deaf = watch::Sender::new(false);
    let epoch = (*epoch.borrow(), epoch.subscribe());
    let way = Way { gate: gate.clone(), deaf, fuse: None, epoch, conversation: traffic.conversation(), asks: false };
    tokio::spawn(pass(from_client, to_server, Way { fuse: Some(fuse.clone()), asks: true, ..way.clone() }));
    tokio::spawn(pass(from_server, to_client, way));
}

/// One direction of a connection.
#[derive(Clone)]
struct Way {
    gate: watch::Receiver<bool>,
    deaf: watch::Sender<bool>,
    fuse: Option<Fuse>,
    epoch: (u64, watch::Receiver<u64>),
    conversation: Conversation,
    /// True for the direction from the client to the server.
    asks: bool,
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut way: Way) {
    let mut bytes = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        match way.asks {
            true => way.conversation.asked(&bytes[..length]),
            false => way.conversation.answered(),
        }
        if way.fuse.as_ref().is_some_and(|fuse| fuse.burns(&bytes[..length])) {
            way.deaf.send_replace(true);
        }
        if *way.epoch.1.borrow() != way.epoch.0 {
            way.deaf.send_replace(true);
        }
        if *way.deaf.borrow() {
            // Taken and acknowledged, as by a host between that forgot where it should go.
            continue;
        }
        if way.gate.wait_for(|open| *open).await.is_err() || to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
    if *way.deaf.borrow() {
        return std::future::pending().await;
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
    // Two tries met it, and the same trouble is told once a minute.
    assert_eq!(service.events("postgres_starting").len(), 1);
    service.stop().await;
}

#[tokio::test]
async fn a_database_behind_a_black_hole_is_unavailable() {
    let database = Database::with_users(5).await;
    let proxy = Proxy::to(&database.options).await;
    let service = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("LEASE_SECONDS", 2);
    let service = service.with("FAILPOINTS", PROMPT).service().await;
    let (job, _) = service.export("full", "one").await;

    // A running export too: its rows stop, its heartbeat isn't answered.
    let (held, running) = service.held_export(&database, "delta", "one").await;
    proxy.open.send_replace(false);
    held.rollback().await.unwrap();
    let path = format!("/exports/{}", job["jobId"].as_str().unwrap());
    for (method, path) in [("GET", &*path), ("POST", "/exports/full"), ("GET", "/health"), ("GET", "/health/ready")] {
        let answer = service.call(method, path, &[("X-Consumer-ID", "two")]).await;
        assert!(answer.headers().contains_key("Retry-After"));
        assert_eq!(answer.status(), 503, "{method} {path}");
    }
    assert_eq!(service.call("GET", "/health/live", &[]).await.status(), 200);

    proxy.open.send_replace(true);
    until("the API answers again", async || service.call("GET", "/health", &[]).await.status() == 200).await;
    assert_eq!(service.ended(&running).await["status"], "completed");
    service.export("delta", "one").await;
    service.stop().await;
}

#[tokio::test]
async fn connections_that_fell_silent_while_they_were_idle_cost_no_caller_an_answer() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let service =
        Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("API_CONNECTIONS", 4).service().await;
    service.export("full", "one").await;
    let ask = async || {
        let answers = (0..12).map(|_| service.call("GET", "/exports", &[]));
        join_all(answers).await.into_iter().map(|answer| answer.status().as_u16()).collect::<Vec<_>>()
    };
    assert_eq!(ask().await, [200; 12], "the pool is full now");
    service.call("GET", "/consumers", &[]).await;
    // Silences every connection that there is; later ones live.
    proxy.epoch.send_modify(|epoch| *epoch += 1);
    assert_eq!(ask().await, [200; 12]);
    assert_eq!(service.call("GET", "/consumers", &[]).await.status(), 200);
    assert_eq!(service.call("GET", "/health", &[]).await.status(), 200);
    service.export("delta", "one").await;
    service.stop().await;
}

/// Returns the state of the only consumer, as `GET /consumers` tells it.
async fn state(service: &Service) -> serde_json::Value {
    let answer: serde_json::Value = service.call("GET", "/consumers", &[]).await.json().await.unwrap();
    answer["items"][0]["state"].clone()
}

#[tokio::test]
async fn a_call_that_was_never_answered_keeps_no_place_in_its_pool() {
    let database = Database::new().await;
    let proxy = Proxy::to(&database.options).await;
    let start = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("FAILPOINTS", PROMPT);
    let service = start.service().await;
    service.export("full", "one").await;
    // Repeats this for each connection of the pool.
    for _ in 0..2 {
        proxy.silence("source.lag.list");
        // A call that comes just before the end of a look shares its failure, and sends nothing.
        eventually("a look is not answered", async || {
            assert_eq!(state(&service).await, serde_json::Value::Null);
            proxy.has_silenced().then_some(())
        })
        .await;
    }
    until("a look is answered", async || state(&service).await == "fresh").await;
    service.stop().await;
}

/// A call of the API ends so if the database is slow, or if its client is gone.
#[tokio::test]
async fn a_begin_that_is_cancelled_leaves_the_next_caller_no_transaction() {
    let database = Database::empty_with("create table public.written (id int)").await;
    let pool = cdc_export::postgres::Database::from(database.options.clone()).pool();
    for written in 1..=5_i64 {
        let mut conn = pool.acquire().await.unwrap();
        // Polls it once, which sends BEGIN.
        drop(conn.begin().now_or_never());
        drop(conn);
        sqlx::raw_sql("insert into public.written values (1)").execute(&pool).await.unwrap();
        assert_eq!(database.one::<i64>("select count(*) from public.written").await, written);
    }
}

#[tokio::test]
async fn an_export_whose_connection_falls_silent_is_tried_again_unless_all_rows_are_there() {
    let steps = [
        ("source.session.pid", "delta", 1),
        ("source.snapshot.begin\n", "delta", 2),
        ("source.snapshot.open", "delta", 2),
        ("source.snapshot.import", "delta", 2),
        // The leader and the heartbeat live on: only a look at the reader shows that it never hears of its rows.
        ("source.copy.changes", "delta", 2),
        ("source.copy.changes", "incremental", 2),
        ("source.copy.table", "full", 2),
        ("source.snapshot.begin_commit", "delta", 2),
        // All rows are in the file by then.
        ("source.import.end", "delta", 1),
        ("source.snapshot.commit", "delta", 2),
    ];
    for (step, export_type, attempts) in steps {
        falls_silent_at(step, export_type, attempts).await;
    }
}

/// An export of this type whose connection falls silent when it sends `step`, and how many attempts it takes.
async fn falls_silent_at(step: &'static str, export_type: &'static str, attempts: u64) {
    let database = Database::with_users(5).await;
    let proxy = Proxy::to(&database.options).await;
    // The first export is on fresh connections: later ones don't send a statement's text again.
    let start = Start::plain().with("DATABASE_URL", url(&database, &proxy)).with("LEASE_SECONDS", 5).with("WORKERS", 1);
    proxy.silence(step);
    let service = start.service().await;
    let id = service.submit(export_type, "one").await;
    eventually(step, async || proxy.has_silenced().then_some(())).await;
    let job = service.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(attempts)), "{step}: {job}");
    let left =
        "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'
                and xact_start < clock_timestamp() - interval '5 s'";
    until("no transaction is left behind", async || database.one::<i64>(left).await == 0).await;
    assert!(!service.log().contains("there is already a transaction"), "{}", service.log());
    service.stop().await;
}

/// Starts a service that gives up a silent connection after three seconds, for the table `slow` and its filter.
async fn slow(schema: &str, readers: u32) -> (Database, Service) {
    let database = Database::empty_with(schema).await;
    let catalog =
        Catalog::of("[[dataset]]\nname = \"slow\"\ntable = \"slow\"\nupdated_at = \"at\"\nfilter = \"takes_long(id)\"");
    catalog.track(&database, "slow").await;
    let start = catalog.start(&database).with("FAILPOINTS", "source.answer=time:3000").with("LEASE_SECONDS", 3);
    let service = start.with("READERS", readers).service().await;
    (database, service)
}

#[tokio::test]
async fn a_statement_that_takes_long_is_not_taken_for_a_lost_connection() {
    let schema = "create table slow (id bigint primary key, at timestamptz not null default now());
                  insert into slow (id) select generate_series(1, 11);
                  create function takes_long(id bigint) returns boolean language plpgsql immutable
                    as 'begin perform pg_sleep(0.35); return true; end'";
    // Nearly four seconds without a row, where a connection that the server doesn't work for is given up after three. A
    // delta asks the filter of each row four times.
    let (database, service) = slow(schema, 1).await;
    for export_type in ["full", "delta"] {
        let job = export(&service, export_type, "slow", "one").await;
        assert_eq!(job["attempt"], 1, "{job}");
        database.run("update slow set at = now() where id <= 4").await;
    }
    service.stop().await;
}

#[tokio::test]
async fn a_further_reader_that_is_quiet_for_long_is_not_taken_for_a_lost_one() {
    let schema = "create table slow (id bigint primary key, at timestamptz not null default now(), wide text);
                  alter table slow alter wide set storage plain;
                  insert into slow (id, wide) select n, repeat('x', 7000) from generate_series(1, 2300) n; analyze slow;
                  create function takes_long(id bigint) returns boolean language plpgsql immutable
                    as 'begin if id in (1, 300, 600) then perform pg_sleep(5); end if; return true; end'";
    // It connects when the leader's transaction has asked who is there, and is quiet for longer than a lost one may be.
    let (_database, service) = slow(schema, 2).await;
    let job = export(&service, "full", "slow", "one").await;
    assert_eq!((&job["attempt"], &job["rowsExported"]), (&json!(1), &json!(2300)), "{job}");
    service.stop().await;
}

#[tokio::test]
async fn an_api_without_a_free_connection_says_so_and_is_healthy() {
    let database = Database::new().await;
    let service = Start::on(&database).with("API_CONNECTIONS", 4).with("FAILPOINTS", PROMPT).service().await;
    let held = database.open("lock table cdc_export.lanes in access exclusive mode").await;
    let consumers: Vec<String> = (0..300).map(|n| format!("c{n}")).collect();
    let posts = consumers
        .iter()
        .map(async |consumer| service.call("POST", "/exports/full", &[("X-Consumer-ID", consumer)]).await);
    let health = async { service.call("GET", "/health", &[]).await.status() };
    let (answered, answers) = tokio::sync::watch::channel(false);
    let posts = async {
        let posts = join_all(posts).await;
        answered.send_replace(true);
        posts
    };
    let watch = async {
        let mut most = 0;
        while !*answers.borrow() {
            let backends = "select count(*) from pg_stat_activity where datname = current_database() and application_name like 'cdc-export%'";
            most = most.max(database.one::<i64>(backends).await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        most
    };
    let (posted, health, most) = tokio::join!(posts, health, watch);
    // This is the number in `.env.example`, for two workers and two readers.
    assert!(most <= (4 * 2 + 2 + 1) + (4 + 3), "{most} connections");
    assert_eq!(health, 200);
    for answer in posted {
        assert!(answer.headers().contains_key("Retry-After"));
        assert_eq!(refusal(answer).await, (503, "database_unavailable".to_owned()));
    }
    held.rollback().await.unwrap();
    let (job, _) = service.export("full", "c0").await;
    assert_eq!(job["status"], json!("completed"));
    service.stop().await;
}
