//! `/users`: soft-deletes a row of the demo table, so that a delta export can contain a deletion.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

use crate::http::code::Code;
use crate::http::input::PathParameter;
use crate::http::problem::Problem;
use crate::service::Service;

/// A user of the demo table.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = User, example = json!({
    "id": 42, "name": "Rosetta Howe", "email": "rosetta.howe.42@example.net", "createdAt": "2026-11-02T04:17:01.188734Z",
    "updatedAt": "2026-11-20T09:13:15.806135Z", "isDeleted": true
}))]
pub(crate) struct UserBody {
    /// The user's key
    id: i64,
    /// Full name
    name: String,
    /// Unique address
    email: String,
    /// The time of the row's creation; null if it is infinite
    #[schema(required)]
    created_at: Option<String>,
    /// The time of the row's last change; null if it is infinite
    #[schema(required)]
    updated_at: Option<String>,
    /// True if the user is deleted
    is_deleted: bool,
}

/// Soft-delete a user of the demo table
///
/// Has no effect if the user is already deleted. Never changes a `users` table that the service did not create.
#[utoipa::path(
    delete, path = "/users/{id}", operation_id = "deleteUser", tag = "demo",
    params(("id" = i64, Path, description = "The user's key", example = 42)),
    responses((status = 200, description = "The deleted user.", body = UserBody)),
    extensions(("x-codes" = json!([Code::NotFound]))),
)]
pub(crate) async fn soft_delete(service: Service, PathParameter(id): PathParameter) -> Result<Json<UserBody>, Problem> {
    // `+3` and `003` parse as integers but are not canonical ids.
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
