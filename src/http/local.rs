//! Detects requests from this machine. With `AUTH=local`, only these are allowed, and they need no key.
//!
//! Two kinds of foreign requests also arrive from a local address: those of web pages in a local browser and those of a
//! local proxy. Their headers distinguish them. A page cannot forge these headers, and a proxy adds them. `Host`
//! contains the host name that the page used (DNS rebinding). `Origin` and `Sec-Fetch-Site` identify the page's origin.
//! `X-Forwarded-For` and similar headers show that the request is forwarded.
//!
//! This is not authentication: a client that can reach the port and choose its headers is allowed.

use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderName, HeaderValue, Method, header};

use crate::http::Origins;
use crate::http::code::Code;
use crate::http::problem::Problem;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Names and addresses of this machine, besides localhost and loopback addresses. They are in lower case, without ports
/// and brackets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalHosts(Arc<[String]>);

impl FromStr for LocalHosts {
    type Err = String;

    fn from_str(text: &str) -> Result<LocalHosts, String> {
        let expected = "a name or an address without a port, as app or 10.0.0.5; each is listed, there is no `*`";
        let read = |text: &str| host(text).ok_or_else(|| format!("`{text}` is no host: {expected}"));
        text.split(',').map(str::trim).map(read).collect::<Result<_, _>>().map(LocalHosts)
    }
}

/// Normalizes a host for comparison: an address, or a name of letters, digits, `-`, `_` and dots.
fn host(text: &str) -> Option<String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
        plain && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    text.split('.').all(is_label).then(|| text.to_ascii_lowercase())
}

impl LocalHosts {
    fn contains(&self, authority: &Authority) -> bool {
        let Some(host) = host(authority.host()) else { return false };
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        host == "localhost" || is_loopback || self.0.contains(&host)
    }
}

/// Checks that a local caller sent the request.
///
/// # Errors
/// The problem names the header that identifies another sender.
pub(crate) fn check(request: &Request, hosts: &LocalHosts, listed: &Origins) -> Result<(), Problem> {
    // This check is first because `Host` is usually a public name behind a proxy. The problem of the proxy is more
    // helpful then.
    let is_of_proxy = |name: &str| name.starts_with("x-forwarded") || PROXY_HEADERS.contains(&name);
    if let Some(mark) = request.headers().keys().find(|name| is_of_proxy(name.as_str())) {
        return Err(Problem::proxy_refused(mark.as_str()));
    }
    let host = host_of(request, hosts)?;
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        let authority = origin.as_ref().and_then(Uri::authority);
        authority.is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host.as_str()))
    };
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    if !origins.all(|origin| is_own(origin) || listed.contains(origin)) {
        return Err(origin_refused("Origin"));
    }
    // A page that only embeds a response sends no `Origin`. The browser sends the page's relation to this service in
    // `Sec-Fetch-Site`.
    let mut sites = request.headers().get_all(SEC_FETCH_SITE).iter();
    let is_listed = request.headers().get(header::ORIGIN).is_some_and(|origin| listed.contains(origin));
    // A page on another port of this machine is `same-site`, and as foreign as any other page. `none` means that the
    // user entered the address.
    if is_listed || is_link_navigation(request) || sites.all(|site| site == "same-origin" || site == "none") {
        Ok(())
    } else {
        Err(origin_refused("Sec-Fetch-Site"))
    }
}

/// Returns the host from the request if it is unique and local.
fn host_of(request: &Request, hosts: &LocalHosts) -> Result<Authority, Problem> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // A request target in absolute form also contains a host.
    let target = request.uri().authority();
    let host = host.filter(|host| hosts.contains(host) && target.is_none_or(|target| hosts.contains(target)));
    host.ok_or_else(|| {
        let detail = "without keys, only callers on this machine are allowed: the Host must be localhost, a loopback address or one of LOCAL_HOSTS";
        Problem::bad_input(Code::HostNotLocal, "Host", detail)
    })
}

/// Returns true if a user follows a link to one of this service's pages. The linking page gains no information, because
/// these pages cannot be framed.
fn is_link_navigation(request: &Request) -> bool {
    let navigates = request.headers().get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
    navigates && request.method() == Method::GET && matches!(request.uri().path(), "/" | "/docs" | "/symptoms")
}

/// Returns the problem of a web page whose origin is not listed; `mark` is the header that shows this.
fn origin_refused(mark: &str) -> Problem {
    Problem::bad_input(Code::OriginNotAllowed, mark, "a web page of another origin may not call this service")
}

/// Headers added by proxies, besides those that begin with `x-forwarded`. They include `forwarded` (RFC 7239) and
/// `via`, which every intermediary must add (RFC 9110, section 7.6.3). The others are used by nginx, content delivery
/// networks, load balancers and ingresses.
const PROXY_HEADERS: [&str; 18] = [
    "cdn-loop",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-host",
    "x-original-forwarded-for",
    "x-original-host",
    "x-original-url",
    "x-proxyuser-ip",
    "x-real-ip",
];
