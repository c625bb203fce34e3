//! `/consumers`: where everybody stands.

use axum::Json;
use axum::extract::{Query, State};
use serde::{Deserialize, Serialize};

use crate::dataset::USERS;
use crate::http::exports::{JobBody, rfc3339};
use crate::http::pages::{self, Page};
use crate::http::problem::Problem;
use crate::job::{ConsumerId, Job};
use crate::service::Service;
use crate::watermark::{COUNTED_ROWS, Standing};

/// The query of `/consumers`.
#[derive(Deserialize)]
pub(crate) struct Wanted {
    limit: Option<String>,
    cursor: Option<String>,
}

/// A consumer as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConsumerBody {
    consumer_id: String,
    dataset: &'static str,
    last_exported_at: Option<String>,
    rows_waiting: Rows,
    continuity: Option<&'static str>,
    last_job: Option<JobBody>,
}

/// A number of rows, exact up to a point.
#[derive(Serialize)]
#[serde(untagged)]
enum Rows {
    Exactly(u64),
    MoreThan(String),
}

/// `GET /consumers`, in the order of their ids.
pub(crate) async fn list(
    State(service): State<Service>,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Page<ConsumerBody>>, Problem> {
    let limit = pages::limit(wanted.limit.as_deref())?;
    let after =
        wanted.cursor.map(|cursor| cursor.parse::<ConsumerId>().map_err(|_| pages::bad_cursor())).transpose()?;
    let consumers = service.consumers(after.as_ref().map(|id| id.as_str()), limit + 1).await?;
    Ok(Json(Page::new(consumers, limit, |(standing, _)| standing.consumer.to_string(), body)))
}

pub(super) fn body((standing, job): (Standing, Option<Job>)) -> ConsumerBody {
    let rows_waiting = match standing.rows_waiting {
        Some(rows) => Rows::Exactly(rows),
        None => Rows::MoreThan(format!("{COUNTED_ROWS}+")),
    };
    ConsumerBody {
        consumer_id: standing.consumer.to_string(),
        dataset: USERS.name,
        last_exported_at: standing.last_exported_at.map(rfc3339),
        rows_waiting,
        continuity: standing.continuity.map(|why| why.as_str()),
        last_job: job.map(JobBody::from),
    }
}
