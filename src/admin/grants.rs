//! Grants: which targets a key may use, and how much of them.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::clock::Timestamp;
use crate::ids::KeyId;
use crate::store::{GrantAccess, GrantRow};

use super::AdminState;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Id, Nothing, Query, Scope, Slug};
use super::list::List;
use super::openapi::Refusals;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(list_grants)).routes(routes!(put_grant, delete_grant))
}

/// A grant.
#[derive(Serialize, ToSchema)]
struct Grant {
    /// The key.
    key: KeyId,
    /// The target's slug.
    target: String,
    /// How much it allows.
    access: GrantAccess,
    /// Made or changed at.
    created_at: Timestamp,
}

impl From<GrantRow> for Grant {
    fn from(row: GrantRow) -> Self {
        Self { key: row.key, target: row.slug, access: row.access, created_at: row.created_at }
    }
}

/// How much a grant shall allow.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewGrant)]
struct GrantBody {
    /// `read` or `write`.
    access: GrantAccess,
}

/// List a key's grants
#[utoipa::path(
    get, path = "/api/organizations/{org}/keys/{id}/grants", tag = "grants",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = KeyId, Path)),
    responses(
        Refusals,
        (status = 200, body = List<Grant>, description = "All of them, by slug."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`."),
    ),
)]
async fn list_grants(
    scope: Scope,
    Id(key): Id<KeyId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<List<Grant>>, ApiError> {
    if state.store.key(scope.org, key).await?.is_none() {
        return Err(ApiError::key_not_found());
    }
    let rows = state.store.grants_of_key(scope.org, key).await?;
    Ok(List::whole(rows.into_iter().map(Grant::from).collect()))
}

/// Make or change a grant
#[utoipa::path(
    put, path = "/api/organizations/{org}/keys/{id}/grants/{target}", tag = "grants",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("id" = KeyId, Path),
        ("target" = String, Path, description = "The target's slug"),
    ),
    request_body = GrantBody,
    responses(
        Refusals,
        (status = 200, body = Grant, description = "It counts for the key's next request."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`, `target_not_found`."),
    ),
)]
async fn put_grant(
    scope: Scope,
    Id(key): Id<KeyId>,
    Slug(slug): Slug,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(body): Body<GrantBody>,
) -> Result<Json<Grant>, ApiError> {
    let row = state.access.put_grant(scope.org, key, &slug, body.access, &scope.actor()).await?;
    Ok(Json(row.into()))
}

/// Take a grant away
#[utoipa::path(
    delete, path = "/api/organizations/{org}/keys/{id}/grants/{target}", tag = "grants",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("id" = KeyId, Path),
        ("target" = String, Path, description = "The target's slug"),
    ),
    responses(
        Refusals,
        (status = 204, description = "It is gone."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `key_not_found`, `target_not_found`: there was none."),
    ),
)]
async fn delete_grant(
    scope: Scope,
    Id(key): Id<KeyId>,
    Slug(slug): Slug,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<StatusCode, ApiError> {
    state.access.delete_grant(scope.org, key, &slug, &scope.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}
