//! The OpenAPI document equals the API.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;

use crate::harness::{Database, Start, option_env};
use crate::page;
use crate::source_files::files_below;

/// Returns the path of the document in the clone.
fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")
}

#[tokio::test]
async fn the_document_in_the_clone_is_the_one_that_is_served() {
    let service = Start::on(&Database::new().await).service().await;
    let answer = service.call("GET", "/openapi.json", &[]).await;
    assert_eq!(answer.headers()["content-type"], "application/json");
    let served = answer.text().await.unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    if option_env("RENEW_OPENAPI").is_some() {
        std::fs::write(&file, &served).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        kept == served,
        "the API has changed: look at what `just openapi` makes of docs/openapi.json, and commit it"
    );
}

/// The document, as the tests have just held it against a service.
fn document() -> Value {
    serde_json::from_str(&std::fs::read_to_string(kept()).unwrap()).unwrap()
}

/// Every call: its path, method and description.
fn calls(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let items = document["paths"].as_object().unwrap().iter();
    items.flat_map(|(path, item)| item.as_object().unwrap().iter().map(|(method, call)| (&**path, &**method, call)))
}

/// The method and path of every call.
pub(crate) fn paths() -> Vec<(String, String)> {
    calls(&document()).map(|(path, method, _)| (method.to_uppercase(), path.to_owned())).collect()
}

/// Checks that a call says of itself that it may answer so. Of paths and methods that there are none of, nothing is
/// said.
pub(crate) fn assert_told(method: &str, path: &str, status: u16, code: Option<&str>) {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(document);
    let path: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let is_parameter = |segment: &str| segment.starts_with('{');
    let is_like = |template: &str| {
        let segments: Vec<_> = template.split('/').collect();
        segments.len() == path.len() && segments.iter().zip(&path).all(|(own, other)| own == other || is_parameter(own))
    };
    // `/exports/full` is not a job.
    let items = DOCUMENT["paths"].as_object().unwrap().iter().filter(|(template, _)| is_like(template));
    let Some((template, item)) = items.min_by_key(|(template, _)| template.matches('{').count()) else { return };
    let method = method.to_lowercase().replace("head", "get");
    let Some(call) = item.get(&method) else { return };
    let answer = &call["responses"][status.to_string()];
    assert!(answer.is_object(), "{method} {template} answers {status}, which its document lacks");
    if let Some(code) = code {
        let answer = answer["$ref"].as_str().unwrap_or_else(|| panic!("{method} {template}: {status} {code}"));
        let named = answer.rsplit_once('/').unwrap().1.split('.').skip(1).any(|told| told == code);
        assert!(named, "{method} {template} answers {status} {code}, which its document lacks: {answer}");
    }
}

#[test]
fn a_call_says_all_of_itself() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (path, method, call) in calls(&document) {
        assert!(ids.insert(call["operationId"].as_str().unwrap()), "{method} {path}: an id of its own");
        assert!(
            call["summary"].as_str().is_some_and(|text| !text.is_empty() && !text.ends_with('.')),
            "{method} {path}"
        );
        assert_eq!(call["tags"].as_array().unwrap().len(), 1, "{method} {path}");
        let names: BTreeSet<&str> = path.split('{').skip(1).map(|rest| rest.split_once('}').unwrap().0).collect();
        let parameters = call["parameters"].as_array().unwrap().iter();
        let described = parameters.filter(|it| it["in"] == "path").map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!(names, described, "{method} {path}");
        assert!(
            call["responses"]
                .as_object()
                .unwrap()
                .values()
                .all(|it| it["headers"]["X-Request-Id"].is_object() || it["$ref"].is_string())
        );
        let scopes: Vec<_> = call["security"].as_array().unwrap().iter().map(|it| it["key"][0].clone()).collect();
        let scope = match (path, method) {
            ("/health" | "/health/live" | "/health/ready" | "/openapi.json" | "/docs" | "/symptoms", _) => vec![],
            ("/metrics" | "/users/{id}" | "/deliveries" | "/deliveries/{deliveryId}/redeliver", _) => {
                vec!["admin"]
            }
            ("/consumers/{consumerId}", "delete") => vec!["admin"],
            (_, "get") | ("/exports/{jobId}/ack", "post") => vec!["export:read"],
            _ => vec!["export:write"],
        };
        assert_eq!(scopes, scope, "{method} {path}");
    }
}

#[test]
fn an_example_has_the_members_of_its_schema() {
    let document = document();
    let mut seen = 0;
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        let Some(example) = schema.get("example") else { continue };
        let members: BTreeSet<_> = example.as_object().unwrap().keys().collect();
        let properties: BTreeSet<_> = schema["properties"].as_object().unwrap().keys().collect();
        assert!(members.is_subset(&properties), "{name}: {members:?}");
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(example.get(required.as_str().unwrap()).is_some(), "{name}: the example lacks {required}");
        }
        seen += 1;
    }
    assert!(seen >= 8, "{seen}");
}

#[test]
fn every_reference_leads_somewhere() {
    fn references<'d>(value: &'d Value, found: &mut Vec<&'d str>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str));
                members.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }
    let (document, mut found) = (document(), Vec::new());
    references(&document, &mut found);
    assert!(found.len() > 100);
    for reference in found {
        assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
    }
}

#[test]
fn a_query_that_is_read_is_told() {
    let mut read = 0;
    for (file, code) in files_below(&["src/http"], "rs") {
        for handler in code.split("#[utoipa::path(").skip(1) {
            let (says, rest) = handler.split_once(")]\n").unwrap();
            let arguments = rest.split_once("->").unwrap().0;
            if let Some((_, rest)) = arguments.split_once(": Query<") {
                let name = rest.split_once('>').unwrap().0;
                assert!(says.contains(name), "{file}: params({name})");
                read += 1;
            }
        }
    }
    assert_eq!(read, 8);
}

/// `routes!` takes route and description from the handler; what `route` adds has none. That is for pages, which people
/// look at.
#[test]
fn a_route_is_documented() {
    for (file, code) in files_below(&["src/http", "src/http.rs"], "rs") {
        for path in named(&code, ".route(\"") {
            let is_page = path == "/" || path.starts_with("/page/") || path.starts_with("/docs/");
            assert!(is_page, "{file}: {path} is not in the document of the API: use `routes!`");
        }
    }
}

/// Returns the text after each mark, up to the next quote.
fn named<'t>(text: &'t str, mark: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(mark).skip(1).map(|rest| rest.split('"').next().unwrap())
}

#[tokio::test]
async fn the_page_of_the_document_needs_no_key_and_no_network() {
    let service = Start::on(&Database::new().await).with("AUTH", "keys").service().await;
    let page = service.call("GET", "/docs", &[]).await;
    assert_eq!(page.status(), 200, "open without a key");
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    for word in ["<style", "style=", "http:", "https:", "\"//"] {
        assert!(!page.contains(word), "{word}");
    }
    assert_eq!(page.matches("<script").count(), page.matches("></script>").count(), "no script in the page itself");
    let links: Vec<_> = named(&page, " href=\"").chain(named(&page, " src=\"")).collect();
    assert!(links.contains(&"/docs/swagger-ui.css") && links.contains(&"/docs/swagger-ui-bundle.js"), "{links:?}");
    let script = service.call("GET", "/docs/docs.js", &[]).await.text().await.unwrap();
    // It shows the service's own document, and asks nobody whether that is valid.
    for word in ["url: \"/openapi.json\"", "validatorUrl: null"] {
        assert!(script.contains(word), "{script}");
    }
    let imported: Vec<_> = named(&script, "from \"").collect();
    for path in
        links.iter().chain(&imported).filter(|link| !link.starts_with('#')).map(|link| link.split('#').next().unwrap())
    {
        assert_eq!(service.call("GET", path, &[]).await.status(), 200, "{path}: open without a key");
    }
    service.refuses("GET", "/docs/index.html", &[], 404, "not_found").await;
}

#[tokio::test]
async fn the_files_of_the_documents_page_let_nothing_foreign_in() {
    let service = Start::on(&Database::new().await).service().await;
    for (path, media_type) in [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/docs.css", "text/css; charset=utf-8"),
        ("/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/docs/swagger-ui.css", "text/css; charset=utf-8"),
    ] {
        let answer = service.call("GET", path, &[]).await;
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((header("content-type").as_str(), header("cache-control").as_str()), (media_type, "no-cache"));
        let guards = (header("referrer-policy"), header("cross-origin-resource-policy"));
        assert_eq!((guards.0.as_str(), guards.1.as_str()), ("no-referrer", "same-origin"));
        assert_eq!(header("content-security-policy").split("; ").collect::<Vec<_>>(), page::POLICY);
        let etag = header("etag");
        assert!(!answer.text().await.unwrap().is_empty());
        assert_eq!(service.call("GET", path, &[("If-None-Match", &etag)]).await.status(), 304, "{path}");
    }
}
