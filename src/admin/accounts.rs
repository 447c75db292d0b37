//! Connected accounts: seen, checked, refreshed, disconnected.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::{AccountView, Validation};
use crate::clock::Timestamp;
use crate::ids::AccountId;
use crate::store::{AccountFilter, Status};

use super::AdminState;
use super::error::{ApiError, ErrorBody};
use super::extract::{Id, Nothing, Query, Scope};
use super::list::{List, page};
use super::openapi::Refusals;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(list_accounts))
        .routes(routes!(get_account, disconnect_account))
        .routes(routes!(validate_account))
        .routes(routes!(refresh_account))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct AccountsQuery {
    /// Of this provider.
    provider: Option<String>,
    /// In this status.
    status: Option<Status>,
    /// Entries wanted, 1 to 200; default 50.
    #[param(minimum = 1, maximum = 200)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// What disconnecting takes.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ConfirmQuery {
    /// `true`: also when grants go with it.
    #[serde(default)]
    confirm: bool,
}

/// What a check saw.
#[derive(Serialize, ToSchema)]
#[schema(as = Validation)]
pub(super) struct ValidationView {
    /// The provider accepted the token, or refused it; `null`: it could not be asked now.
    #[schema(required = true)]
    is_valid: Option<bool>,
    /// The account afterwards.
    account: AccountView,
    /// When the provider last really answered.
    #[schema(required = true)]
    checked_at: Option<Timestamp>,
}

/// What disconnecting removed.
#[derive(Serialize, ToSchema)]
#[schema(as = Disconnected)]
pub(super) struct DisconnectedView {
    /// The account.
    id: AccountId,
    /// The slugs of its managed targets, which are gone with their grants.
    removed_targets: Vec<String>,
}

/// List accounts
#[utoipa::path(
    get, path = "/api/organizations/{org}/accounts", tag = "accounts",
    params(("org" = String, Path, description = "Organization: name or id"), AccountsQuery),
    responses(Refusals, (status = 200, body = List<AccountView>, description = "Oldest first.")),
)]
async fn list_accounts(
    scope: Scope,
    State(state): State<AdminState>,
    Query(query): Query<AccountsQuery>,
) -> Result<Json<List<AccountView>>, ApiError> {
    let page = page(query.limit, query.cursor)?;
    let filter = AccountFilter { provider: query.provider, status: query.status };
    let rows = state.store.accounts(scope.org, &filter, &page).await?;
    Ok(List::of(rows, |row| state.accounts.view(row)))
}

/// Get an account
#[utoipa::path(
    get, path = "/api/organizations/{org}/accounts/{id}", tag = "accounts",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = AccountId, Path)),
    responses(
        Refusals,
        (status = 200, body = AccountView, description = "The account."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `account_not_found`."),
    ),
)]
async fn get_account(
    scope: Scope,
    Id(id): Id<AccountId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<AccountView>, ApiError> {
    let row = state.store.account(scope.org, id).await?.ok_or_else(ApiError::account_not_found)?;
    Ok(Json(state.accounts.view(row)))
}

/// Ask the provider whether an account's token works
#[utoipa::path(
    post, path = "/api/organizations/{org}/accounts/{id}/validate", tag = "accounts",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = AccountId, Path)),
    responses(
        Refusals,
        (status = 200, body = ValidationView, description = "What the check saw; a disconnected account is a result too, and so is a provider that can't be asked now."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `account_not_found`."),
    ),
)]
async fn validate_account(
    scope: Scope,
    Id(id): Id<AccountId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<ValidationView>, ApiError> {
    validate(&state, &scope, id).await
}

/// Refresh an account's token now
#[utoipa::path(
    post, path = "/api/organizations/{org}/accounts/{id}/refresh", tag = "accounts",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = AccountId, Path)),
    responses(
        Refusals,
        (status = 200, body = AccountView, description = "The account with its new token's end."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `account_not_found`."),
        (status = 409, body = ErrorBody, description = "`account_disconnected`: the hint is the page to reconnect it."),
        (status = 503, body = ErrorBody, description = "`token_unavailable`: the provider can't be asked now."),
    ),
)]
async fn refresh_account(
    scope: Scope,
    Id(id): Id<AccountId>,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<AccountView>, ApiError> {
    let refreshed = state.accounts.refresh_now(scope.org, id, scope.actor()).await;
    let row = refreshed.map_err(|error| ApiError::refresh(error, &state.accounts))?;
    Ok(Json(state.accounts.view(row)))
}

/// Disconnect an account
///
/// Erases its tokens, removes its targets and their grants, and revokes the grant at the provider.
#[utoipa::path(
    delete, path = "/api/organizations/{org}/accounts/{id}", tag = "accounts",
    params(("org" = String, Path, description = "Organization: name or id"), ("id" = AccountId, Path), ConfirmQuery),
    responses(
        Refusals,
        (status = 200, body = DisconnectedView, description = "It is gone."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `account_not_found`."),
        (status = 409, body = ErrorBody, description = "`needs_confirmation`: grants exist; `?confirm=true` does it."),
    ),
)]
async fn disconnect_account(
    scope: Scope,
    Id(id): Id<AccountId>,
    State(state): State<AdminState>,
    Query(query): Query<ConfirmQuery>,
) -> Result<Json<DisconnectedView>, ApiError> {
    disconnect(&state, &scope, id, &query).await
}

pub(super) async fn validate(
    state: &AdminState,
    scope: &Scope,
    id: AccountId,
) -> Result<Json<ValidationView>, ApiError> {
    let seen = state.accounts.validate(scope.org, id, scope.actor()).await;
    let Validation { is_valid, account, checked_at } =
        seen.map_err(|error| ApiError::refresh(error, &state.accounts))?;
    Ok(Json(ValidationView { is_valid, account: state.accounts.view(account), checked_at }))
}

pub(super) async fn disconnect(
    state: &AdminState,
    scope: &Scope,
    id: AccountId,
    query: &ConfirmQuery,
) -> Result<Json<DisconnectedView>, ApiError> {
    let targets = state.accounts.disconnect(scope.org, id, query.confirm, scope.actor()).await?;
    Ok(Json(DisconnectedView { id, removed_targets: targets.into_iter().map(|target| target.slug).collect() }))
}
