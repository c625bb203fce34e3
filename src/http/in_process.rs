//! The API for the commands of this process: the same handlers, called without a network.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use axum::{Extension, Router};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;
use tracing::Dispatch;
use tracing::instrument::WithSubscriber;

use crate::http::access::Caller;
use crate::http::routes;
use crate::service::Service;

/// The API without a listener. Its caller may do everything: no key is asked for, no request is counted, no `Host` is checked. Nobody can
/// serve these routes over a network, because the router never leaves this type.
#[derive(Clone, Debug)]
pub struct InProcess(Router);

impl InProcess {
    /// The API of a service.
    pub fn new(service: Service) -> InProcess {
        let (routes, _) = routes().split_for_parts();
        InProcess(routes.with_state(service).layer(Extension(Caller::anybody())))
    }

    /// Answers a request. A refusal by the service has its [`Error`](crate::service::Error) among the response's extensions, in an `Arc`.
    pub async fn call(&self, request: Request<Body>) -> Response {
        // The caller says what failed: a log line would say it twice.
        let answer = TowerToHyperService::new(self.0.clone()).call(request).with_subscriber(Dispatch::none()).await;
        answer.unwrap_or_else(|never: Infallible| match never {})
    }
}
