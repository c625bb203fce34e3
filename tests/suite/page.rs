//! The page at `/` as it is served; `tests/browser.sh` looks at what it does.

use reqwest::header::HeaderMap;

use crate::harness::{Database, Service, Start};

/// The policy of the page's files, and of those of `/docs`.
pub(crate) const POLICY: [&str; 8] = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
];

/// Returns the paths of the page's files, as its HTML and its modules name them.
async fn assets(service: &Service) -> Vec<String> {
    let mut paths = vec!["/".to_owned()];
    let mut read = 0;
    while let Some(path) = paths.get(read) {
        read += 1;
        let text = service.call("GET", path, &[]).await.text().await.unwrap();
        let absolute = text.split("\"/page/").skip(1);
        let relative = text.split(" from \"./").skip(1);
        for rest in absolute.chain(relative) {
            let path = format!("/page/{}", rest.split('"').next().unwrap());
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
    }
    paths
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("no {name}: {headers:?}")).to_str().unwrap()
}

#[tokio::test]
async fn the_page_and_all_its_files_are_served_and_let_nothing_foreign_in() {
    let service = Start::on(&Database::new().await).service().await;
    let paths = assets(&service).await;
    assert!(paths.len() > 10 && paths.contains(&"/page/style.css".to_owned()), "{paths:?}");
    for path in &paths {
        let answer = service.call("GET", path, &[]).await;
        assert_eq!(answer.status(), 200, "{path}");
        let headers = answer.headers().clone();
        let media_type = match path.rsplit_once('.').map(|(_, extension)| extension) {
            None => "text/html; charset=utf-8",
            Some("js") => "text/javascript; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            Some(other) => panic!("what is {other}?"),
        };
        assert_eq!(header(&headers, "content-type"), media_type, "{path}");
        assert_eq!(header(&headers, "x-content-type-options"), "nosniff");
        assert_eq!(header(&headers, "referrer-policy"), "no-referrer");
        assert_eq!(header(&headers, "cross-origin-resource-policy"), "same-origin");
        assert_eq!(header(&headers, "cache-control"), "no-cache");
        let policy: Vec<&str> = header(&headers, "content-security-policy").split("; ").collect();
        assert_eq!(policy, [&POLICY[..], &["require-trusted-types-for 'script'"]].concat());
        let text = answer.text().await.unwrap();
        assert!(!text.is_empty());

        // A client that has it is told so, and no more.
        let etag = header(&headers, "etag");
        for known in [etag.to_owned(), format!("\"x\", W/{etag}"), "*".to_owned()] {
            let answer = service.call("GET", path, &[("If-None-Match", &known)]).await;
            assert_eq!((answer.status().as_u16(), header(answer.headers(), "etag")), (304, etag), "{path} {known}");
            assert_eq!(answer.text().await.unwrap(), "");
        }
        assert_eq!(service.call("GET", path, &[("If-None-Match", "\"x\"")]).await.status(), 200);

        let head = service.call("HEAD", path, &[]).await;
        assert_eq!((head.status().as_u16(), header(head.headers(), "etag")), (200, etag));
        assert_eq!(header(head.headers(), "content-length"), text.len().to_string());
        assert_eq!(head.text().await.unwrap(), "");
    }
}

#[tokio::test]
async fn the_page_has_no_other_files() {
    let service = Start::on(&Database::new().await).service().await;
    for path in
        ["/page/nothing.js", "/page/index.html", "/page/", "/page", "/page/..%2fpage.rs", "/page/%ff", "/page/a/b"]
    {
        service.refuses("GET", path, &[], 404, "not_found").await;
    }
    for path in ["/", "/page/app.js"] {
        service.refuses("POST", path, &[], 405, "method_not_allowed").await;
    }
    // `/` has one answer for all callers.
    let answer = service.call("GET", "/", &[("Accept", "application/json")]).await;
    assert_eq!(header(answer.headers(), "content-type"), "text/html; charset=utf-8");
}

#[tokio::test]
async fn the_page_needs_no_key() {
    let service = Start::on(&Database::new().await).with("AUTH", "keys").service().await;
    for path in assets(&service).await {
        assert_eq!(service.call("GET", &path, &[]).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn the_page_of_symptoms_has_a_place_for_each_word_and_needs_no_key_and_no_script() {
    let service = Start::on(&Database::new().await).with("AUTH", "keys").service().await;
    let answer = service.call("GET", "/symptoms", &[]).await;
    assert_eq!((answer.status().as_u16(), header(answer.headers(), "content-type")), (200, "text/html; charset=utf-8"));
    assert!(!header(answer.headers(), "content-security-policy").contains("script-src"));
    let text = answer.text().await.unwrap();
    for word in ["storage_full", "output_missing", "truncated", "publishing", "rate_limited"] {
        assert_eq!(text.matches(&format!("<code id=\"{word}\">{word}</code>")).count(), 1, "{word}");
    }
    assert!(!text.contains("<a ") && !text.contains("<script"), "a link would lead to a page that is not here");
}
