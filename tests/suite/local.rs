//! Callers on this machine: who passes for one while no key is asked for, and who doesn't, whatever he writes into a
//! header.

use serde_json::{Value, json};

use crate::harness::{Database, Service, Start, serving_users};
use crate::openapi;

const LISTED: &str = "https://app.example.com";

/// The status of an answer, with its code and field if it is a problem that the document tells.
async fn answer(service: &Service, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, String, Value) {
    let answer = service.call(method, path, headers).await;
    let status = answer.status().as_u16();
    let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default();
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    openapi::assert_told(method, path, status, Some(code.as_str()).filter(|code| !code.is_empty()));
    (status, code, body)
}

#[tokio::test]
async fn a_proxy_on_this_machine_publishes_nothing() {
    let (database, service) = serving_users(0).await;
    let marks = [
        ("X-Forwarded-For", "203.0.113.7"),
        ("X-Forwarded-Host", "exports.example.com"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Server", "proxy"),
        ("X-Real-IP", "203.0.113.7"),
        ("Forwarded", "for=203.0.113.7;host=exports.example.com"),
        ("Via", "1.1 proxy"),
        // A proxy that was told to say nothing of whom it serves.
        ("X-Forwarded-For", ""),
    ];
    for mark in marks {
        for (method, path) in [("GET", "/exports"), ("POST", "/exports"), ("GET", "/"), ("GET", "/health")] {
            let (status, code, body) = answer(&service, method, path, &[mark]).await;
            assert_eq!((status, code.as_str()), (403, "proxy_not_allowed"), "{method} {path} {mark:?}");
            let detail = body["detail"].as_str().unwrap();
            assert!(detail.contains("AUTH=keys") && detail.contains("AUTH=none"), "{detail}");
            assert_eq!(body["field"].as_str().unwrap(), mark.0, "{body}");
        }
    }
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
    service.stop().await;

    // The settings that the problem names help.
    let open = Start::on(&database).with("AUTH", "none").service().await;
    let keys = Start::on(&database).with("AUTH", "keys").service().await;
    for mark in marks {
        assert_eq!(open.call("GET", "/exports", &[mark]).await.status(), 200, "{mark:?}");
        keys.refuses("GET", "/exports", &[mark], 401, "key_required").await;
    }
}

#[tokio::test]
async fn what_a_page_elsewhere_sends_without_an_origin_is_refused() {
    let database = Database::with_users(9).await;
    let service = Start::on(&database).with("CORS_ORIGINS", LISTED).service().await;
    let refused = async |method: &str, path: &str, headers: &[(&str, &str)]| {
        let (status, code, body) = answer(&service, method, path, headers).await;
        assert_eq!((status, code.as_str()), (403, "origin_not_allowed"), "{method} {path} {headers:?}");
        assert_eq!(body["field"], "Sec-Fetch-Site", "{body}");
    };
    // Another port of this machine is the same site, and another origin.
    for site in ["cross-site", "same-site", "CROSS-SITE", "something-new"] {
        let site = ("Sec-Fetch-Site", site);
        // An image, a script, a form, a frame, a link to what is no page.
        for mode in ["no-cors", "cors", "navigate", "websocket"] {
            for (method, path) in [
                ("GET", "/exports"),
                ("GET", "/exports/watermark"),
                ("GET", "/metrics"),
                ("GET", "/openapi.json"),
                ("POST", "/exports"),
                ("DELETE", "/users/7"),
            ] {
                refused(method, path, &[site, ("Sec-Fetch-Mode", mode)]).await;
            }
        }
        refused("POST", "/", &[site, ("Sec-Fetch-Mode", "navigate")]).await;
        for path in ["/", "/docs", "/symptoms"] {
            refused("GET", path, &[site, ("Sec-Fetch-Mode", "no-cors")]).await;
            refused("GET", path, &[site]).await;
            // A link that somebody follows.
            let link = [site, ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")];
            assert_eq!(answer(&service, "GET", path, &link).await.0, 200, "{path}");
        }
        // A listed page says who it is, and is believed.
        let listed = [site, ("Sec-Fetch-Mode", "cors"), ("Origin", LISTED)];
        assert_eq!(answer(&service, "GET", "/exports", &listed).await.0, 200);
        let other = [site, ("Sec-Fetch-Mode", "cors"), ("Origin", "https://other.example.com")];
        assert_eq!(answer(&service, "GET", "/exports", &other).await.1, "origin_not_allowed");
        // Its own origin is nobody else's.
        refused("GET", "/exports", &[site, ("Origin", &service.address)]).await;
    }
    // The page itself, an address that somebody typed, and a program.
    for site in ["same-origin", "none"] {
        assert_eq!(answer(&service, "GET", "/exports", &[("Sec-Fetch-Site", site)]).await.0, 200, "{site}");
    }
    refused("GET", "/exports", &[("Sec-Fetch-Site", "same-origin"), ("Sec-Fetch-Site", "cross-site")]).await;
    assert_eq!(answer(&service, "GET", "/exports", &[("Sec-Fetch-Mode", "cors")]).await.0, 200);
    assert_eq!(database.one::<i64>("select count(*) from exports").await, 0);
    assert_eq!(database.one::<i64>("select count(*) from users where is_deleted").await, 0);
}

#[tokio::test]
async fn local_checks_hosts_and_origins_on_every_address() {
    let database = Database::with_users(9).await;
    let start = || Start::on(&database).with("HOST", "0.0.0.0").with("AUTH", "local");
    let service = start().with("LOCAL_HOSTS", "app, Exports.internal,10.1.2.3,fd00::1").service().await;
    let asked = async |host: &str, more: &[(&str, &str)]| {
        let (status, code, _) = answer(&service, "GET", "/exports", &[&[("Host", host)][..], more].concat()).await;
        (status, code)
    };
    let good = (200, String::new());
    for host in
        ["localhost", "127.0.0.1:8080", "[::1]", "app", "APP:8080", "exports.internal", "10.1.2.3", "[fd00::1]:80"]
    {
        assert_eq!(asked(host, &[]).await, good, "{host}");
        assert_eq!(asked(host, &[("Origin", &format!("http://{host}"))]).await, good, "{host}");
    }
    for host in ["app.example.com", "my-app", "internal", "10.1.2.4", "0.0.0.0", "[fd00::2]", "app."] {
        assert_eq!(asked(host, &[]).await, (403, "host_not_local".to_owned()), "{host}");
    }
    let (status, code, body) = answer(&service, "GET", "/health", &[("Host", "rebound.example.com")]).await;
    assert_eq!((status, code.as_str()), (403, "host_not_local"));
    assert!(body["detail"].as_str().unwrap().contains("LOCAL_HOSTS"), "{body}");
    // `AUTH=none` let a page do this.
    for by in
        [("Origin", "https://evil.example.com"), ("Sec-Fetch-Site", "cross-site"), ("Origin", "http://localhost:3000")]
    {
        let (status, code, _) = answer(&service, "DELETE", "/users/7", &[("Host", "localhost:8080"), by]).await;
        assert_eq!((status, code.as_str()), (403, "origin_not_allowed"), "{by:?}");
    }
    assert_eq!(asked("app", &[("X-Forwarded-For", "10.0.0.1")]).await, (403, "proxy_not_allowed".to_owned()));
    assert_eq!(database.one::<i64>("select count(*) from users where is_deleted").await, 0);
    service.stop().await;

    // The same holds by default, without `AUTH`, on a loopback address.
    let service = Start::on(&database).with("LOCAL_HOSTS", "app").service().await;
    assert_eq!(answer(&service, "GET", "/exports", &[("Host", "app")]).await.0, 200);
    service.stop().await;
    assert_eq!(answer(&start().service().await, "GET", "/exports", &[("Host", "app")]).await.1, "host_not_local");
}

#[tokio::test]
async fn a_list_of_hosts_that_is_none_stops_the_start() {
    for list in ["*", "*.example.com", "app:8080", "http://app", "app,", "app,,b", "a b", "app/", "[fd00::1", "ä", "-a"]
    {
        let (code, errors) = Start::plain().with("AUTH", "local").with("LOCAL_HOSTS", list).until_it_ends().await;
        assert_eq!((code, errors.lines().count()), (2, 1), "{list}: {errors}");
        assert!(errors.starts_with("cdc-export: LOCAL_HOSTS: `"), "{list}: {errors}");
    }
}

/// The containers are a local caller's: whoever may open a port of this machine reaches them, and no page does.
#[test]
fn compose_lets_this_machine_in_and_no_page() {
    let compose = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docker-compose.yml")).unwrap();
    let setting = |name: &str| {
        let values: Vec<_> = compose.lines().filter_map(|line| line.trim().strip_prefix(name)).map(str::trim).collect();
        json!(values)
    };
    assert_eq!((setting("AUTH:"), setting("LOCAL_HOSTS:")), (json!(["local"]), json!(["app"])));
    let mut published = Vec::new();
    let mut lines = compose.lines();
    while lines.by_ref().any(|line| line.trim() == "ports:") {
        published.extend(lines.by_ref().take_while(|line| line.trim().starts_with("- ")).map(str::trim));
    }
    assert!(!published.is_empty() && published.iter().all(|port| port.starts_with("- 127.0.0.1:")), "{published:?}");
}
