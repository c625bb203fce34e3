//! The parameters of a query: a call takes those that its description has, each once, and no others.
//!
//! A parameter that the call doesn't read would have it do something else than the client asked for: `POST
//! /exports/delta?dataset=orders` would export `users`, and move a watermark. One layer checks every route, the page's
//! files and the health checks too: clients can rely on a rule without exceptions, and no probe needs a parameter.

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

use crate::dataset::name::hint;
use crate::http::code::Code;
use crate::http::problem::Problem;

/// Reads a parameter's value, where the query has that parameter.
///
/// # Errors
/// If the value is none of its type: a problem that names the parameter.
pub(crate) fn word<T: FromStr<Err: Display>>(name: &'static str, text: Option<String>) -> Result<Option<T>, Problem> {
    text.map(|text| text.parse().map_err(|why| Problem::bad_parameter(name, why))).transpose()
}

/// The parameters of each call, by path and method, from the routes' descriptions.
#[derive(Clone, Debug)]
pub(crate) struct Parameters(Arc<BTreeMap<String, Calls>>);

/// The calls of a path, each with what it takes.
type Calls = Vec<(Method, Known)>;

/// The parameters and the body that a call takes.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The names of its parameters.
    names: BTreeSet<String>,
    has_body: bool,
}

impl Parameters {
    pub(crate) fn of(api: &OpenApi) -> Parameters {
        let paths = api.paths.paths.iter();
        Parameters(Arc::new(paths.map(|(path, item)| (path.clone(), calls_of(item).collect())).collect()))
    }

    /// The end of a message that there is nothing at a path: which one somebody may have meant.
    pub(crate) fn near(&self, path: &str) -> String {
        let segments: Vec<_> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        hint(&format!("/{}", segments.join("/")), self.0.keys().map(String::as_str))
    }

    /// Returns what a call takes; `None`: there is no such call.
    fn known(&self, path: &str, method: &Method) -> Option<&Known> {
        static NONE: Known = Known { names: BTreeSet::new(), has_body: false };
        // A HEAD has the parameters of the GET.
        let method = if method == Method::HEAD { Method::GET } else { method.clone() };
        match self.0.get(path) {
            Some(calls) => calls.iter().find(|(own, _)| *own == method).map(|(_, known)| known),
            // The page's files are no calls of the API.
            None => (method == Method::GET).then_some(&NONE),
        }
    }
}

fn calls_of(item: &PathItem) -> impl Iterator<Item = (Method, Known)> {
    let calls = [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::PATCH, &item.patch),
    ];
    calls.into_iter().filter_map(|(method, call)| Some((method, known_of(call.as_ref()?))))
}

fn known_of(call: &Operation) -> Known {
    let parameters = call.parameters.iter().flatten();
    let of_query = parameters.filter_map(|parameter| match parameter {
        RefOr::T(parameter) if parameter.parameter_in == ParameterIn::Query => Some(parameter.name.clone()),
        _ => None,
    });
    Known { names: of_query.collect(), has_body: call.request_body.is_some() }
}

/// The layer that refuses parameters which the call doesn't have, and those given twice. Unknown paths and methods go
/// on to the router, which refuses them.
pub(crate) async fn check(
    State(parameters): State<Parameters>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    if let Some(known) = path.and_then(|path| parameters.known(path.as_str(), request.method())) {
        check_names(request.uri(), known)?;
    }
    Ok(next.run(request).await)
}

fn check_names(uri: &Uri, known: &Known) -> Result<(), Problem> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let Query(pairs) = query.map_err(|_| Problem::new(Code::BadRequest, "the query can't be read"))?;
    let mut given = BTreeSet::new();
    for (name, _) in &pairs {
        if !known.names.contains(name) {
            let near = hint(name, known.names.iter().map(String::as_str));
            let body = if known.has_body { "; a member of its body stands there, as JSON" } else { "" };
            let detail = format!("{name}: this call has no such parameter{near}{body}");
            return Err(Problem::bad_input(Code::ParameterUnknown, name, detail));
        }
        if !given.insert(name) {
            return Err(Problem::bad_parameter(name, "given twice"));
        }
    }
    Ok(())
}
