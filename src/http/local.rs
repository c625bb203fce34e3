//! Tells requests that come from this machine: with `AUTH=local` they alone are let in, without a key.
//!
//! Requests of a browser on this machine come from here whatever page it shows, and so do those of a proxy on this
//! machine. Headers tell them apart, which a page can't forge and which a proxy adds: `Host` names the host that the
//! page believes it talks to (DNS rebinding), `Origin` and `Sec-Fetch-Site` say where the page is from,
//! `X-Forwarded-For` and the like say that another client asks.
//!
//! This is no authentication: a client that reaches the port and chooses its headers is let in.

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

/// Names and addresses of this machine besides localhost and loopback addresses, in lower case, without ports and
/// brackets.
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

/// Reads a host, a name of letters, digits, `-`, `_` and dots or an address, in the form in which hosts are compared.
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
    fn have(&self, authority: &Authority) -> bool {
        let Some(host) = host(authority.host()) else { return false };
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        host == "localhost" || is_loopback || self.0.contains(&host)
    }
}

/// Checks that the sender of a request is a local caller.
///
/// # Errors
/// The problem names the header that says otherwise.
pub(crate) fn check(request: &Request, hosts: &LocalHosts, listed: &Origins) -> Result<(), Problem> {
    // First: behind a proxy `Host` is mostly a public name as well, and an answer that names the proxy helps more.
    if let Some(mark) = request.headers().keys().find(|name| is_of_a_proxy(name.as_str())) {
        return Err(Problem::proxy_refused(mark.as_str()));
    }
    let host = host_of(request, hosts)?;
    let is_own = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        let authority = origin.as_ref().and_then(Uri::authority);
        authority.is_some_and(|authority| authority.as_str().eq_ignore_ascii_case(host.as_str()))
    };
    let mut origins = request.headers().get_all(header::ORIGIN).iter();
    if !origins.all(|origin| is_own(origin) || listed.have(origin)) {
        return Err(origin_refused("Origin"));
    }
    // A page that only embeds an answer sends no `Origin`; the browser says in `Sec-Fetch-Site` where the page is from.
    let mut sites = request.headers().get_all(SEC_FETCH_SITE).iter();
    let is_listed = request.headers().get(header::ORIGIN).is_some_and(|origin| listed.have(origin));
    // A page on another port of this machine is `same-site`, and as foreign as any other. `none`: a person typed the
    // address.
    if is_listed || follows_a_link(request) || sites.all(|site| site == "same-origin" || site == "none") {
        Ok(())
    } else {
        Err(origin_refused("Sec-Fetch-Site"))
    }
}

/// The one host that the request names, if it is this machine's.
fn host_of(request: &Request, hosts: &LocalHosts) -> Result<Authority, Problem> {
    let mut named = request.headers().get_all(header::HOST).iter();
    let host = match (named.next(), named.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // A request target in absolute form has a host too.
    let target = request.uri().authority();
    let host = host.filter(|host| hosts.have(host) && target.is_none_or(|target| hosts.have(target)));
    host.ok_or_else(|| {
        let detail = "open without a key to callers on this machine only: the Host must be localhost, a loopback address or one of LOCAL_HOSTS";
        Problem::bad_input(Code::HostNotLocal, "Host", detail)
    })
}

/// Returns true if a person follows a link to one of this service's pages. The page with the link learns nothing by
/// that, since these pages can't be framed.
fn follows_a_link(request: &Request) -> bool {
    let navigates = request.headers().get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate");
    navigates && request.method() == Method::GET && matches!(request.uri().path(), "/" | "/docs")
}

/// The problem of a web page whose origin isn't listed, as the header `mark` shows.
fn origin_refused(mark: &str) -> Problem {
    Problem::bad_input(Code::OriginNotAllowed, mark, "a web page of another origin may not call this service")
}

/// Headers that proxies add, besides all that begin with `x-forwarded`: `forwarded` (RFC 7239), `via`, which every
/// intermediary has to add (RFC 9110, 7.6.3), nginx's usual one, and those of content delivery networks, load balancers
/// and ingresses.
const OF_PROXIES: [&str; 18] = [
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

fn is_of_a_proxy(name: &str) -> bool {
    name.starts_with("x-forwarded") || OF_PROXIES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &[&str]) -> bool {
        let mut request = Request::default();
        for host in host {
            request.headers_mut().append(header::HOST, host.parse().unwrap());
        }
        check(&request, &"app, 10.1.2.3".parse().unwrap(), &Origins::default()).is_ok()
    }

    #[test]
    fn only_local_hosts() {
        for good in ["127.9.9.9", "App:80"] {
            assert!(allowed(&[good]), "{good}");
        }
        for bad in ["[fe80::1]", "", "apps"] {
            assert!(!allowed(&[bad]), "{bad}");
        }
        assert!(!allowed(&[]) && !allowed(&["localhost", "example.com"]));
    }
}
