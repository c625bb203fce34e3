//! Web pages of other origins: those that are listed, and no others.

use reqwest::Response;

use crate::harness::{Database, Service, Start, refusal};

const LISTED: &str = "https://app.example.com";
const OTHER: &str = "https://other.example.com";

async fn preflight(service: &Service, path: &str, origin: &str) -> Response {
    let asks = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "DELETE"),
        ("Access-Control-Request-Headers", "authorization,x-consumer-id"),
    ];
    service.call("OPTIONS", path, &asks).await
}

fn allowed(answer: &Response) -> Option<&str> {
    answer.headers().get("access-control-allow-origin").map(|origin| origin.to_str().unwrap())
}

/// The names in a header that is a list.
fn names(answer: &Response, header: &str) -> Vec<String> {
    let list = answer.headers()[header].to_str().unwrap().split(',');
    list.map(|name| name.trim().to_ascii_lowercase()).collect()
}

#[tokio::test]
async fn a_preflight_needs_no_key_and_a_call_does() {
    let start = Start::on(&Database::new().await).with("AUTH", "keys");
    let service = start.with("CORS_ORIGINS", format!("http://localhost:3000, {LISTED}")).service().await;
    for origin in [LISTED, "http://localhost:3000"] {
        let answer = preflight(&service, "/exports/watermark", origin).await;
        assert_eq!((answer.status().as_u16(), allowed(&answer)), (200, Some(origin)));
        let methods = names(&answer, "access-control-allow-methods");
        assert!(["get", "head", "post", "delete"].iter().all(|it| methods.contains(&it.to_string())));
        let headers = names(&answer, "access-control-allow-headers");
        for header in [
            "authorization",
            "content-type",
            "range",
            "x-consumer-id",
            "idempotency-key",
            "traceparent",
            "x-request-id",
        ] {
            assert!(headers.contains(&header.to_owned()), "{header}: {headers:?}");
        }
        assert!(!answer.headers().contains_key("access-control-allow-credentials"));
    }
    assert_eq!(allowed(&preflight(&service, "/exports/watermark", OTHER).await), None);

    // A page reads why it is refused, and what it is told beside.
    let answer = service.call("GET", "/exports", &[("Origin", LISTED)]).await;
    assert_eq!(allowed(&answer), Some(LISTED));
    let exposed = names(&answer, "access-control-expose-headers");
    for header in
        ["location", "retry-after", "x-request-id", "etag", "content-disposition", "content-range", "accept-ranges"]
    {
        assert!(exposed.contains(&header.to_owned()), "{header}: {exposed:?}");
    }
    assert!(names(&answer, "vary").contains(&"origin".to_owned()));
    assert_eq!(refusal(answer).await, (401, "key_required".to_owned()));
    let answer = service.call("GET", "/exports", &[("Origin", OTHER)]).await;
    assert_eq!((allowed(&answer), answer.status().as_u16()), (None, 401));
}

#[tokio::test]
async fn without_keys_a_listed_origin_is_let_in() {
    let database = Database::new().await;
    let service = Start::on(&database).with("CORS_ORIGINS", LISTED).service().await;
    let answer = service.call("GET", "/exports", &[("Origin", LISTED)]).await;
    assert_eq!((answer.status().as_u16(), allowed(&answer)), (200, Some(LISTED)));
    for origin in [OTHER, "null", "https://app.example.com:8443", "http://app.example.com"] {
        let answer = service.call("GET", "/exports", &[("Origin", origin)]).await;
        assert_eq!(allowed(&answer), None, "{origin}");
        assert_eq!(refusal(answer).await, (403, "origin_not_allowed".to_owned()), "{origin}");
    }
    // Whose page it is, is one question; which host it thinks it talks to, another.
    service
        .refuses("GET", "/exports", &[("Origin", LISTED), ("Host", "rebound.example.com")], 403, "host_not_local")
        .await;
}

#[tokio::test]
async fn unset_no_other_origin_is_told_anything() {
    let service = Start::on(&Database::new().await).service().await;
    let answer = preflight(&service, "/exports", LISTED).await;
    assert_eq!((answer.status().as_u16(), allowed(&answer)), (403, None));
    assert!(!answer.headers().contains_key("access-control-allow-methods"));
    service.stop().await;

    let service = Start::on(&Database::new().await).with("AUTH", "none").service().await;
    let answer = service.call("GET", "/exports", &[("Origin", LISTED)]).await;
    assert_eq!(
        (answer.status().as_u16(), allowed(&answer)),
        (200, None),
        "it is answered; a browser keeps it from the page"
    );
}
