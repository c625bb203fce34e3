//! `/users`: the demo table's soft delete, so that a delta has a deletion to show.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::service::Service;

/// A user as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct UserBody {
    id: i64,
    name: String,
    email: String,
    created_at: Option<String>,
    updated_at: Option<String>,
    is_deleted: bool,
}

/// `DELETE /users/{id}`
pub(crate) async fn soft_delete(
    State(service): State<Service>,
    PathParameter(id): PathParameter,
) -> Result<Json<UserBody>, Problem> {
    // `+3` and `003` are no ids, although they can be read as one.
    let id = id.parse().ok().filter(|number: &i64| number.to_string() == id);
    let id = id.ok_or_else(|| Problem::not_found("there is no user with this id"))?;
    let user = service.soft_delete_user(id).await?;
    Ok(Json(UserBody {
        id: user.id,
        name: user.name,
        email: user.email,
        created_at: user.created_at,
        updated_at: user.updated_at,
        is_deleted: user.is_deleted,
    }))
}
