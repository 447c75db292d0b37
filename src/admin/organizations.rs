//! Organizations: listed and made.

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::audit::Record;
use crate::clock::Timestamp;
use crate::ids::OrgId;
use crate::store::{self, OrganizationRow};

use super::AdminState;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Nothing, Query};
use super::list::List;
use super::openapi::PlainRefusals;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(list_organizations, create_organization))
}

/// An organization.
#[derive(Serialize, ToSchema)]
struct Organization {
    /// Id.
    id: OrgId,
    /// As it stands in paths.
    name: String,
    /// Made at.
    created_at: Timestamp,
}

impl From<OrganizationRow> for Organization {
    fn from(row: OrganizationRow) -> Self {
        Self { id: row.id, name: row.name, created_at: row.created_at }
    }
}

/// An organization to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOrganization {
    /// As it will stand in paths.
    #[schema(pattern = "^[a-z0-9-]{1,64}$")]
    name: String,
}

/// List organizations
#[utoipa::path(
    get, path = "/api/organizations", tag = "organizations",
    responses(PlainRefusals, (status = 200, body = List<Organization>, description = "All of them, by name.")),
)]
async fn list_organizations(
    _: Caller,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<List<Organization>>, ApiError> {
    let rows = state.store.organizations().await?;
    Ok(List::whole(rows.into_iter().map(Organization::from).collect()))
}

/// Create an organization
#[utoipa::path(
    post, path = "/api/organizations", tag = "organizations",
    request_body = NewOrganization,
    responses(
        PlainRefusals,
        (status = 201, body = Organization, description = "It exists now."),
        (status = 409, body = ErrorBody, description = "`already_exists`: the name is taken."),
    ),
)]
async fn create_organization(
    caller: Caller,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(new): Body<NewOrganization>,
) -> Result<(StatusCode, Json<Organization>), ApiError> {
    if !is_name(&new.name) {
        return Err(ApiError::bad_request("body `name`: expected 1 to 64 characters of a-z, 0-9 and `-`"));
    }
    let row = OrganizationRow { id: OrgId::new(), name: new.name, created_at: state.clock.now() };
    let record = Record::new(row.created_at, row.id, &caller.actor, "organization.created")
        .detail(serde_json::json!({ "name": row.name }));
    match state.store.insert_organization(&row, &record.into_row()).await {
        Ok(()) => Ok((StatusCode::CREATED, Json(row.into()))),
        Err(store::Error::Conflict) => Err(ApiError::already_exists(format!("`{}` already exists", row.name))),
        Err(error) => Err(error.into()),
    }
}

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_a_path_and_is_no_id() {
        assert!(is_name("default") && is_name("team-2"));
        assert!(!is_name("") && !is_name("Team") && !is_name("a/b") && !is_name(&"a".repeat(65)));
        assert!(!is_name(&OrgId::new().to_string()));
    }
}
