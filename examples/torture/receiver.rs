//! A receiver of webhooks that is as bad as any: it fails, hangs, answers late and is away. It writes down what it was told, and asks the
//! database at each post whether that is so.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::random::Random;
use crate::report::locked;
use crate::trial::World;

/// What the posts are signed with.
const SECRET: &str = "dG9ydHVyZWQgdG9ydHVyZWQgdG9ydHVyZWQ=";
/// The variable that has it.
pub(crate) const SECRET_ENV: &str = "RECEIVER_SECRET";
/// Longer than the service waits for an answer.
const HANGS: Duration = Duration::from_secs(20);
/// So long after the database was put back a post may tell of what was before.
const OF_BEFORE: Duration = Duration::from_secs(40);
/// From the end of all faults until everything is told.
const PATIENCE: Duration = Duration::from_secs(60);

/// The receiver, as the other tasks see it.
pub(crate) struct Receiver {
    port: u16,
    told: Mutex<Told>,
    /// Whether it is as bad as it can be.
    is_bad: AtomicBool,
    posts: AtomicUsize,
    refused: AtomicUsize,
    /// Posts of which the database was asked at once.
    checked: AtomicUsize,
    random: Mutex<Random>,
    /// The era, and since when.
    era: Mutex<(u64, Option<Instant>)>,
    conn: tokio::sync::Mutex<Option<PgConnection>>,
}

/// The events by their jobs and what they say: the ids under which that was told.
#[derive(Default)]
struct Told(BTreeMap<(Uuid, String), BTreeSet<String>>);

/// What was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) events: usize,
    pub(crate) posts: usize,
    pub(crate) refused: usize,
    pub(crate) checked: usize,
}

impl Receiver {
    pub(crate) async fn new(seed: u64) -> Result<Receiver> {
        // Nobody else gets the port while it is away: it is tried again.
        let port = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
        Ok(Receiver {
            port,
            told: Mutex::default(),
            is_bad: AtomicBool::new(true),
            posts: AtomicUsize::default(),
            refused: AtomicUsize::default(),
            checked: AtomicUsize::default(),
            random: Mutex::new(Random::new(seed, 7_000)),
            era: Mutex::default(),
            conn: tokio::sync::Mutex::default(),
        })
    }

    /// What the operator's file of each replica has of it.
    pub(crate) fn block(&self) -> String {
        format!(
            "\n[[webhook]]\nname = \"receiver\"\nurl = \"http://127.0.0.1:{}/\"\nsecret_env = \"{SECRET_ENV}\"\n\
             allow_http = true\nallow_private = true\n",
            self.port
        )
    }

    /// The variable that the file names.
    pub(crate) fn secret() -> String {
        format!("whsec_{SECRET}")
    }

    pub(crate) fn heard(&self) -> Heard {
        let read = |count: &AtomicUsize| count.load(Ordering::SeqCst);
        Heard {
            events: locked(&self.told).0.len(),
            posts: read(&self.posts),
            refused: read(&self.refused),
            checked: read(&self.checked),
        }
    }

    /// Whether the database is the one that the posts tell of.
    fn is_settled(&self, world: &World) -> bool {
        let mut era = locked(&self.era);
        if era.0 != world.era() {
            *era = (world.era(), Some(Instant::now()));
        }
        era.1.is_none_or(|since| since.elapsed() > OF_BEFORE)
    }
}

/// Listens, and now and then doesn't, until it is dropped.
pub(crate) fn listen(world: Arc<World>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut random = Random::new(world.seed, 7_001);
        loop {
            let receiver = &world.receiver;
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", receiver.port)).await {
                let routes = Router::new().fallback(post).with_state(Arc::clone(&world));
                let serving = tokio::spawn(async move { axum::serve(listener, routes).await });
                tokio::time::sleep(random.millis(3_000, 12_000)).await;
                while !receiver.is_bad.load(Ordering::SeqCst) {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                serving.abort();
            }
            tokio::time::sleep(random.millis(200, 2_000)).await;
        }
    })
}

async fn post(State(world): State<Arc<World>>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let receiver = &world.receiver;
    receiver.posts.fetch_add(1, Ordering::SeqCst);
    if let Err(why) = take(&world, &headers, &body).await {
        world.report.red("11", format!("{why:#}: {}", String::from_utf8_lossy(&body)));
    }
    let drawn = locked(&receiver.random).below(100);
    if !receiver.is_bad.load(Ordering::SeqCst) {
        return StatusCode::NO_CONTENT;
    }
    let answer = match drawn {
        0..12 => StatusCode::INTERNAL_SERVER_ERROR,
        12..16 => StatusCode::FOUND,
        16..22 => {
            tokio::time::sleep(HANGS).await;
            StatusCode::OK
        }
        22..40 => {
            tokio::time::sleep(Duration::from_millis(50 * (drawn - 20))).await;
            StatusCode::OK
        }
        _ => StatusCode::NO_CONTENT,
    };
    if !answer.is_success() {
        receiver.refused.fetch_add(1, Ordering::SeqCst);
    }
    answer
}

/// Writes down what a post says, if the service signed it and it is so.
async fn take(world: &World, headers: &HeaderMap, body: &[u8]) -> Result<()> {
    let header = |name: &str| Ok::<_, anyhow::Error>(headers.get(name).with_context(|| name.to_owned())?.to_str()?);
    let (id, time) = (header("webhook-id")?, header("webhook-timestamp")?);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &STANDARD.decode(SECRET)?);
    let signed = [id.as_bytes(), b".", time.as_bytes(), b".", body].concat();
    let tag = header("webhook-signature")?.strip_prefix("v1,").context("a signature of the first kind")?;
    let is_signed = hmac::verify(&key, &signed, &STANDARD.decode(tag)?).is_ok();
    anyhow::ensure!(is_signed, "an event that nobody signed");
    let event: Value = serde_json::from_slice(body)?;
    let said = |pointer: &str| {
        let text = event.pointer(pointer).and_then(Value::as_str);
        text.with_context(|| pointer.to_owned())
    };
    anyhow::ensure!(said("/id")? == id, "an event whose id is not the post's");
    let (job, status): (Uuid, _) = (said("/data/jobId")?.parse()?, said("/data/status")?);
    let word = said("/type")?.strip_prefix("cdc-export.export.").and_then(|word| word.strip_suffix(".v1"));
    let word = word.context("a type of an export's end")?;
    let settled_before = world.receiver.is_settled(world);
    anyhow::ensure!(word == status || !settled_before, "a job that is {status} is told to be {word}");
    let ids = {
        let mut told = locked(&world.receiver.told);
        let ids = told.0.entry((job, word.to_owned())).or_default();
        ids.insert(id.to_owned());
        ids.len()
    };
    // A job may end again after the database was put back.
    anyhow::ensure!(ids == 1 || world.era() > 0, "told under {ids} ids");
    let Ok(found) = look(world, job).await else { return Ok(()) };
    if !settled_before || !world.receiver.is_settled(world) {
        return Ok(());
    }
    world.receiver.checked.fetch_add(1, Ordering::SeqCst);
    anyhow::ensure!(found.as_deref() == Some(word), "told to be {word}, and the database has it as {found:?}");
    Ok(())
}

/// How a job stands in the database itself: a committed one without its name hasn't ended.
async fn look(world: &World, job: Uuid) -> Result<Option<String>> {
    let mut kept = world.receiver.conn.lock().await;
    let mut conn = match kept.take() {
        Some(conn) => conn,
        None => world.cluster.connect().await?,
    };
    let found = sqlx::query_scalar(
        "select case when status = 'completed' and published_at is null then 'committed' else status end from exports where id = $1",
    )
    .bind(job)
    .fetch_optional(&mut conn)
    .await?;
    *kept = Some(conn);
    Ok(found)
}

/// 11: with a receiver that takes everything, all is told that has ended.
pub(crate) async fn settle(world: &World) -> Result<()> {
    world.receiver.is_bad.store(false, Ordering::SeqCst);
    let mut conn = world.cluster.connect().await?;
    let begun = Instant::now();
    // Those that failed before have pauses of up to hours, and the killed have left some that are theirs for a minute.
    let due = "update cdc_export.deliveries set run_at = clock_timestamp() where delivered_at is null and run_at < 'infinity'";
    sqlx::query(due).execute(&mut conn).await?;
    loop {
        let waiting: i64 = sqlx::query_scalar("select count(*) from cdc_export.deliveries where delivered_at is null")
            .fetch_one(&mut conn)
            .await?;
        if waiting == 0 {
            break;
        }
        if begun.elapsed() > PATIENCE {
            world.report.red("11", format!("{waiting} events are not told {PATIENCE:?} after the last fault"));
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let ended: Vec<(Uuid, String)> = sqlx::query_as(
        "select id, status from exports where status in ('failed', 'cancelled') or status = 'completed' and published_at is not null",
    )
    .fetch_all(&mut conn)
    .await?;
    let told = locked(&world.receiver.told);
    for end in ended {
        if !told.0.contains_key(&end) {
            world.report.red("11", format!("nobody was told that {} is {}", end.0, end.1));
        }
    }
    Ok(())
}
