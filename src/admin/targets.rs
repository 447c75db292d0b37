//! Targets: what agents address. Static ones are made here; managed and system ones are shown and can't be changed.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{NewTarget, TargetChange};
use crate::config::{Protection, StaticCredential, Transport};
use crate::secret::Secret;

use super::AdminState;
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Nothing, Query, Scope, Slug, nullable};
use super::list::{List, PageQuery};
use super::openapi::Refusals;
use super::target_view::{Shown, TargetView};

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(list_targets, create_target)).routes(routes!(
        get_target,
        update_target,
        delete_target
    ))
}

/// A static target to be made.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewTarget)]
struct NewTargetBody {
    /// As agents will address it.
    #[schema(pattern = "^[a-z0-9-]{1,96}$")]
    slug: String,
    /// For people; default the slug.
    name: Option<String>,
    /// `https://…`; `http` for loopback hosts only.
    base_url: String,
    /// What goes into a request.
    credential: CredentialBody,
    /// Patterns `[METHOD ]/path`; default `/**`.
    #[serde(default)]
    fence: Vec<String>,
    /// Requests at once, from one instance, 1 to 10,000; what is more waits its turn. Default any number.
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_000)]
    concurrency: Option<NonZeroU32>,
    /// Whether its secret is hidden in the bodies of answers; default when it has one.
    reflect_guard: Option<bool>,
    /// HTTP/2 is not offered to it.
    #[serde(default)]
    http1_only: bool,
    /// WebSocket handshakes are forwarded.
    #[serde(default)]
    websocket: bool,
    /// Answers keep their `Set-Cookie`.
    #[serde(default)]
    set_cookie: bool,
}

/// Changes to a static target; what is absent stays.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TargetChange)]
struct TargetChangeBody {
    /// For people.
    name: Option<String>,
    /// Needs `credential` beside it: a stored secret is never sent somewhere new.
    base_url: Option<String>,
    /// What goes into a request.
    credential: Option<CredentialBody>,
    /// Patterns `[METHOD ]/path`.
    fence: Option<Vec<String>>,
    /// Requests at once, from one instance, 1 to 10,000; `null`: any number.
    #[serde(default, deserialize_with = "nullable")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_000)]
    concurrency: Option<Option<NonZeroU32>>,
    /// Whether its secret is hidden in the bodies of answers.
    reflect_guard: Option<bool>,
    /// HTTP/2 is not offered to it.
    http1_only: Option<bool>,
    /// WebSocket handshakes are forwarded.
    websocket: Option<bool>,
    /// Answers keep their `Set-Cookie`.
    set_cookie: Option<bool>,
}

/// A credential on its way in.
#[derive(Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = Credential)]
enum CredentialBody {
    /// `Authorization: Bearer …`.
    Bearer {
        /// The token.
        token: String,
    },
    /// `Authorization: Basic …`.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// One header.
    Header {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Several headers.
    Headers {
        /// Values by name.
        headers: BTreeMap<String, String>,
    },
    /// A query parameter.
    Query {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
    },
    /// Nothing goes in.
    None {},
}

impl From<CredentialBody> for StaticCredential {
    fn from(body: CredentialBody) -> Self {
        match body {
            CredentialBody::Bearer { token } => Self::Bearer(Secret::new(token)),
            CredentialBody::Basic { username, password } => Self::Basic { username, password: Secret::new(password) },
            CredentialBody::Header { name, value } => Self::Headers(BTreeMap::from([(name, Secret::new(value))])),
            CredentialBody::Headers { headers } => {
                Self::Headers(headers.into_iter().map(|(name, value)| (name, Secret::new(value))).collect())
            }
            CredentialBody::Query { name, value } => Self::Query { name, value: Secret::new(value) },
            CredentialBody::None {} => Self::None,
        }
    }
}

/// List targets
#[utoipa::path(
    get, path = "/api/organizations/{org}/targets", tag = "targets",
    params(("org" = String, Path, description = "Organization: name or id"), PageQuery),
    responses(Refusals, (status = 200, body = List<TargetView>, description = "Static, managed and system targets.")),
)]
async fn list_targets(
    scope: Scope,
    State(state): State<AdminState>,
    Query(query): Query<PageQuery>,
) -> Result<Json<List<TargetView>>, ApiError> {
    let paged = state.store.targets(scope.org, &query.page()?).await?;
    let mut shown = Shown::new(&state, scope.org);
    let mut items = Vec::with_capacity(paged.items.len());
    for row in paged.items {
        items.push(shown.show(row).await?);
    }
    Ok(List::page(items, paged.next))
}

/// Create a static target
#[utoipa::path(
    post, path = "/api/organizations/{org}/targets", tag = "targets",
    params(("org" = String, Path, description = "Organization: name or id")),
    request_body = NewTargetBody,
    responses(
        Refusals,
        (status = 201, body = TargetView, description = "It can be granted now."),
        (status = 409, body = ErrorBody, description = "`already_exists`: the slug is taken."),
    ),
)]
async fn create_target(
    scope: Scope,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(body): Body<NewTargetBody>,
) -> Result<(StatusCode, Json<TargetView>), ApiError> {
    let new = NewTarget {
        name: body.name.unwrap_or_else(|| body.slug.clone()),
        slug: body.slug,
        base_url: body.base_url,
        credential: body.credential.into(),
        fence: body.fence,
        protection: Protection { concurrency: body.concurrency, reflect_guard: body.reflect_guard },
        transport: Transport { http1_only: body.http1_only, websocket: body.websocket, set_cookie: body.set_cookie },
    };
    let row = state.access.create_target(scope.org, new, &scope.actor()).await?;
    Ok((StatusCode::CREATED, Json(Shown::new(&state, scope.org).show(row).await?)))
}

/// Get a target
#[utoipa::path(
    get, path = "/api/organizations/{org}/targets/{slug}", tag = "targets",
    params(("org" = String, Path, description = "Organization: name or id"), ("slug" = String, Path)),
    responses(
        Refusals,
        (status = 200, body = TargetView, description = "The target."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `target_not_found`."),
    ),
)]
async fn get_target(
    scope: Scope,
    Slug(slug): Slug,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<TargetView>, ApiError> {
    let row = state.store.target(scope.org, &slug).await?.ok_or_else(ApiError::target_not_found)?;
    Ok(Json(Shown::new(&state, scope.org).show(row).await?))
}

/// Change a static target
#[utoipa::path(
    patch, path = "/api/organizations/{org}/targets/{slug}", tag = "targets",
    params(("org" = String, Path, description = "Organization: name or id"), ("slug" = String, Path)),
    request_body = TargetChangeBody,
    responses(
        Refusals,
        (status = 200, body = TargetView, description = "As it is now."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `target_not_found`."),
        (status = 409, body = ErrorBody, description = "`managed_target`."),
    ),
)]
async fn update_target(
    scope: Scope,
    Slug(slug): Slug,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(body): Body<TargetChangeBody>,
) -> Result<Json<TargetView>, ApiError> {
    let change = TargetChange {
        name: body.name,
        base_url: body.base_url,
        credential: body.credential.map(StaticCredential::from),
        fence: body.fence,
        concurrency: body.concurrency,
        reflect_guard: body.reflect_guard,
        http1_only: body.http1_only,
        websocket: body.websocket,
        set_cookie: body.set_cookie,
    };
    let row = state.access.update_target(scope.org, &slug, change, &scope.actor()).await?;
    Ok(Json(Shown::new(&state, scope.org).show(row).await?))
}

/// Delete a static target and its grants
#[utoipa::path(
    delete, path = "/api/organizations/{org}/targets/{slug}", tag = "targets",
    params(("org" = String, Path, description = "Organization: name or id"), ("slug" = String, Path)),
    responses(
        Refusals,
        (status = 204, description = "It is gone."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `target_not_found`."),
        (status = 409, body = ErrorBody, description = "`managed_target`."),
    ),
)]
async fn delete_target(
    scope: Scope,
    Slug(slug): Slug,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<StatusCode, ApiError> {
    state.access.delete_target(scope.org, &slug, &scope.actor()).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::super::extract::read_json;
    use super::super::target_view::kind_of;
    use super::*;

    fn body(credential: &str) -> Result<NewTargetBody, ApiError> {
        let json = format!(r#"{{"slug":"crm","base_url":"https://api.example.com/v2","credential":{credential}}}"#);
        read_json(json.as_bytes())
    }

    #[test]
    fn every_kind_of_credential_is_read() {
        for (json, kind) in [
            (r#"{"kind":"bearer","token":"t"}"#, "bearer"),
            (r#"{"kind":"basic","username":"u","password":"p"}"#, "basic"),
            (r#"{"kind":"header","name":"X-Key","value":"v"}"#, "headers"),
            (r#"{"kind":"headers","headers":{"X-Key":"v","X-Two":"w"}}"#, "headers"),
            (r#"{"kind":"query","name":"key","value":"v"}"#, "query"),
            (r#"{"kind":"none"}"#, "none"),
        ] {
            let read = body(json).unwrap();
            assert_eq!((kind_of(&read.credential.into()), read.fence.len()), (kind, 0), "{json}");
        }
    }

    #[test]
    fn a_credential_that_is_wrong_is_refused_without_showing_it() {
        for json in [
            r#"{"kind":"bearer","token":"hunter2","more":1}"#,
            r#"{"kind":"none","token":"hunter2"}"#,
            r#"{"kind":"bearer"}"#,
            r#"{"kind":"magic","token":"hunter2"}"#,
            r#"{"token":"hunter2"}"#,
            r#""hunter2""#,
            r#"{"kind":"headers","headers":"hunter2"}"#,
        ] {
            let Err(error) = body(json) else { panic!("{json} was read") };
            assert!(error.message.contains("`credential"), "{json}: {}", error.message);
            assert!(!error.message.contains("hunter2"), "{json}: {}", error.message);
        }
    }
}
