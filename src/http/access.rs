//! Who may call while there are no keys: everybody, or callers on this machine.
//!
//! A browser on this machine is a local caller too, whatever page it shows. Two headers that a page can't forge keep pages out:
//! `Host` names the host that the page thinks it talks to (DNS rebinding), `Origin` the page's own.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::{Authority, Uri};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::problem::Problem;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Callers on this machine, but no web page of another origin.
    LocalCallers,
    /// Everybody who reaches the port.
    Everybody,
}

/// The layer that refuses whom [`Access`] doesn't let in.
pub(crate) async fn check(State(access): State<Access>, request: Request, next: Next) -> Result<Response, Problem> {
    if access == Access::LocalCallers {
        check_local(request.uri(), request.headers())?;
    }
    Ok(next.run(request).await)
}

fn check_local(uri: &Uri, headers: &HeaderMap) -> Result<(), Problem> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()),
        _ => None,
    };
    // A target in absolute form has a host as well.
    let target = uri.authority().cloned();
    let host =
        host.filter(|host| is_local(host) && target.as_ref().is_none_or(is_local)).ok_or_else(Problem::host_refused)?;

    let mut origins = headers.get_all(header::ORIGIN).iter();
    let same = |origin: &axum::http::HeaderValue| {
        let origin = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok());
        origin.is_some_and(|origin| origin.authority().is_some_and(|o| o.as_str().eq_ignore_ascii_case(host.as_str())))
    };
    if origins.all(same) { Ok(()) } else { Err(Problem::origin_refused()) }
}

fn is_local(authority: &Authority) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(host: &[&str], origin: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        for host in host {
            headers.append(header::HOST, host.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.append(header::ORIGIN, origin.parse().unwrap());
        }
        check_local(&"/exports".parse().unwrap(), &headers).is_ok()
    }

    #[test]
    fn only_local_hosts() {
        for good in ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "127.9.9.9", "[::1]:8080"] {
            assert!(allowed(&[good], None), "{good}");
        }
        for bad in ["example.com", "localhost.example.com", "10.0.0.1", "[fe80::1]", "127.0.0.1.example.com", ""] {
            assert!(!allowed(&[bad], None), "{bad}");
        }
        assert!(!allowed(&[], None));
        assert!(!allowed(&["localhost", "example.com"], None));
    }

    #[test]
    fn only_the_own_origin() {
        assert!(allowed(&["localhost:8080"], Some("http://localhost:8080")));
        for foreign in ["http://example.com", "http://localhost:3000", "null", "http://localhost"] {
            assert!(!allowed(&["localhost:8080"], Some(foreign)), "{foreign}");
        }
    }
}
