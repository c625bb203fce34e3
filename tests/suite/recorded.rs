//! Calls of jobs of one dataset get the answers of the build before jobs of several datasets.
//!
//! `recorded/answers.txt` contains the calls and those answers, and says how to read them.

use axum::Router;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::catalog::Catalog;
use crate::harness::{Database, HANG_TIMEOUT, Service, ends, eventually, serving};

const RECORDING: &str = include_str!("recorded/answers.txt");
const CATALOG: &str = include_str!("recorded/datasets.toml");

/// The recorded headers, in the order of the recording.
const HEADERS: &str = "Location Content-Type Content-Disposition Content-Range ETag Accept-Ranges Retry-After Allow";

/// Members of JSON whose values differ from run to run.
const VARIABLE: [&str; 5] = ["source", "snapshot", "oldestTransactionSeconds", "logBytes", "logBytesMax"];
/// The same, except that null stays.
const NULL_OR_VARIABLE: [&str; 3] = ["openTransactions", "durationSeconds", "behindSeconds"];

/// Kinds of texts that differ from run to run, with their shapes: `9` stands for a digit, `x` for a hexadecimal digit.
/// The rows of the table have times of 1999, which are not masked.
const SHAPES: [(&str, &str); 4] = [
    ("id", "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"),
    ("sha256", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
    ("time", "2099-99-99T99:99:99.999999Z"),
    ("second", "20999999T999999Z"),
];

#[tokio::test]
async fn a_job_of_one_dataset_is_answered_as_recorded() {
    let (sender, mut events) = mpsc::channel(100);
    let hook = async move |body: String| sender.send(body).await.unwrap();
    let receiver = serving(Router::new().fallback(hook)).await;
    let database = Database::new().await;
    let catalog = Catalog::of(&CATALOG.replace("RECEIVER", &receiver));
    let create = ["keys", "create", "--json", "--name", "partner", "--consumer", "search", "--dataset", "users"];
    let (created, _) = ends(catalog.command(&database, &create).await, 0, "");
    let key = serde_json::from_str::<Value>(&created).unwrap()["key"].as_str().unwrap().to_owned();
    let start = catalog.start(&database).with("MANIFESTS", "on").with("MAX_OPEN_JOBS", 2);
    let service = start.with("HOOK_SECRET", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3").service().await;
    let mut masks = Masks { folder: service.output().display().to_string(), values: vec![("<key>".to_owned(), key)] };
    let mut connection = database.pool.acquire().await.unwrap();
    let mut line = 1;
    for text in RECORDING.split("\n\n") {
        let step = Step::of(text);
        let place = format!("answers.txt, line {line}: {}", step.call.trim_end());
        let [statements, call, until] = [step.statements, step.call, step.until].map(|text| masks.unmasked(&text));
        if !statements.is_empty() {
            sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *connection).await.unwrap();
        }
        let answer = match call.trim_end() {
            "" => String::new(),
            "EVENT" => format!("\n{}", timeout(HANG_TIMEOUT, events.recv()).await.expect("an event").unwrap()),
            _ => {
                let answered = async || Some(answer_to(&service, &call).await).filter(|text| text.contains(&*until));
                eventually(&place, answered).await
            }
        };
        require_same(&place, &step.answer, &masks.masked(&answer));
        line += text.lines().count() + 1;
    }
}

/// A paragraph of the recording.
#[derive(Default)]
struct Step {
    statements: String,
    call: String,
    until: String,
    answer: String,
}

impl Step {
    fn of(text: &str) -> Step {
        let mut step = Step::default();
        for line in text.lines() {
            let (part, before, after) = match line.chars().next() {
                Some('$') => (&mut step.statements, "", "\n"),
                Some('>') => (&mut step.call, "", "\n"),
                Some('?') => (&mut step.until, "", ""),
                Some('<') => (&mut step.answer, "", "\n"),
                Some('|') => (&mut step.answer, "\n", ""),
                Some('+') => (&mut step.answer, "", ""),
                _ => continue,
            };
            part.extend([before, line.get(2..).unwrap_or_default(), after]);
        }
        step
    }
}

/// Makes a call. Returns the status and the headers of the answer, a line each. An empty line and the body follow if
/// there is a body.
async fn answer_to(service: &Service, call: &str) -> String {
    let (head, body) = call.split_once("\n\n").unwrap_or((call, ""));
    let (request, headers) = head.split_once('\n').unwrap_or((head, ""));
    let (method, path) = request.split_once(' ').unwrap();
    let headers: Vec<_> = headers.lines().map(|header| header.split_once(": ").unwrap()).collect();
    let answer = match body {
        "" => service.call(method, path, &headers).await,
        body => service.post(path, &headers, &serde_json::from_str(body).unwrap()).await,
    };
    let header = |name| Some(format!("{name}: {}\n", answer.headers().get(name)?.to_str().unwrap()));
    let headers: String = HEADERS.split(' ').filter_map(header).collect();
    let head = format!("{}\n{headers}", answer.status().as_u16());
    let body = String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned();
    if body.is_empty() { head } else { format!("{head}\n{body}") }
}

/// Asserts that an answer is the recorded one. The message shows the texts around the first difference.
#[track_caller]
fn require_same(call: &str, recorded: &str, answer: &str) {
    let same = recorded.bytes().zip(answer.bytes()).take_while(|(recorded, answer)| recorded == answer).count();
    let from = same.saturating_sub(80);
    let around = |text: &str| String::from_utf8_lossy(&text.as_bytes()[from..text.len().min(same + 80)]).into_owned();
    assert!(recorded == answer, "{call}\nrecorded: …{}…\nanswered: …{}…", around(recorded), around(answer));
}

/// Replaces values that differ from run to run by masks, and back.
struct Masks {
    folder: String,
    /// The masks with a number, such as `<id 1>`, each with its value.
    values: Vec<(String, String)>,
}

impl Masks {
    fn unmasked(&self, text: &str) -> String {
        self.values.iter().fold(text.to_owned(), |text, (mask, value)| text.replace(mask, value))
    }

    fn masked(&mut self, text: &str) -> String {
        let text = text.replace(&self.folder, "<folder>");
        let (mut masked, mut rest) = (String::new(), &*text);
        while let Some(next) = rest.chars().next() {
            let (word, length) = self.mask(&masked, rest).unwrap_or_else(|| (next.to_string(), next.len_utf8()));
            masked += &word;
            rest = &rest[length..];
        }
        masked
    }

    /// Returns the mask of the variable text at the beginning of `rest`, and the length of that text.
    fn mask(&mut self, before: &str, rest: &str) -> Option<(String, usize)> {
        if before.ends_with("\"nextCursor\":\"") {
            let length = rest.find('"')?;
            return Some((self.numbered("cursor", &rest[..length]), length));
        }
        let member = before.strip_suffix("\":").and_then(|before| before.rsplit('"').next()).unwrap_or_default();
        if VARIABLE.contains(&member) || NULL_OR_VARIABLE.contains(&member) && !rest.starts_with("null") {
            let length = match rest.as_bytes()[0] {
                b'"' => rest[1..].find('"')? + 2,
                b'{' => rest.find('}')? + 1,
                _ => rest.find([',', '}'])?,
            };
            return Some(("<any>".to_owned(), length));
        }
        let (kind, shape) = *SHAPES.iter().find(|(_, shape)| fits(rest, shape))?;
        let (text, behind) = rest.split_at(shape.len());
        // The service appends a number to a name of a file that exists.
        let number = if kind == "second" && fits(behind, "-9") { 2 } else { 0 };
        let is_numbered = matches!(kind, "id" | "sha256");
        let mask = if is_numbered { self.numbered(kind, text) } else { format!("<{kind}>") };
        Some((mask, text.len() + number))
    }

    fn numbered(&mut self, kind: &str, value: &str) -> String {
        let of_kind = self.values.iter().filter(|(mask, _)| mask.starts_with(&format!("<{kind} ")));
        let known = of_kind.clone().find(|(_, known)| known == value).map(|(mask, _)| mask.clone());
        let next = of_kind.count() + 1;
        known.unwrap_or_else(|| {
            let mask = format!("<{kind} {next}>");
            self.values.push((mask.clone(), value.to_owned()));
            mask
        })
    }
}

fn fits(text: &str, shape: &str) -> bool {
    let is_of = |(byte, expected): (u8, u8)| match expected {
        b'9' => byte.is_ascii_digit(),
        b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        _ => byte == expected,
    };
    text.len() >= shape.len() && text.bytes().zip(shape.bytes()).all(is_of)
}
