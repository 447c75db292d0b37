//! Providers, their accounts, and the buttons that look after an account.

use std::collections::BTreeMap;
use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};

use crate::accounts::{AccountView, RefreshError, TokenError};
use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::catalog::Provider;
use crate::clock::Timestamp;
use crate::ids::AccountId;
use crate::store::{AccountFilter, Reason, Status};

use super::fields::Asked;
use super::page::{Reply, Shell, html_to_providers, link, organization, piece, see_other};
use super::problem::Problem;
use super::when::When;
use super::words::{self, Tone};

#[derive(Template)]
#[template(path = "integrations.html")]
pub(super) struct IntegrationsPage {
    pub shell: Shell,
    /// Asked for by a reconnect link.
    pub reconnect: Option<AccountCard>,
    /// Usable, or with accounts.
    pub providers: Vec<ProviderCard>,
    /// Waiting for their two variables.
    pub waiting: Vec<ProviderCard>,
    /// Where the list of accounts goes on.
    pub next: Option<String>,
}

/// One provider.
pub(super) struct ProviderCard {
    pub id: String,
    pub name: String,
    pub initials: String,
    pub configured: bool,
    pub variables: [String; 2],
    pub capabilities: Vec<(String, String)>,
    /// Asked for before connecting: inputs without a default.
    pub needed: Vec<InputField>,
    /// Under "More": inputs with a default.
    pub more: Vec<InputField>,
    pub accounts: Vec<AccountCard>,
}

/// One input of a provider.
pub(super) struct InputField {
    pub name: String,
    pub label: String,
    pub default: String,
}

/// One account.
pub(super) struct AccountCard {
    pub id: String,
    pub provider_name: String,
    /// E-mail address, else a name, else the provider's own id.
    pub who: String,
    pub name: Option<String>,
    pub status: (Tone, &'static str),
    pub validity: (Tone, &'static str),
    pub reason: Option<&'static str>,
    pub checked: Option<When>,
    pub missing: Vec<String>,
    pub targets: Vec<TargetLine>,
    pub needs_reconnect: bool,
    pub highlighted: bool,
}

/// One target of an account.
pub(super) struct TargetLine {
    pub name: String,
    pub slug: String,
    pub proxy_url: String,
}

impl AccountCard {
    /// An account as a card.
    pub fn new(account: AccountView, proxy_url: &str, now: Timestamp) -> Self {
        let name = account.email.is_some().then_some(account.display_name.clone()).flatten();
        Self {
            id: account.id.to_string(),
            provider_name: account.provider_name,
            who: account.email.or(account.display_name).unwrap_or(account.subject),
            name,
            status: words::status(account.status),
            validity: words::validity(account.validity),
            reason: account.reason.map(words::reason),
            checked: account.checked_at.map(|at| When::new(at, now)),
            missing: account.missing_scopes,
            targets: account
                .targets
                .into_iter()
                .map(|target| TargetLine {
                    name: target.name,
                    proxy_url: format!("{proxy_url}/proxy/{}", target.slug),
                    slug: target.slug,
                })
                .collect(),
            needs_reconnect: account.status == Status::Disconnected,
            highlighted: false,
        }
    }
}

impl ProviderCard {
    /// A provider and its accounts as a card.
    pub fn new(provider: &Provider, accounts: Vec<AccountCard>) -> Self {
        let (needed, more) = provider.inputs.iter().partition(|(_, input)| input.default.is_none());
        let fields = |inputs: Vec<(&String, &crate::catalog::Input)>| {
            let field = |(name, input): (&String, &crate::catalog::Input)| InputField {
                name: name.clone(),
                label: input.label.clone(),
                default: input.default.clone().unwrap_or_default(),
            };
            inputs.into_iter().map(field).collect()
        };
        Self {
            id: provider.id.clone(),
            name: provider.name.clone(),
            initials: words::initials(&provider.name),
            configured: provider.client.is_some(),
            variables: words::variables(provider),
            capabilities: provider.capabilities.values().map(|c| (c.id.clone(), c.name.clone())).collect(),
            needed: fields(needed),
            more: fields(more),
            accounts,
        }
    }
}

/// `GET /integrations`.
pub(super) async fn show(State(state): State<AdminState>, _: SignedIn, Asked(query): Asked) -> Reply {
    let org = organization(&state).await?;
    let now = state.clock.now();
    let card = |row| AccountCard::new(state.accounts.view(row), &state.proxy_url, now);

    let wanted: Option<AccountId> = query.one("reconnect").and_then(|id| id.parse().ok());
    let reconnect = match wanted {
        Some(id) => state.store.account(org, id).await?.map(card),
        None => None,
    };

    let page = piece(query.one("after"));
    let rows = state.store.accounts(org, &AccountFilter::default(), &page).await?;
    let mut by_provider: BTreeMap<String, Vec<AccountCard>> = BTreeMap::new();
    for row in rows.items {
        let highlighted = wanted == Some(row.id);
        let cards = by_provider.entry(row.provider.clone()).or_default();
        cards.push(AccountCard { highlighted, ..card(row) });
    }

    let mut providers: Vec<ProviderCard> = state
        .catalog
        .iter()
        .map(|provider: &Arc<Provider>| {
            ProviderCard::new(provider, by_provider.remove(&provider.id).unwrap_or_default())
        })
        .collect();
    // Accounts of a provider that has left the catalog must stay within reach.
    providers.extend(by_provider.into_iter().map(|(id, accounts)| ProviderCard {
        initials: words::initials(&id),
        name: id.clone(),
        id,
        configured: true,
        variables: Default::default(),
        capabilities: Vec::new(),
        needed: Vec::new(),
        more: Vec::new(),
        accounts,
    }));
    let (mut providers, waiting): (Vec<_>, Vec<_>) =
        providers.into_iter().partition(|card| card.configured || !card.accounts.is_empty());
    providers.sort_by_key(|card| card.accounts.is_empty());

    let missing = wanted.is_some() && reconnect.is_none();
    let flash = if missing { Some("account_gone") } else { query.one("done") };
    Ok(html_to_providers(&IntegrationsPage {
        shell: Shell::new("Integrations", "integrations").flash(flash),
        reconnect,
        providers,
        waiting,
        next: rows.next.map(|after| link("/integrations", &[("after", &after)])),
    }))
}

/// `POST /accounts/{id}/validate`.
pub(super) async fn validate(State(state): State<AdminState>, user: SignedIn, Path(id): Path<String>) -> Reply {
    let id = account_id(&id)?;
    let org = organization(&state).await?;
    match state.accounts.validate(org, id, user.actor).await {
        Ok(seen) => back(seen.is_valid.map_or("not_checked", |valid| if valid { "valid" } else { "invalid" }), id),
        Err(error) => back(trouble(error)?, id),
    }
}

/// `POST /accounts/{id}/refresh`.
pub(super) async fn refresh(State(state): State<AdminState>, user: SignedIn, Path(id): Path<String>) -> Reply {
    let id = account_id(&id)?;
    let org = organization(&state).await?;
    match state.accounts.refresh_now(org, id, user.actor).await {
        Ok(account) if account.status == Status::Connected => back("refreshed", id),
        Ok(account) => back(stayed(account.status, account.reason), id),
        Err(error) => back(trouble(error)?, id),
    }
}

/// An id from a path.
pub(super) fn account_id(text: &str) -> Result<AccountId, Problem> {
    text.parse().map_err(|_| Problem::not_found("account_not_found", "There is no such account."))
}

/// Back to the account's place on the page, with a message.
fn back(done: &str, id: AccountId) -> Reply {
    see_other(&format!("{}#{id}", link("/integrations", &[("done", done)])), &[])
}

/// The message for an account that is still not well after a refresh.
fn stayed(status: Status, reason: Option<Reason>) -> &'static str {
    match (status, reason) {
        (Status::Disconnected, _) => "refresh_refused",
        (_, Some(Reason::ProviderMisconfigured)) => "misconfigured",
        _ => "refresh_later",
    }
}

/// Results that belong on the page are messages; the rest are pages of their own.
fn trouble(error: RefreshError) -> Result<&'static str, Problem> {
    match error {
        RefreshError::Token(TokenError::Disconnected { .. }) => Ok("refresh_refused"),
        RefreshError::Token(TokenError::Unavailable { reason: Reason::ProviderMisconfigured, .. }) => {
            Ok("misconfigured")
        }
        RefreshError::Token(TokenError::Unavailable { .. }) => Ok("refresh_later"),
        RefreshError::Token(TokenError::Gone) => Ok("account_gone"),
        other => Err(other.into()),
    }
}
