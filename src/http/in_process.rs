//! The API for commands in the same process: calls the handlers without a network.

use std::convert::Infallible;
use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::{Extension, Router};
use http_body_util::BodyExt;
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use crate::audit::Origin;
use crate::http::access::Caller;
use crate::http::routes;
use crate::job::Bounds;
use crate::service::{self, Service};
use cdc_client::{AnswerBody, Cause, LocalService};
use pg_session::failure::chain;

/// The API without a listener. The caller may use every route: there are no keys, no rate limits and no checks of
/// `Host`. These routes cannot be served over a network, because the router is private to this type.
#[derive(Clone, Debug)]
pub struct InProcess(Router);

impl InProcess {
    /// Creates the API for a service, for a user of this machine.
    pub fn new(service: Service, user: &str) -> InProcess {
        let (routes, _) = routes().split_for_parts();
        // A command reads the bucket itself.
        let service = service.for_request(&Bounds::NONE, None, Arc::new(Origin::command(user))).without_redirects();
        InProcess(routes.layer(Extension(Caller(None))).layer(Extension(service)))
    }
}

#[async_trait]
impl LocalService for InProcess {
    async fn call(&self, request: hyper::Request<String>) -> hyper::Response<AnswerBody> {
        let answer = TowerToHyperService::new(self.0.clone()).call(request.map(Body::from)).await;
        let mut answer = answer.unwrap_or_else(|never: Infallible| match never {});
        if let Some(error) = answer.extensions_mut().remove::<Arc<service::Error>>() {
            answer.extensions_mut().insert(Cause(chain(&*error)));
        }
        answer.map(|body| body.map_err(Into::into).boxed_unsync())
    }
}
