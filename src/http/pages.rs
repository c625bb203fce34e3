//! Lists in pages: `limit` rows, and a cursor that says where the next page begins. A cursor names the last row of its
//! page, so that rows which are added or removed meanwhile neither repeat nor hide others.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::Problem;

/// Rows of a page where the client sets no limit.
const DEFAULT_ROWS: u32 = 50;
/// The most rows of a page.
const MOST_ROWS: u32 = 200;

/// Reads `limit`.
pub(crate) fn limit(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else { return Ok(DEFAULT_ROWS) };
    let limit = text.parse().ok().filter(|limit| (1..=MOST_ROWS).contains(limit));
    limit.ok_or_else(|| Problem::bad_parameter("limit", format!("a number from 1 to {MOST_ROWS} is expected")))
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    /// The page's items
    items: Vec<T>,
    /// The `cursor` of the next page; null: this is the last page
    #[schema(required)]
    next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// A page of the first `limit` rows of `rows`. A further row means that there is a next page. `cursor` is the name
    /// of a row.
    pub(crate) fn new<R>(rows: Vec<R>, limit: u32, cursor: impl Fn(&R) -> String, body: impl Fn(R) -> T) -> Page<T> {
        let limit = limit as usize;
        let next_cursor = (rows.len() > limit).then(|| cursor(&rows[limit - 1]));
        Page { items: rows.into_iter().take(limit).map(body).collect(), next_cursor }
    }
}

/// The problem of a cursor that can't be read.
pub(crate) fn bad_cursor() -> Problem {
    Problem::bad_parameter("cursor", "not one that a page gave")
}
