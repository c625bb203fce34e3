//! Stores, and gateways before them, that somebody else controls. Each is a small S3 in this process.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use cdc_destination::{
    BucketAddress, BucketSettings, Destination, Error, FileIdentity, Limited, Published, Settings, StagedFile,
};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::destinations::{hidden_file, name_of_a_file, staged};
use crate::harness::{lacks, reachable_folder};

/// The bytes of an answer that never ends, as far as this machine has time for it.
const ENDLESS: u64 = 96 << 20;
/// More than the service may read of any answer, and what is on the way.
const MOST: u64 = 48 << 20;

/// The secrets of the service, which the store and nobody else may see. No session token is shorter.
const TOKEN: &str = concat!(
    "IQoJb3JpZ2luX2VjEGEaCWV1LWNlbnRyYWwtMSJHMEUCIQDGEHEIMx7Zk0cVtqv1pQn5",
    "lYy3oB8wZs2rJd9uKfHh4TgIgBmXn6C5eRaSw1LqPzUo8wVnMkQe0b7TjXyDfA2sHcLr"
);
const SIGNATURE: &str = "sv=2021-12-02&sp=racwdl&sr=c&sig=GEHEIM%3D";

/// A request without its body.
struct Request {
    method: String,
    /// The path and the query.
    target: String,
    headers: HashMap<String, String>,
}

impl Request {
    /// Reads a request. Returns `None` at the end of the connection.
    async fn read(client: &mut BufReader<TcpStream>) -> Option<(Request, Bytes)> {
        let (mut first, mut headers) = (String::new(), HashMap::new());
        client.read_line(&mut first).await.ok().filter(|bytes| *bytes > 0)?;
        loop {
            let mut line = String::new();
            client.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next()?, words.next()?);
        let mut body = vec![0; headers.get("content-length").map_or(0, |length| length.parse().unwrap())];
        client.read_exact(&mut body).await.ok()?;
        Some((Request { method, target, headers }, body.into()))
    }

    fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    fn has(&self, method: &str, text: &str) -> bool {
        self.method == method && self.target.contains(text)
    }
}

enum Answer {
    /// The answer of S3.
    Honest,
    /// An answer with this status line, headers and body.
    Short(String),
    /// An answer of this status and these headers whose body never ends.
    Endless(&'static str),
}

type Rule = Box<dyn Fn(&Request) -> Answer + Send>;
/// Returns the head of an answer without an end, or `None` for an honest answer.
type IsEndless = fn(&Request) -> Option<&'static str>;

struct Store {
    address: String,
    rule: Arc<Mutex<Rule>>,
    /// The most bytes of a body without an end that the service took.
    taken: Arc<AtomicU64>,
}

#[derive(Default)]
struct Objects {
    uploads: HashMap<String, (String, Vec<u8>)>,
    whole: HashMap<String, (String, Vec<u8>)>,
}

impl Store {
    async fn start() -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let rule: Arc<Mutex<Rule>> = Arc::new(Mutex::new(Box::new(|_| Answer::Honest)));
        let (objects, taken) = (Arc::<Mutex<Objects>>::default(), Arc::<AtomicU64>::default());
        let (decide, count) = (Arc::clone(&rule), Arc::clone(&taken));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (decide, count, objects) = (Arc::clone(&decide), Arc::clone(&count), Arc::clone(&objects));
                tokio::spawn(async move {
                    let mut client = BufReader::new(stream);
                    while let Some((request, body)) = Request::read(&mut client).await {
                        let answer = decide.lock().unwrap()(&request);
                        let text = match answer {
                            Answer::Honest => objects.lock().unwrap().answer(&request, &body),
                            Answer::Short(text) => text.into_bytes(),
                            Answer::Endless(head) => return endless(&mut client, head, &count).await,
                        };
                        if client.write_all(&text).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Store { address, rule, taken }
    }

    fn rule(&self, rule: impl Fn(&Request) -> Answer + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// The store as a destination. The service has a session token of S3.
    fn s3(&self) -> Limited {
        let variables = [
            ("AWS_ENDPOINT_URL", self.address.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_SESSION_TOKEN", TOKEN),
        ];
        destination("s3://files/exports", &variables)
    }

    /// The store as a destination. The service has a shared access signature of Azure.
    fn azure(&self) -> Limited {
        let variables = [
            ("AZURE_STORAGE_ENDPOINT", self.address.as_str()),
            ("AZURE_ALLOW_HTTP", "true"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "acct"),
            ("AZURE_STORAGE_SAS_TOKEN", SIGNATURE),
        ];
        destination("az://files/exports", &variables)
    }
}

fn destination(url: &str, variables: &[(&str, &str)]) -> Limited {
    let address = BucketAddress::read(url, variables.iter().copied()).unwrap();
    // The suite is one process, and the first call of all its tests takes effect.
    failpoint::arm("sink.stall=time:1000").unwrap();
    Settings::Bucket(BucketSettings { address, part_bytes: 5 << 20 }).destination().unwrap()
}

async fn endless(client: &mut BufReader<TcpStream>, head: &str, taken: &AtomicU64) {
    let mut sent = 0;
    let chunk = [b"10000\r\n".as_slice(), &[b'A'; 1 << 16], b"\r\n"].concat();
    let head = format!("HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n");
    if client.write_all(head.as_bytes()).await.is_ok() {
        while sent < ENDLESS && client.write_all(&chunk).await.is_ok() {
            sent += 1 << 16;
            taken.fetch_max(sent, Ordering::SeqCst);
        }
    }
}

impl Objects {
    fn answer(&mut self, request: &Request, body: &[u8]) -> Vec<u8> {
        let path = request.path().to_owned();
        let query = request.target.split_once('?').map_or("", |(_, query)| query);
        let attempt = || request.headers.get("x-amz-meta-cdc-export-attempt").cloned().unwrap_or_default();
        let xml = |text: String| [head("200 OK", &[], text.len()).into_bytes(), text.into_bytes()].concat();
        let ok = || head("200 OK", &["ETag: \"x\""], 0).into_bytes();
        match request.method.as_str() {
            "POST" if query.starts_with("uploads") => {
                self.uploads.insert(path, (attempt(), Vec::new()));
                let text = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
                xml(text.to_owned())
            }
            "PUT" if query.contains("partNumber=") => {
                self.uploads.get_mut(&path).unwrap().1.extend(body);
                ok()
            }
            "POST" => {
                let upload = self.uploads.remove(&path).unwrap();
                self.whole.insert(path, upload);
                xml("<CompleteMultipartUploadResult><ETag>\"x\"</ETag></CompleteMultipartUploadResult>".to_owned())
            }
            "PUT" => {
                self.whole.insert(path, (attempt(), body.to_vec()));
                ok()
            }
            "DELETE" => {
                self.whole.remove(&path);
                head("204 No Content", &[], 0).into_bytes()
            }
            _ if query.contains("list-type=") => {
                xml("<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>".to_owned())
            }
            method => match self.whole.get(&path) {
                None => refusal("404 Not Found", "NoSuchKey").into_bytes(),
                Some((attempt, content)) => {
                    let attempt = format!("x-amz-meta-cdc-export-attempt: {attempt}");
                    let range = format!("Content-Range: bytes 0-{}/{0}", content.len().saturating_sub(1));
                    let mut headers = vec!["ETag: \"x\"", LAST_MODIFIED, &attempt];
                    let is_part = request.headers.contains_key("range");
                    headers.extend(is_part.then_some(range.as_str()));
                    let status = if is_part { "206 Partial Content" } else { "200 OK" };
                    let content = if method == "HEAD" { &[] } else { content.as_slice() };
                    let length = self.whole[&path].1.len();
                    [head(status, &headers, length).into_bytes(), content.to_vec()].concat()
                }
            },
        }
    }
}

const LAST_MODIFIED: &str = "Last-Modified: Thu, 26 Nov 2026 04:00:00 GMT";

fn head(status: &str, headers: &[&str], length: usize) -> String {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n")
}

fn with_body(status: &str, body: &str) -> Answer {
    Answer::Short(format!("{}{body}", head(status, &["Content-Type: text/plain"], body.len())))
}

fn refusal(status: &str, code: &str) -> String {
    let body = format!("<Error><Code>{code}</Code></Error>");
    format!("{}{body}", head(status, &[], body.len()))
}

/// Everything that the log says of an error.
fn logged(error: &Error) -> String {
    pg_session::failure::chain(error)
}

/// A file that is uploaded, and not published yet.
async fn uploaded(destination: &Limited) -> StagedFile {
    staged(destination, &hidden_file(), &name_of_a_file(), b"abc").await
}

#[tokio::test]
async fn an_answer_without_an_end_fills_no_memory() {
    let error = |request: &Request| request.has("GET", "/exports/").then_some("403 Forbidden");
    // Announces ten bytes.
    let mark = |request: &Request| {
        let head = "200 OK\r\nContent-Length: 10\r\nETag: \"x\"\r\nLast-Modified: Thu, 26 Nov 2026 04:00:00 GMT";
        request.has("GET", "/.cdc-export-store").then_some(head)
    };
    let page = |request: &Request| request.has("GET", "list-type=").then_some("200 OK");
    let completion = |request: &Request| request.has("POST", "uploadId=").then_some("200 OK");
    let refused = |request: &Request| request.has("POST", "uploadId=").then_some("400 Bad Request");
    let rules: [(&str, IsEndless); 5] =
        [("error", error), ("mark", mark), ("page", page), ("completion", completion), ("refused", refused)];
    for (name, is_endless) in rules {
        let store = Store::start().await;
        let destination = store.s3();
        destination.prepare().await.unwrap();
        let staged = uploaded(&destination).await;
        store.rule(move |request| is_endless(request).map_or(Answer::Honest, Answer::Endless));
        let failed = match name {
            "error" | "mark" => destination.require_room().await.err(),
            "page" => destination.hidden_files().await.err(),
            // The answer to a completion proves nothing, and there is no file.
            _ => destination.publish(&staged, "a.csv").await.err(),
        };
        assert!(failed.is_some(), "{name}");
        let taken = store.taken.load(Ordering::SeqCst);
        assert!((1 << 16..MOST).contains(&taken), "{name}: {taken} bytes");
    }
}

#[tokio::test]
async fn the_error_of_a_download_without_an_end_fills_no_memory() {
    let store = Store::start().await;
    let destination = store.s3();
    destination.prepare().await.unwrap();
    let staged = uploaded(&destination).await;
    let Published::Done(location) = destination.publish(&staged, "a.csv").await.unwrap() else { panic!("published") };
    let published = StagedFile { identity: FileIdentity { bytes: 3, location }, ..staged };
    let file = destination.open(&published, "a.csv").await.unwrap().expect("it is published");
    store.rule(|request| match request.headers.contains_key("range") {
        true => Answer::Endless("403 Forbidden"),
        false => Answer::Honest,
    });
    assert!(file.part(0, 3).await.is_err());
    let taken = store.taken.load(Ordering::SeqCst);
    assert!((1 << 16..MOST).contains(&taken), "{taken} bytes");
}

#[tokio::test]
async fn a_store_sends_no_request_to_another_host() {
    for status in ["301 Moved", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let store = Store::start().await;
        let other = Store::start().await;
        let heard = Arc::<Mutex<Vec<String>>>::default();
        let hears = Arc::clone(&heard);
        other.rule(move |request| {
            hears.lock().unwrap().push(format!("{} {:?}", request.target, request.headers));
            Answer::Honest
        });
        let to = other.address.clone();
        store.rule(move |request| {
            let location = format!("Location: {to}{}", request.target);
            Answer::Short(head(status, &[&location], 0))
        });
        for destination in [store.s3(), store.azure()] {
            let error = destination.prepare().await.unwrap_err();
            let told = logged(&error);
            assert!(matches!(error, Error::Unavailable(_)) && told.contains(&status[..3]), "{told}");
            assert!(!told.contains("GEHEIM") && !told.contains("ALLOW_HTTP"), "{told}");
        }
        assert_eq!(*heard.lock().unwrap(), Vec::<String>::new(), "{status}");
    }
}

#[tokio::test]
async fn a_request_that_a_gateway_repeats_is_not_told() {
    let page = |request: &Request| format!("Refused by the gateway: {} {}", request.method, request.target);
    let code = |request: &Request| format!("<Error><Code>{}</Code></Error>", request.target);
    let message = |request: &Request| {
        let (target, token) = (&request.target, request.headers.get("x-amz-security-token"));
        format!("<Error><Code>Refused</Code><Message>{target} {token:?}</Message></Error>")
    };
    let xml = |request: &Request| format!("<html><h1>{}</h1>", request.target);
    let bodies: [fn(&Request) -> String; 4] = [page, code, message, xml];
    for (body, status) in bodies.iter().flat_map(|body| ["400 Bad Request", "403 Forbidden"].map(|it| (*body, it))) {
        let store = Store::start().await;
        store.rule(move |request| with_body(status, &body(request)));
        for destination in [store.s3(), store.azure()] {
            let error = destination.prepare().await.unwrap_err();
            let told = format!("{error} {}", logged(&error));
            assert!(!told.contains("GEHEIM") && !told.contains("sig="), "{told}");
            assert!(told.contains(&status[..3]) || told.contains("Refused"), "{told}");
        }
    }
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed_and_no_reason_to_allow_http() {
    if lacks("openssl", "openssl") {
        return;
    }
    let other = Store::start().await;
    let heard = Arc::<AtomicU64>::default();
    let hears = Arc::clone(&heard);
    other.rule(move |_| {
        hears.fetch_add(1, Ordering::SeqCst);
        Answer::Honest
    });
    let home = reachable_folder();
    crate::tls::certificates(home.path()).await;
    let address = crate::download::redirecting(&other.address, home.path());
    let authority = home.path().join("ca.crt");
    let settings = [
        ("AWS_ENDPOINT_URL", address.as_str()),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("SSL_CERT_FILE", authority.to_str().unwrap()),
    ];
    let (code, _, error) = crate::command::run(&["verify", "s3://files"], &settings).await;
    assert!(code == 1 && error.contains("302") && !error.contains("ALLOW_HTTP"), "{error}");
    assert_eq!(heard.load(Ordering::SeqCst), 0);
}
