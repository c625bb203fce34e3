//! Pagination of lists: `limit` rows per page and a cursor for the next page.
//!
//! A cursor contains the last row of its page. So rows added or removed between two calls cause neither duplicates nor
//! gaps.

use serde::Serialize;
use utoipa::ToSchema;

use crate::http::problem::Problem;

const DEFAULT_ROWS: u32 = 50;
const MAX_ROWS: u32 = 200;

pub(crate) fn limit(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else { return Ok(DEFAULT_ROWS) };
    let limit = text.parse().ok().filter(|limit| (1..=MAX_ROWS).contains(limit));
    limit.ok_or_else(|| Problem::bad_parameter("limit", format!("a number from 1 to {MAX_ROWS} is expected")))
}

/// A page of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page<T> {
    /// The page's items
    pub(crate) items: Vec<T>,
    /// The `cursor` of the next page; null on the last page
    #[schema(required)]
    pub(crate) next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Creates a page of the first `limit` rows. An additional row means that there is a next page. `cursor` returns
    /// the cursor of a row.
    pub(crate) fn new<R>(rows: Vec<R>, limit: u32, cursor: impl Fn(&R) -> String, body: impl Fn(R) -> T) -> Page<T> {
        let limit = limit as usize;
        let next_cursor = (rows.len() > limit).then(|| cursor(&rows[limit - 1]));
        Page { items: rows.into_iter().take(limit).map(body).collect(), next_cursor }
    }
}

pub(crate) fn bad_cursor() -> Problem {
    Problem::bad_parameter("cursor", "not the nextCursor of a page")
}
