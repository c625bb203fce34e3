//! The API for the commands of this process: the same handlers, called without a network.

use std::convert::Infallible;
use std::sync::Arc;

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
use crate::service::{self, Service};
use crate::telemetry::chain;

/// The API without a listener. Its caller may do everything: no key is asked for, no request is counted, no `Host` is
/// checked. Nobody can serve these routes over a network, because the router never leaves this type.
#[derive(Clone, Debug)]
pub struct InProcess(Router);

impl InProcess {
    /// The API of a service.
    pub fn new(service: Service) -> InProcess {
        let (routes, _) = routes().split_for_parts();
        InProcess(routes.with_state(service).layer(Extension(Caller::anybody())))
    }

    /// Answers a request. If the service refuses it, the response has a [`Cause`] among its extensions.
    pub async fn call(&self, request: Request<Body>) -> Response {
        // The caller shows the error: a log line would repeat it.
        let answer = TowerToHyperService::new(self.0.clone()).call(request).with_subscriber(Dispatch::none()).await;
        let mut answer = answer.unwrap_or_else(|never: Infallible| match never {});
        if let Some(error) = answer.extensions_mut().remove::<Arc<service::Error>>() {
            answer.extensions_mut().insert(Cause(chain(&*error)));
        }
        answer
    }
}

/// The error of the service with its inner causes, which only a caller in the same process may see.
#[derive(Clone, Debug)]
pub struct Cause(pub String);
