//! Providers as an organization sees them: what can be connected, what is, and shortcuts for the case that there is
//! exactly one account.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::AccountView;
use crate::catalog::Provider;
use crate::ids::{AccountId, OrgId};
use crate::store::{AccountFilter, AccountRow, Page};

use super::AdminState;
use super::accounts::{ConfirmQuery, DisconnectedView, ValidationView, disconnect, validate};
use super::error::{ApiError, ErrorBody};
use super::extract::{Nothing, ProviderId, Query, Scope};
use super::list::List;
use super::openapi::Refusals;

/// How many accounts the list of integrations shows in all; `/accounts` pages through any number.
const ACCOUNTS_SHOWN: usize = 1_000;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new()
        .routes(routes!(list_integrations))
        .routes(routes!(validate_only_account, disconnect_only_account))
}

/// A provider and its accounts.
#[derive(Serialize, ToSchema)]
struct Integration {
    /// Provider id.
    provider: String,
    /// Provider name.
    name: String,
    /// The provider's documentation.
    docs: Option<String>,
    /// Whether its client id and secret are set.
    configured: bool,
    /// The two environment variables that set them.
    variables: [String; 2],
    /// What can be connected.
    capabilities: Vec<CapabilityView>,
    /// What is asked at connect.
    inputs: Vec<InputView>,
    /// Its accounts.
    accounts: Vec<AccountView>,
    /// There may be more accounts than are shown here; `…/accounts?provider=` lists all.
    more_accounts: bool,
}

/// A named slice of a provider's API.
#[derive(Serialize, ToSchema)]
#[schema(as = Capability)]
struct CapabilityView {
    /// Id.
    id: String,
    /// For people.
    name: String,
}

/// A value asked for at connect.
#[derive(Serialize, ToSchema)]
#[schema(as = Input)]
struct InputView {
    /// The `…` in `input[…]`.
    name: String,
    /// For people.
    label: String,
    /// Used when nothing is given.
    default: Option<String>,
}

/// List providers, each with its accounts
#[utoipa::path(
    get, path = "/api/organizations/{org}/integrations", tag = "integrations",
    params(("org" = String, Path, description = "Organization: name or id")),
    responses(Refusals, (status = 200, body = List<Integration>, description = "All providers, by id.")),
)]
async fn list_integrations(
    scope: Scope,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<List<Integration>>, ApiError> {
    let (rows, more) = all_accounts(&state, scope.org).await?;
    let mut by_provider: BTreeMap<String, Vec<AccountView>> = BTreeMap::new();
    for row in rows {
        by_provider.entry(row.provider.clone()).or_default().push(state.accounts.view(row));
    }
    let show = |provider: &Provider| show(provider, by_provider.remove(&provider.id).unwrap_or_default(), more);
    Ok(List::whole(state.catalog.iter().map(|provider| provider.as_ref()).map(show).collect()))
}

async fn all_accounts(state: &AdminState, org: OrgId) -> Result<(Vec<AccountRow>, bool), ApiError> {
    let mut rows = Vec::new();
    let mut page = Page { limit: 200, after: None };
    loop {
        let mut paged = state.store.accounts(org, &AccountFilter::default(), &page).await?;
        rows.append(&mut paged.items);
        match paged.next {
            None => return Ok((rows, false)),
            Some(_) if rows.len() >= ACCOUNTS_SHOWN => return Ok((rows, true)),
            next => page.after = next,
        }
    }
}

fn show(provider: &Provider, accounts: Vec<AccountView>, more_accounts: bool) -> Integration {
    let capabilities = provider.capabilities.values();
    let inputs = provider.inputs.iter();
    Integration {
        provider: provider.id.clone(),
        name: provider.name.clone(),
        docs: provider.docs.clone(),
        configured: provider.client.is_some(),
        variables: [format!("OAUTH_{}_CLIENT_ID", provider.env), format!("OAUTH_{}_CLIENT_SECRET", provider.env)],
        capabilities: capabilities.map(|c| CapabilityView { id: c.id.clone(), name: c.name.clone() }).collect(),
        inputs: inputs
            .map(|(name, input)| InputView {
                name: name.clone(),
                label: input.label.clone(),
                default: input.default.clone(),
            })
            .collect(),
        accounts,
        more_accounts,
    }
}

/// Validate the only account of a provider
#[utoipa::path(
    post, path = "/api/organizations/{org}/integrations/{provider}", tag = "integrations",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("provider" = String, Path, description = "Provider id"),
    ),
    responses(
        Refusals,
        (status = 200, body = ValidationView, description = "What the check saw; that the provider can't be asked now is a result too."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `provider_not_found`, `account_not_found`."),
        (status = 409, body = ErrorBody, description = "`several_accounts`."),
    ),
)]
async fn validate_only_account(
    scope: Scope,
    ProviderId(provider): ProviderId,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<ValidationView>, ApiError> {
    let id = only_account(&state, scope.org, provider).await?;
    validate(&state, &scope, id).await
}

/// Disconnect the only account of a provider
#[utoipa::path(
    delete, path = "/api/organizations/{org}/integrations/{provider}", tag = "integrations",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("provider" = String, Path, description = "Provider id"),
        ConfirmQuery,
    ),
    responses(
        Refusals,
        (status = 200, body = DisconnectedView, description = "It is gone."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `provider_not_found`, `account_not_found`."),
        (status = 409, body = ErrorBody, description = "`several_accounts`, `needs_confirmation`."),
    ),
)]
async fn disconnect_only_account(
    scope: Scope,
    ProviderId(provider): ProviderId,
    State(state): State<AdminState>,
    Query(query): Query<ConfirmQuery>,
) -> Result<Json<DisconnectedView>, ApiError> {
    let id = only_account(&state, scope.org, provider).await?;
    disconnect(&state, &scope, id, &query).await
}

async fn only_account(state: &AdminState, org: OrgId, provider: String) -> Result<AccountId, ApiError> {
    let filter = AccountFilter { provider: Some(provider), status: None };
    let rows = state.store.accounts(org, &filter, &Page { limit: 2, after: None }).await?;
    only(rows.items.iter().map(|row| row.id))
}

fn only(mut accounts: impl Iterator<Item = AccountId>) -> Result<AccountId, ApiError> {
    match (accounts.next(), accounts.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(ApiError::account_not_found()),
        (Some(_), Some(_)) => {
            Err(ApiError::new(StatusCode::CONFLICT, "several_accounts", "this provider has several accounts")
                .hint("Name one: /api/organizations/{org}/accounts/{id}."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_account_must_be_the_only_one() {
        let (a, b) = (AccountId::new(), AccountId::new());
        assert_eq!(only([a].into_iter()).ok(), Some(a));
        assert_eq!(only([].into_iter()).unwrap_err().code, "account_not_found");
        assert_eq!(only([a, b].into_iter()).unwrap_err().code, "several_accounts");
    }
}
