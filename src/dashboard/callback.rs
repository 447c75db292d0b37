//! Where the browser comes back to: the redirect URI, and the pages of the two ends.
//!
//! The callback's GET spends nothing: it shows *Connecting integration…* with what the provider sent in a form, and the
//! POST of that form (by the script, or by a person) finishes the flow. So a preview, a reload or a replay of the
//! callback's address does nothing, and the result page's address holds no code.

use std::collections::BTreeSet;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Response;
use http::HeaderMap;

use crate::accounts::{ConnectError, Proof};
use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::admin::flow::{callback_of, clear_flow_cookie, read_flow_cookie};
use crate::ids::AccountId;

use super::fields::{Asked, Posted};
use super::integrations::AccountCard;
use super::page::{Reply, Shell, html, link as address, organization, see_other};
use super::problem::known;
use super::words;

/// Parameters of a callback that are carried on, and their bytes together. Real ones have a handful.
const CALLBACK_FIELDS: usize = 40;
const CALLBACK_BYTES: usize = 16 * 1024;

#[derive(Template)]
#[template(path = "connecting.html")]
pub(super) struct ConnectingPage {
    pub shell: Shell,
    pub provider: String,
    pub provider_name: String,
    /// What the provider sent.
    pub fields: Vec<(String, String)>,
}

#[derive(Template)]
#[template(path = "connected.html")]
pub(super) struct ConnectedPage {
    pub shell: Shell,
    pub provider: String,
    pub provider_name: String,
    /// Only for somebody who is signed in.
    pub account: Option<AccountCard>,
    pub reconnected: bool,
}

#[derive(Template)]
#[template(path = "failed.html")]
pub(super) struct FailedPage {
    pub shell: Shell,
    pub provider: String,
    pub provider_name: String,
    pub code: &'static str,
    pub message: &'static str,
    pub hint: &'static str,
}

/// `GET /integrations/{provider}/callback`: the redirect URI.
pub(super) async fn returned(
    State(state): State<AdminState>,
    Path(provider): Path<String>,
    Asked(query): Asked,
) -> Reply {
    let found = known(&state.catalog, &provider)?;
    if query.one("state").is_none() {
        // Also a reload after the script has taken the parameters out of the address.
        return fail(&provider, &ConnectError::InvalidState, &[]);
    }
    let fields = query.into_pairs();
    if !carried(&fields) {
        return fail(&provider, &ConnectError::BadRequest(String::new()), &[]);
    }
    let shell = Shell::alone("Connecting integration…");
    Ok(html(&ConnectingPage { shell, provider_name: found.name.clone(), provider, fields }))
}

/// `POST /integrations/{provider}/callback`: spends what the provider sent. The flow's cookie is the proof.
pub(super) async fn finish(
    State(state): State<AdminState>,
    Path(provider): Path<String>,
    headers: HeaderMap,
    Posted(form): Posted,
) -> Reply {
    known(&state.catalog, &provider)?;
    let over = [clear_flow_cookie(&state)];
    if !carried(form.pairs()) {
        return fail(&provider, &ConnectError::BadRequest(String::new()), &[]);
    }
    let callback = callback_of(&provider, &form.encoded());
    let proof = Proof::Cookie(read_flow_cookie(&state, &headers));
    match state.accounts.finish(callback, proof).await {
        Ok(connected) => {
            let account = connected.account.id.to_string();
            let again = if connected.reconnected { "1" } else { "" };
            let path = format!("/integrations/{}/connected", connected.account.provider);
            see_other(&address(&path, &[("account", &account), ("reconnected", again)]), &over)
        }
        Err(error) => fail(&provider, &error, &over),
    }
}

/// `GET /integrations/{provider}/connected`: the good end. Shows the account only to somebody who is signed in; the
/// person of a connect link isn't.
pub(super) async fn connected(
    State(state): State<AdminState>,
    user: Result<SignedIn, Response>,
    Path(provider): Path<String>,
    Asked(query): Asked,
) -> Reply {
    let found = known(&state.catalog, &provider)?;
    let id: Option<AccountId> = query.one("account").and_then(|id| id.parse().ok());
    let row = match id.filter(|_| user.is_ok()) {
        Some(id) => state.store.account(organization(&state).await?, id).await?,
        None => None,
    };
    let row = row.filter(|row| row.provider == provider);
    Ok(html(&ConnectedPage {
        shell: result_shell("Integration connected", user.is_ok()),
        provider_name: found.name.clone(),
        provider,
        account: row.map(|row| AccountCard::new(state.accounts.view(row), &state.proxy_url, state.clock.now())),
        reconnected: query.one("reconnected").is_some(),
    }))
}

/// `GET /integrations/{provider}/failed`: the other end.
pub(super) async fn failed(
    State(state): State<AdminState>,
    user: Result<SignedIn, Response>,
    Path(provider): Path<String>,
    Asked(query): Asked,
) -> Reply {
    let found = known(&state.catalog, &provider)?;
    let (code, message, hint) = words::failure(query.one("code").unwrap_or_default());
    Ok(html(&FailedPage {
        shell: result_shell("Failed to connect integration", user.is_ok()),
        provider_name: found.name.clone(),
        provider,
        code,
        message,
        hint,
    }))
}

fn result_shell(title: &str, signed_in: bool) -> Shell {
    Shell { signed_in, ..Shell::alone(title) }
}

/// To the page of the bad end. The service has noted the cause of everything but our own failures.
fn fail(provider: &str, error: &ConnectError, cookies: &[String]) -> Reply {
    if let ConnectError::Internal(cause) = error {
        tracing::error!(provider, cause = format!("{cause:#}"), "connecting a {provider} account failed");
    }
    let path = format!("/integrations/{provider}/failed");
    see_other(&address(&path, &[("code", words::failure_code(error))]), cookies)
}

/// Whether a callback's parameters are ones that we carry on.
fn carried(fields: &[(String, String)]) -> bool {
    let bytes: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    let names: BTreeSet<&str> = fields.iter().map(|(name, _)| name.as_str()).collect();
    fields.len() <= CALLBACK_FIELDS && bytes <= CALLBACK_BYTES && names.len() == fields.len()
}

#[cfg(test)]
mod tests {
    use super::super::fields::Fields;
    use super::*;

    #[test]
    fn odd_callbacks_are_not_carried_on() {
        let pairs = |text: &str| Fields::parse(text.as_bytes()).into_pairs();
        assert!(carried(&pairs("state=a&code=b&iss=c")));
        assert!(!carried(&pairs("state=a&code=b&code=c")));
        assert!(!carried(&pairs(&format!("state={}", "a".repeat(CALLBACK_BYTES)))));
    }
}
