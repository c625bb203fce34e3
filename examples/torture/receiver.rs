//! A receiver of webhooks that refuses, hangs, answers late and goes away. It compares each event with the database at
//! that moment. By the end of the run, the end of each job must have arrived, under one id.
//!
//! It refuses an event that it can't check at that moment, so the service has to deliver it again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Method;
use ring::hmac;
use serde_json::Value;
use sqlx::PgConnection;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::clients::Caller;
use crate::ledger;
use crate::random::Random;
use crate::report::locked;
use crate::trial::World;

pub(crate) const SECRET_ENV: &str = "RECEIVER_SECRET";
const KEY: &[u8] = b"held against the torture's own";

/// Time after which the service gives up a post. The service ignores later answers.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// Largest age of a signature in seconds. A post is signed just before it is sent, and no stop lasts that long.
const SIGNED_WITHIN: u64 = 60;
/// Longest time from when the receiver accepts everything until all events have arrived.
const TOLD_WITHIN: Duration = Duration::from_secs(30);
/// Pause after a first try. Deliveries that are due by then arrive by themselves; the receiver requests later ones.
const COMES_BY_ITSELF: Duration = Duration::from_secs(7);

#[derive(Clone, Copy)]
enum Answer {
    /// Answers with 200, after this time.
    Taken(Duration),
    Refused,
    Dropped,
    /// Answers with 200 when the service has given up, or not at all, until the connection is gone.
    Late(Duration),
}

impl Answer {
    fn draw(random: &mut Random) -> Answer {
        match random.below(100) {
            0..55 => Answer::Taken(Duration::ZERO),
            55..68 => Answer::Taken(random.millis(100, 3_000)),
            68..82 => Answer::Refused,
            82..92 => Answer::Dropped,
            92..96 => Answer::Late(GIVEN_UP + random.millis(500, 5_000)),
            _ => Answer::Late(Duration::MAX),
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Posts {
    pub(crate) tries: usize,
    /// Number of events among them, by their ids.
    pub(crate) ids: usize,
    pub(crate) refused: usize,
    pub(crate) dropped: usize,
    /// Posts answered when the service had given up, or never.
    pub(crate) late: usize,
    /// Posts refused because the database couldn't be queried.
    pub(crate) unchecked: usize,
    /// Posts about the time before a restore of the database, by processes that still held them.
    pub(crate) strays: usize,
}

struct Event {
    id: Uuid,
    end: String,
    /// Number of posts of this event that were answered with 200 in time.
    taken: usize,
}

#[derive(Default)]
struct Told {
    events: HashMap<Uuid, Event>,
    ids: HashSet<Uuid>,
    /// Events of the time before a restore, which the database doesn't know any more.
    forgotten: HashSet<Uuid>,
    posts: Posts,
}

pub(crate) struct Receiver {
    port: u16,
    /// A socket that is bound and doesn't listen. It keeps the port reserved while the receiver is away.
    _reserved: TcpSocket,
    told: Mutex<Told>,
    answers: Mutex<Random>,
    /// True once the receiver accepts everything.
    is_tame: watch::Sender<bool>,
    conn: tokio::sync::Mutex<Option<PgConnection>>,
}

impl Receiver {
    pub(crate) fn new(seed: u64) -> Result<Receiver> {
        let reserved = bound(0)?;
        Ok(Receiver {
            port: reserved.local_addr()?.port(),
            _reserved: reserved,
            told: Mutex::default(),
            answers: Mutex::new(Random::new(seed, 7_000)),
            is_tame: watch::Sender::new(false),
            conn: tokio::sync::Mutex::default(),
        })
    }

    /// Returns the receiver's block of the operator's file of each replica.
    pub(crate) fn block(&self) -> String {
        format!(
            "\n[[webhook]]\nname = \"receiver\"\nurl = \"http://127.0.0.1:{}/\"\nsecret_env = \"{SECRET_ENV}\"\n\
             events = [\"export.completed\", \"export.skipped\", \"export.failed\", \"export.cancelled\"]\n\
             allow_http = true\nallow_private = true\n",
            self.port
        )
    }

    pub(crate) fn secret() -> String {
        format!("whsec_{}", STANDARD.encode(KEY))
    }

    pub(crate) fn posts(&self) -> Posts {
        let told = locked(&self.told);
        Posts { ids: told.ids.len(), ..told.posts.clone() }
    }

    /// Adapts to a restored database: it has these ends, and of the events that it had `before` these are `left`.
    /// Events of other ends needn't be right any more.
    pub(crate) fn put_back(&self, ends: &HashMap<Uuid, String>, before: HashSet<Uuid>, left: &HashSet<Uuid>) {
        let mut told = locked(&self.told);
        let is_so = |job: &Uuid, event: &Event| ends.get(job) == Some(&event.end);
        // The events of a skipped job are deleted with it, so some of them aren't in `before`.
        let wrong: Vec<Uuid> =
            told.events.iter().filter(|(job, event)| !is_so(job, event)).map(|(_, it)| it.id).collect();
        told.events.retain(|job, event| is_so(job, event));
        told.forgotten.extend(before.into_iter().chain(wrong));
        told.forgotten.retain(|id| !left.contains(id));
    }

    /// Waits for this time, or for ever if the receiver is tame.
    async fn stays(&self, time: Duration) {
        tokio::time::sleep(time).await;
        if *self.is_tame.borrow() {
            std::future::pending().await
        }
    }

    async fn tame(&self) {
        // An error means that the receiver is gone.
        let _ = self.is_tame.subscribe().wait_for(|is_tame| *is_tame).await;
    }

    /// Asks the database for the status in which a job has ended, and for the datasets that its event must have.
    async fn ask(&self, world: &World, job: Uuid) -> Result<Option<(String, bool, Vec<String>)>, sqlx::Error> {
        let mut kept = self.conn.lock().await;
        let mut conn = match kept.take() {
            Some(conn) => conn,
            None => world.cluster.connect().await?,
        };
        let found = sqlx::query_as("select status, is_of_datasets, datasets from torture.ends where job = $1")
            .bind(job)
            .fetch_optional(&mut conn)
            .await?;
        *kept = Some(conn);
        Ok(found)
    }
}

pub(crate) async fn ends(conn: &mut PgConnection) -> Result<HashMap<Uuid, String>> {
    let ends: Vec<(Uuid, String)> =
        sqlx::query_as("select job, status from torture.ends where status <> 'open'").fetch_all(conn).await?;
    Ok(ends.into_iter().collect())
}

pub(crate) async fn planned(conn: &mut PgConnection) -> Result<HashSet<Uuid>> {
    let ids: Vec<Uuid> = sqlx::query_scalar("select id from cdc_export.deliveries").fetch_all(conn).await?;
    Ok(ids.into_iter().collect())
}

/// Returns a socket that is bound to a port and doesn't listen.
pub(crate) fn bound(port: u16) -> Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(([127, 0, 0, 1], port).into())?;
    Ok(socket)
}

/// Listens and goes away by turns, until the receiver is tame. Then it listens on.
pub(crate) async fn listen(world: Arc<World>) -> Result<()> {
    let receiver = &world.receiver;
    let mut random = Random::new(world.seed, 7_001);
    loop {
        let listener = bound(receiver.port)?.listen(128)?;
        tokio::select! {
            () = accept(&world, listener) => {}
            () = receiver.stays(random.millis(4_000, 15_000)) => {}
        }
        world.report.announce("receiver: away");
        tokio::select! {
            () = receiver.tame() => {}
            () = tokio::time::sleep(random.millis(500, 4_000)) => {}
        }
    }
}

/// Answers requests until this future is dropped, which also ends the connections.
async fn accept(world: &Arc<World>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, _)) = listener.accept().await else { continue };
        let world = Arc::clone(world);
        connections.spawn(async move {
            let service = service_fn(|request| answer(&world, request));
            // An error means that the sender is gone, or got no answer.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Checks a post, and draws an answer to it. An error closes the connection.
async fn answer(world: &Arc<World>, request: Request<Incoming>) -> Result<Response<String>> {
    let receiver = &world.receiver;
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    // The post has arrived, whether or not the sender lives to hear the answer. So a task of its own checks it.
    let checked = tokio::spawn(check_post(Arc::clone(world), head.headers, body.to_vec())).await?;
    let Some((job, id)) = checked else { return said(StatusCode::SERVICE_UNAVAILABLE) };
    let is_tame = *receiver.is_tame.borrow();
    let answer = if is_tame { Answer::Taken(Duration::ZERO) } else { Answer::draw(&mut locked(&receiver.answers)) };
    let count = |of: fn(&mut Posts) -> &mut usize| *of(&mut locked(&receiver.told).posts) += 1;
    match answer {
        Answer::Taken(after) => {
            tokio::time::sleep(after).await;
            // The database may have been put back meanwhile.
            if let Some(event) = locked(&receiver.told).events.get_mut(&job).filter(|event| event.id == id) {
                event.taken += 1;
            }
            said(StatusCode::OK)
        }
        Answer::Refused => {
            count(|posts| &mut posts.refused);
            said(StatusCode::INTERNAL_SERVER_ERROR)
        }
        Answer::Dropped => {
            count(|posts| &mut posts.dropped);
            bail!("dropped")
        }
        Answer::Late(after) => {
            count(|posts| &mut posts.late);
            tokio::select! {
                () = tokio::time::sleep(after) => said(StatusCode::OK),
                () = receiver.tame() => bail!("held for long enough"),
            }
        }
    }
}

fn said(status: StatusCode) -> Result<Response<String>> {
    Ok(Response::builder().status(status).body(String::new())?)
}

/// 11: Checks that a post is signed, agrees with the database, and has the same id as earlier posts of that end.
/// Returns the job and the id, or `None` if the post can't be accepted.
async fn check_post(world: Arc<World>, headers: HeaderMap, body: Vec<u8>) -> Option<(Uuid, Uuid)> {
    let (receiver, era) = (&world.receiver, world.era());
    let Post { id, job, end, status, is_skipped, is_of_datasets, datasets } = match Post::read(&headers, &body) {
        Ok(post) => post,
        Err(error) => {
            world.report.red("11", format!("a post that is none: {error:#}: {}", String::from_utf8_lossy(&body)));
            return None;
        }
    };
    let found = receiver.ask(&world, job).await;
    let mut told = locked(&receiver.told);
    told.posts.tries += 1;
    told.ids.insert(id);
    if told.forgotten.contains(&id) {
        told.posts.strays += 1;
        return None;
    }
    let found = match found {
        // Nobody restores the database while this is locked.
        Ok(found) if era.is_multiple_of(2) && era == world.era() => found,
        _ => {
            told.posts.unchecked += 1;
            return None;
        }
    };
    let shown = if end == "skipped" { "completed" } else { end.as_str() };
    let due = Some((end.clone(), is_of_datasets, datasets));
    if found != due || status != shown || is_skipped != (end == "skipped") {
        let line = format!("job {job} was told to be {due:?} when it was {found:?}; the event shows it as {status}");
        world.report.red("11", line);
    }
    let event = told.events.entry(job).or_insert_with(|| Event { id, end: end.clone(), taken: 0 });
    if event.id != id || event.end != end {
        let line = format!("job {job} was told to be {} under {}, and to be {end} under {id}", event.end, event.id);
        world.report.red("11", line);
    }
    Some((job, id))
}

struct Post {
    id: Uuid,
    job: Uuid,
    end: String,
    /// The status of the job, as the event shows it.
    status: String,
    is_skipped: bool,
    is_of_datasets: bool,
    /// The datasets of the job's exports, in the order of their names.
    datasets: Vec<String>,
}

impl Post {
    fn read(headers: &HeaderMap, body: &[u8]) -> Result<Post> {
        let header = |name: &str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.with_context(|| format!("it has no {name}"))
        };
        let (id, signed_at) = (header("webhook-id")?, header("webhook-timestamp")?);
        let signed = [id.as_bytes(), b".", signed_at.as_bytes(), b".", body].concat();
        let due = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, KEY), &signed);
        ensure!(header("webhook-signature")? == format!("v1,{}", STANDARD.encode(due)), "it is not signed");
        let age = Utc::now().timestamp().abs_diff(signed_at.parse()?);
        ensure!(age <= SIGNED_WITHIN, "it was signed {age} s off");

        let event: Value = serde_json::from_slice(body)?;
        ensure!(event["id"] == id, "its id is not its header's");
        let end = event["type"].as_str().and_then(|name| name.strip_prefix("cdc-export.export.")?.strip_suffix(".v1"));
        let end = end.context("its type is unknown")?.to_owned();
        ensure!(["completed", "skipped", "failed", "cancelled"].contains(&end.as_str()), "{end} is no end");
        let data = &event["data"];
        let text = |member: &str| data[member].as_str().with_context(|| format!("it has no {member}"));
        let (job, status) = (text("jobId")?.parse()?, text("status")?.to_owned());
        let exports = ledger::exports(data);
        let datasets: Vec<_> =
            exports.iter().filter_map(|export| export["dataset"].as_str().map(str::to_owned)).collect();
        let (is_skipped, is_of_datasets) = (data["skipped"] == true, data["exports"].is_array());
        let about = if is_of_datasets { "_datasets" } else { text("dataset")? };
        let due = data["consumerId"].as_str().map_or(about.to_owned(), |consumer| format!("{about}/{consumer}"));
        ensure!(event["subject"] == due, "its subject is not {due}");
        Ok(Post { id: id.parse()?, job, end, status, is_skipped, is_of_datasets, datasets })
    }
}

/// Makes the receiver accept everything, and requests the events that it has not accepted yet.
pub(crate) async fn settle(world: &World) -> Result<()> {
    world.receiver.is_tame.send_replace(true);
    let begun = Instant::now();
    let mut conn = world.cluster.connect().await?;
    let caller = Caller::new(world, world.replicas[0].address().context("it runs")?);
    let mut asked_for = HashSet::new();
    loop {
        let mut left = Vec::new();
        for status in ["pending", "dead"] {
            let page = caller.get(&format!("/deliveries?status={status}&limit=100")).await;
            let (_, mut page) = page.context("nothing is wrong any more")?;
            left.extend(page["items"].as_array_mut().map(std::mem::take).context("a page has items")?);
        }
        let Some(first) = left.first() else { break };
        if begun.elapsed() > TOLD_WITHIN {
            let line =
                format!("{} events are not delivered {TOLD_WITHIN:?} after the receiver is well: {first}", left.len());
            world.report.red("11", line);
            return Ok(());
        }
        // The time by the database's clock, which may be off.
        let now: DateTime<Utc> = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut conn).await?;
        for delivery in left {
            let id = delivery["deliveryId"].as_str().context("a delivery has an id")?.to_owned();
            let due = delivery["nextAttemptAt"].as_str().map(DateTime::parse_from_rfc3339).transpose()?;
            if due.is_none_or(|due| due > now + COMES_BY_ITSELF) && asked_for.insert(id.clone()) {
                caller.call(Method::POST, &format!("/deliveries/{id}/redeliver"), None).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("told in {:.1} s, {} events asked for again", begun.elapsed().as_secs_f64(), asked_for.len());
    check_all(world, &mut conn).await
}

/// 11: Checks that the receiver got and accepted each end, and nothing else.
async fn check_all(world: &World, conn: &mut PgConnection) -> Result<()> {
    let ended = ends(conn).await?;
    let told = locked(&world.receiver.told);
    for (job, status) in &ended {
        match told.events.get(job) {
            Some(event) if event.taken > 0 && event.end == *status => {}
            Some(Event { end, taken, .. }) => {
                world
                    .report
                    .red("11", format!("{job} is {status}; it was told to be {end}, and that was taken {taken} times"));
            }
            None => world.report.red("11", format!("nobody was told that {job} is {status}")),
        }
    }
    for (job, event) in told.events.iter().filter(|(job, _)| !ended.contains_key(job)) {
        world.report.red("11", format!("{job} was told to be {}, and has not ended", event.end));
    }
    Ok(())
}
