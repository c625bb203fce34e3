//! Query parameters: a call accepts only the parameters in its description, each of them once.
//!
//! An ignored parameter could change the meaning of a call. For example, `POST /exports/delta?dataset=orders` would
//! export `users` and move a watermark. One layer checks all routes, including the page's files and the health checks.
//! So clients can rely on a rule without exceptions.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Query, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};

use crate::http::code::Code;
use crate::http::problem::Problem;

/// Parses a parameter's value, if the query has the parameter.
pub(crate) fn word<T: FromStr<Err: Display>>(name: &'static str, text: Option<String>) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|why| Problem::bad_parameter(name, why))).transpose()
}

/// The accepted parameters of each call by path and method, taken from the routes' descriptions.
#[derive(Clone, Debug)]
pub(crate) struct Parameters(Arc<BTreeMap<String, Calls>>);

type Calls = Vec<(Method, AcceptedInput)>;

#[derive(Clone, Debug, Default)]
struct AcceptedInput {
    names: BTreeSet<String>,
    has_body: bool,
}

impl Parameters {
    pub(crate) fn from_api(api: &OpenApi) -> Parameters {
        let paths = api.paths.paths.iter();
        Parameters(Arc::new(paths.map(|(path, item)| (path.clone(), calls_of(item).collect())).collect()))
    }

    /// Returns the accepted input of a call, or `None` if there is no such call.
    fn accepted(&self, path: &str, method: &Method) -> Option<&AcceptedInput> {
        static NONE: AcceptedInput = AcceptedInput { names: BTreeSet::new(), has_body: false };
        // HEAD accepts the parameters of GET.
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        match self.0.get(path) {
            Some(calls) => calls.iter().find(|(own, _)| *own == method).map(|(_, accepted)| accepted),
            // The page's files are not in the API's description.
            None => (method == Method::GET).then_some(&NONE),
        }
    }
}

fn calls_of(item: &PathItem) -> impl Iterator<Item = (Method, AcceptedInput)> {
    let calls = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::PATCH, &item.patch),
    ];
    calls.into_iter().filter_map(|(method, call)| Some((method, accepted_input(call.as_ref()?))))
}

fn accepted_input(call: &Operation) -> AcceptedInput {
    let parameters = call.parameters.iter().flatten();
    let of_query = parameters.filter_map(|parameter| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
        _ => None,
    });
    AcceptedInput { names: of_query.collect(), has_body: call.request_body.is_some() }
}

/// Layer that refuses unknown and repeated query parameters. The router refuses unknown paths and methods itself.
pub(crate) async fn check(
    State(parameters): State<Parameters>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(accepted) = path.and_then(|path| parameters.accepted(path.as_str(), request.method())) {
        check_names(request.uri(), accepted)?;
    }
    Ok(next.run(request).await)
}

fn check_names(uri: &Uri, accepted: &AcceptedInput) -> Result<(), Problem> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let Query(pairs) = query.map_err(|_| Problem::new(Code::BadRequest, "the query can't be read"))?;
    let mut given = BTreeSet::new();
    for (name, _) in &pairs {
        if !accepted.names.contains(name) {
            let body = if accepted.has_body { "; a member of its body stands there, as JSON" } else { "" };
            let detail = format!("{name}: this call has no such parameter{body}");
            return Err(Problem::bad_input(Code::ParameterUnknown, name, detail));
        }
        if !given.insert(name) {
            return Err(Problem::bad_parameter(name, "given twice"));
        }
    }
    Ok(())
}
