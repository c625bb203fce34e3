//! Keys for certain consumers and datasets: each call of the API document, with keys of random rights.

use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

use crate::catalog::{Catalog, ended};
use crate::harness::{Database, Service, Start, UNKNOWN_JOB, client_builder, ends};
use crate::keys::{header_of, made, served};
use crate::several_datasets::id;

const CONSUMERS: [&str; 2] = ["anna", "bertil"];
const DATASETS: [&str; 2] = ["violet", "orange"];
const NO_DATASET: &str = "indigo";

/// The names in a call, with which the rights of a key are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Nothing: the call needs no key.
    Open,
    /// Nothing: the call lists what the key may see.
    List,
    /// A consumer and a dataset.
    Lane,
    /// A dataset and, if there is one, a consumer.
    Export,
    Dataset,
    Consumer,
    Job,
    /// An operation for operators only.
    Operation,
}

/// The scope that each call needs, and its subject. A new call needs a row.
#[rustfmt::skip]
const CALLS: [(&str, &str, Subject); 35] = [
    ("getHealth", "", Subject::Open),
    ("getLiveness", "", Subject::Open),
    ("getReadiness", "", Subject::Open),
    ("getOpenapi", "", Subject::Open),
    ("getDocs", "", Subject::Open),
    ("getSymptoms", "", Subject::Open),
    ("getMetrics", "admin", Subject::Operation),
    ("listDeliveries", "admin", Subject::Operation),
    ("redeliver", "admin", Subject::Operation),
    ("deleteUser", "admin", Subject::Operation),
    ("listExports", "export:read", Subject::List),
    ("getActivity", "export:read", Subject::List),
    ("listConsumers", "export:read", Subject::List),
    ("listSchedules", "export:read", Subject::List),
    ("listDatasets", "export:read", Subject::List),
    ("getDataset", "export:read", Subject::Dataset),
    ("createExport", "export:write", Subject::Export),
    ("startFull", "export:write", Subject::Lane),
    ("startIncremental", "export:write", Subject::Lane),
    ("startDelta", "export:write", Subject::Lane),
    ("startIncrementalOf", "export:write", Subject::Lane),
    ("getWatermark", "export:read", Subject::Lane),
    ("forgetWatermark", "export:write", Subject::Lane),
    ("getConsumer", "export:read", Subject::Consumer),
    ("removeConsumer", "admin", Subject::Consumer),
    ("getExport", "export:read", Subject::Job),
    ("followExport", "export:read", Subject::Job),
    ("downloadExport", "export:read", Subject::Job),
    ("downloadExportFile", "export:read", Subject::Job),
    ("getExportManifest", "export:read", Subject::Job),
    ("getExportUrl", "export:read", Subject::Job),
    ("acknowledgeExport", "export:read", Subject::Job),
    ("cancelExport", "export:write", Subject::Job),
    ("retryExport", "export:write", Subject::Job),
    ("deleteExportFile", "export:write", Subject::Job),
];

#[derive(Clone, Debug)]
struct Rights {
    scopes: Vec<&'static str>,
    consumers: Option<Vec<&'static str>>,
    datasets: Option<Vec<&'static str>>,
}

impl Rights {
    fn has(&self, scope: &str) -> bool {
        scope.is_empty() || self.scopes.contains(&"admin") || self.scopes.contains(&scope)
    }

    fn allow_consumer(&self, consumer: Option<&str>) -> bool {
        self.consumers.as_ref().is_none_or(|own| consumer.is_some_and(|consumer| own.contains(&consumer)))
    }

    fn allow_dataset(&self, dataset: &str) -> bool {
        self.datasets.as_ref().is_none_or(|own| own.contains(&dataset))
    }

    /// The names that no answer to this key may have.
    fn secrets(&self) -> Vec<&'static str> {
        let consumers = CONSUMERS.iter().filter(|consumer| !self.allow_consumer(Some(consumer)));
        consumers.chain(DATASETS.iter().filter(|dataset| !self.allow_dataset(dataset))).copied().collect()
    }

    /// Makes a key with these rights.
    async fn bearer(&self, catalog: &Catalog, database: &Database, name: &str) -> String {
        let mut arguments = Vec::new();
        self.scopes.iter().for_each(|scope| arguments.extend(["--scope", scope]));
        self.consumers.iter().flatten().for_each(|consumer| arguments.extend(["--consumer", consumer]));
        self.datasets.iter().flatten().for_each(|dataset| arguments.extend(["--dataset", dataset]));
        arguments.extend((self.consumers.is_some() && self.datasets.is_none()).then_some("--all-datasets"));
        header_of(&made(catalog.start(database), name, &arguments).await)
    }
}

fn random_rights() -> impl Strategy<Value = Rights> {
    let scopes = prop_oneof![
        1 => Just(vec!["export:read"]),
        1 => Just(vec!["export:write"]),
        4 => Just(vec!["export:read", "export:write"]),
    ];
    let consumers = prop::option::weighted(0.7, subsequence(CONSUMERS.to_vec(), 1..=2));
    let datasets = prop::option::weighted(0.8, subsequence(vec!["violet", "orange", NO_DATASET], 1..=2));
    (scopes, consumers, datasets).prop_map(|(scopes, consumers, datasets)| Rights { scopes, consumers, datasets })
}

/// A job that was made before the calls.
struct Made {
    id: String,
    consumer: Option<&'static str>,
    datasets: Vec<&'static str>,
}

impl Made {
    fn datasets_within(&self, rights: &Rights) -> Vec<String> {
        self.datasets.iter().filter(|dataset| rights.allow_dataset(dataset)).map(ToString::to_string).collect()
    }
}

/// Returns the datasets of a job in JSON.
fn datasets_of(text: &str) -> Vec<String> {
    let job: Value = serde_json::from_str(text).unwrap();
    let of_one = std::slice::from_ref(&job);
    let exports = job["exports"].as_array().map_or(of_one, Vec::as_slice);
    exports.iter().map(|export| export["dataset"].as_str().unwrap().to_owned()).collect()
}

struct Answer {
    status: u16,
    code: String,
    challenge: String,
    text: String,
}

/// A call of the API document.
struct Call {
    operation: String,
    method: reqwest::Method,
    path: String,
    scope: &'static str,
    subject: Subject,
}

impl Call {
    /// Sends the call, with the names that its path, header, query or body takes.
    async fn send(&self, service: &Service, key: &str, consumer: Option<&str>, dataset: &str, job: &str) -> Answer {
        let path = self.path.replace("{jobId}", job).replace("{deliveryId}", UNKNOWN_JOB).replace("{name}", dataset);
        let path = path.replace("{consumer_id}", consumer.unwrap_or("anna")).replace("{part}", "1");
        // The other calls need the consumers.
        let of_path = if self.operation == "removeConsumer" { "nobody" } else { consumer.unwrap_or("anna") };
        let path = path.replace("{id}", "1").replace("{consumerId}", of_path);
        let query = if path == "/exports/watermark" { format!("?dataset={dataset}") } else { String::new() };
        let address = format!("{}{path}{query}", service.address);
        let mut request = client_builder().build().unwrap().request(self.method.clone(), address);
        request = request.header("Authorization", key);
        let is_of_consumer = matches!(self.subject, Subject::Lane | Subject::Export);
        if let Some(consumer) = consumer.filter(|_| is_of_consumer) {
            request = request.header("X-Consumer-ID", consumer);
        }
        if is_of_consumer && self.method == reqwest::Method::POST {
            request = request.json(&json!({ "dataset": dataset }));
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let challenge = answer.headers().get("WWW-Authenticate").map(|value| value.to_str().unwrap().to_owned());
        let text = String::from_utf8_lossy(&answer.bytes().await.unwrap()).into_owned();
        let problem = serde_json::from_str::<Value>(&text).unwrap_or_default();
        let code = problem["code"].as_str().unwrap_or_default().to_owned();
        Answer { status, code, challenge: challenge.unwrap_or_default(), text }
    }

    /// The refusal that the table demands, or `None` if the key opens the call.
    fn refusal(&self, rights: &Rights, consumer: Option<&str>, dataset: &str, job: &Made) -> Option<(u16, &str)> {
        if !rights.has(self.scope) {
            return Some((403, "scope_missing"));
        }
        match self.subject {
            Subject::Lane | Subject::Export | Subject::Consumer if !rights.allow_consumer(consumer) => {
                Some((403, "consumer_not_allowed"))
            }
            Subject::Lane | Subject::Export | Subject::Dataset if !rights.allow_dataset(dataset) => {
                Some((403, "dataset_not_allowed"))
            }
            Subject::Job => {
                let visible = job.datasets_within(rights).len();
                let needed = match self.operation.as_str() {
                    "cancelExport" | "retryExport" => job.datasets.len(),
                    _ => 1,
                };
                (visible < needed || !rights.allow_consumer(job.consumer)).then_some((404, "not_found"))
            }
            _ => None,
        }
    }
}

/// The calls of the API document, each with its row of the table.
async fn calls(service: &Service) -> Vec<Call> {
    let document: Value = service.call("GET", "/openapi.json", &[]).await.json().await.unwrap();
    let mut calls = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let operation = operation["operationId"].as_str().unwrap().to_owned();
            let row = CALLS.iter().find(|(name, ..)| *name == operation);
            let (_, scope, subject) = *row.unwrap_or_else(|| panic!("{operation} needs a row in the table"));
            let method = method.to_uppercase().parse().unwrap();
            calls.push(Call { operation, method, path: path.clone(), scope, subject });
        }
    }
    calls.sort_by_key(|call| call.operation == "deleteExportFile");
    assert!(CALLS.iter().all(|(name, ..)| calls.iter().any(|call| call.operation == *name)));
    calls
}

#[tokio::test]
async fn a_key_opens_what_its_rights_allow_and_nothing_else_is_told_to_it() {
    let database = Database::new().await;
    let mut blocks = String::new();
    for dataset in DATASETS {
        let columns = "id int primary key, updated_at timestamptz not null default now()";
        database.run(&format!("create table t_{dataset} ({columns}); insert into t_{dataset} values (1)")).await;
        blocks += &format!("[[dataset]]\nname = \"{dataset}\"\ntable = \"t_{dataset}\"\nupdated_at = \"updated_at\"\n");
        for consumer in CONSUMERS {
            blocks += &format!(
                "[[schedule]]\nname = \"{consumer}-{dataset}\"\nconsumer = \"{consumer}\"\ndataset = \"{dataset}\"\n\
                 type = \"full\"\ncron = \"0 0 29 2 *\"\n"
            );
        }
    }
    let catalog = Catalog::of(&blocks);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let start = catalog.start(&database).with("AUTH", "keys").with("RATE_LIMIT", "100000/s");
    let service = served(start, &database).await;
    let mut jobs = Vec::new();
    for dataset in DATASETS {
        for consumer in [Some("anna"), Some("bertil"), None] {
            let job = ended(&service, "/exports", consumer, json!({ "dataset": dataset })).await;
            jobs.push(Made { id: id(&job).to_owned(), consumer, datasets: vec![dataset] });
        }
    }
    for consumer in CONSUMERS {
        let job = ended(&service, "/exports/full", Some(consumer), json!({ "datasets": "*" })).await;
        jobs.push(Made { id: id(&job).to_owned(), consumer: Some(consumer), datasets: vec!["orange", "violet"] });
    }
    let calls = calls(&service).await;

    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..Default::default() });
    let mut keys = vec![
        Rights { scopes: vec!["admin"], consumers: None, datasets: None },
        Rights { scopes: vec!["export:read"], consumers: None, datasets: Some(vec![NO_DATASET]) },
        Rights { scopes: vec!["export:write"], consumers: None, datasets: None },
    ];
    keys.extend((0..6).map(|_| random_rights().new_tree(&mut runner).unwrap().current()));
    for (at, rights) in keys.iter().enumerate() {
        let key = rights.bearer(&catalog, &database, &format!("key {at}")).await;
        for call in &calls {
            check_call(&service, call, rights, &key, &jobs).await;
        }
        check_lists(&service, &database, rights, &key).await;
    }
}

/// Sends a call with all names that it may take, and compares the answers with the table.
async fn check_call(service: &Service, call: &Call, rights: &Rights, key: &str, made: &[Made]) {
    let consumers: &[Option<&str>] = match call.subject {
        Subject::Lane | Subject::Consumer => &[Some("anna"), Some("bertil")],
        Subject::Export => &[Some("anna"), Some("bertil"), None],
        _ => &[None],
    };
    let datasets: &[&str] = match call.subject {
        Subject::Lane | Subject::Export | Subject::Dataset => &[DATASETS[0], DATASETS[1], NO_DATASET],
        _ => &[""],
    };
    let jobs = if call.subject == Subject::Job { made } else { &made[..1] };
    for job in jobs {
        for consumer in consumers {
            for dataset in datasets {
                let answer = call.send(service, key, *consumer, dataset, &job.id).await;
                let Answer { status, code, challenge, text } = &answer;
                let what = || format!("{} {consumer:?} {dataset} {rights:?}: {status} {text}", call.operation);
                let refusal = call.refusal(rights, *consumer, dataset, job);
                match refusal {
                    Some(expected) => assert_eq!((*status, code.as_str()), expected, "{}", what()),
                    // A file may be removed, a lane may have too many open jobs: that is no matter of rights.
                    None => assert!(![401, 403].contains(status) && code != "internal", "{}", what()),
                }
                if code == "scope_missing" {
                    let needed =
                        format!("Bearer realm=\"cdc-export\", error=\"insufficient_scope\", scope=\"{}\"", call.scope);
                    assert_eq!(*challenge, needed, "{}", what());
                }
                if call.operation == "getExport" && refusal.is_none() {
                    assert_eq!((*status, datasets_of(text)), (200, job.datasets_within(rights)), "{}", what());
                }
                if call.subject == Subject::Job && code == "not_found" {
                    let unknown = call.send(service, key, None, "", UNKNOWN_JOB).await;
                    assert_eq!((unknown.status, &unknown.text), (*status, text), "{}", what());
                }
                let is_told = |name: &&&str| *name != dataset && Some(**name) != *consumer && text.contains(**name);
                let told: Vec<_> = match call.subject {
                    Subject::Open => Vec::new(),
                    _ => rights.secrets().iter().filter(|name| is_told(name)).copied().collect(),
                };
                assert!(told.is_empty(), "{told:?} is told: {}", what());
            }
        }
    }
}

/// Compares the lists of exports with the database, with and without filters.
async fn check_lists(service: &Service, database: &Database, rights: &Rights, key: &str) {
    let get = async |path: String| -> (u16, Value) {
        let answer = service.call("GET", &path, &[("Authorization", key)]).await;
        (answer.status().as_u16(), answer.json().await.unwrap())
    };
    if !rights.has("export:read") {
        return;
    }
    let within = |names: &Option<Vec<&str>>, column: &str| match names {
        Some(names) => format!("{column} in ('{}')", names.join("', '")),
        None => "true".to_owned(),
    };
    let visible = format!("{} and {}", within(&rights.consumers, "consumer_id"), within(&rights.datasets, "dataset"));
    let mut filters = vec![(String::new(), "true".to_owned())];
    filters.extend(CONSUMERS.map(|name| (format!("&consumer={name}"), format!("consumer_id = '{name}'"))));
    filters.extend(DATASETS.map(|name| (format!("&dataset={name}"), format!("dataset = '{name}'"))));
    for (query, condition) in filters {
        let (status, page) = get(format!("/exports?limit=200&exportType=full{query}")).await;
        if DATASETS.iter().any(|name| query == format!("&dataset={name}") && !rights.allow_dataset(name)) {
            assert_eq!((status, &page["code"]), (403, &json!("dataset_not_allowed")), "{query} {rights:?}");
            continue;
        }
        let ids = format!(
            "select coalesce(array_agg(job::text order by job desc), '{{}}') from \
             (select distinct job from exports where export_type = 'full' and {condition} and {visible} \
              order by job desc limit 200) e"
        );
        let expected: Vec<String> = database.one(&ids).await;
        let listed: Vec<_> = page["items"].as_array().unwrap().iter().map(id).collect();
        assert_eq!(listed, expected, "{query} {rights:?}");
    }
    let (_, activity) = get("/exports/activity".to_owned()).await;
    for (kind, column) in [("consumers", "consumer_id"), ("datasets", "dataset")] {
        let counts = format!(
            "select coalesce(jsonb_object_agg(name, exports), '{{}}') from \
             (select {column} as name, count(*) as exports from exports \
              where {column} is not null and status in ('completed', 'failed') and {visible} group by {column}) e"
        );
        let of = |item: &Value, member: &str| {
            item[member].as_array().unwrap().iter().map(|it| it.as_u64().unwrap()).sum::<u64>()
        };
        let counted = activity[kind].as_array().unwrap().iter();
        let counted = counted
            .map(|item| (item["name"].as_str().unwrap().to_owned(), json!(of(item, "completed") + of(item, "failed"))));
        assert_eq!(Value::Object(counted.collect()), database.one::<Value>(&counts).await, "{rights:?}");
    }
    let (_, page) = get("/consumers?limit=200".to_owned()).await;
    let lanes = format!("select count(*) from cdc_export.lanes where consumer_id <> '' and {visible}");
    assert_eq!(page["items"].as_array().unwrap().len() as i64, database.one::<i64>(&lanes).await, "{rights:?}");
    let (_, schedules) = get("/schedules".to_owned()).await;
    let (_, datasets) = get("/datasets".to_owned()).await;
    let seen = |names: &[&str], allow: &dyn Fn(&str) -> bool| names.iter().filter(|name| allow(name)).count();
    let seen_datasets = seen(&DATASETS, &|name| rights.allow_dataset(name));
    let seen_consumers = seen(&CONSUMERS, &|name| rights.allow_consumer(Some(name)));
    assert_eq!(datasets["items"].as_array().unwrap().len(), seen_datasets);
    assert_eq!(schedules["items"].as_array().unwrap().len(), seen_datasets * seen_consumers);
}

#[tokio::test]
async fn a_key_for_one_dataset_needs_to_name_none() {
    let database = Database::new().await;
    let mut blocks = String::new();
    for dataset in DATASETS {
        database.run(&format!("create table t_{dataset} (id int primary key)")).await;
        blocks += &format!("[[dataset]]\nname = \"{dataset}\"\ntable = \"t_{dataset}\"\n");
    }
    let catalog = Catalog::of(&blocks);
    ends(catalog.command(&database, &["track", "--all"]).await, 0, "");
    let rights = |datasets: &[&'static str]| Rights {
        scopes: vec!["export:read", "export:write"],
        consumers: None,
        datasets: Some(datasets.to_vec()),
    };
    let one = rights(&["orange"]).bearer(&catalog, &database, "one").await;
    let none = rights(&[NO_DATASET]).bearer(&catalog, &database, "none").await;
    let service = catalog.start(&database).with("AUTH", "keys").service().await;
    let post = async |key: &str| -> Value {
        let headers = [("Authorization", key), ("X-Consumer-ID", "anna")];
        service.call("POST", "/exports/full", &headers).await.json().await.unwrap()
    };
    let job = post(&one).await;
    let made: String = database.one(&format!("select dataset from exports where job = '{}'", id(&job))).await;
    assert_eq!(made, "orange");
    let refused = post(&none).await;
    let told = refused["detail"].as_str().unwrap();
    assert!(told.contains("none of the service's datasets is open to this key"), "{refused}");
}

#[tokio::test]
async fn a_key_is_refused_whose_rights_are_unclear() {
    let database = Database::new().await;
    let create = async |more: &[&str]| {
        let fixed = ["keys", "create", "--name", "k"];
        Start::on(&database).arguments(&[&fixed, more].concat()).output().await
    };
    for (more, why) in [
        (&["--consumer", "a"][..], "--all-datasets"),
        (&["--scope", "admin", "--consumer", "a", "--all-datasets"], "--scope admin opens everything"),
        (&["--scope", "admin", "--dataset", "users"], "--scope admin opens everything"),
        (&["--dataset", "users", "--all-datasets"], "cannot be used with"),
        (&["--dataset", "Users"], "a dataset's name has"),
    ] {
        ends(create(more).await, 2, why);
    }
    assert_eq!(database.one::<i64>("select count(*) from cdc_export.keys").await, 0);
    ends(create(&["--dataset", "usres"]).await, 0, "there is no dataset `usres`");
}
