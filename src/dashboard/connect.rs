//! Where a connect flow begins in a browser: a button of the dashboard, or the page of a one-time link. Both end with the
//! flow's cookie set here and the browser on its way to the provider.

use askama::Template;
use axum::extract::{FromRequestParts, Path, State};
use axum::response::Response;
use http::header::ORIGIN;
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use url::Url;

use crate::accounts::{Begin, ConnectError, Opened};
use crate::admin::AdminState;
use crate::admin::auth::SignedIn;
use crate::admin::flow::flow_cookie;
use crate::catalog::Preset;
use crate::ids::{FlowId, KeyId};
use crate::store::{Captures, FlowRow};

use super::fields::Posted;
use super::integrations::account_id;
use super::page::{Reply, Shell, html_to_providers, organization, see_other};
use super::problem::{Problem, known};
use super::when::When;
use super::words;

#[derive(Template)]
#[template(path = "link.html")]
pub(super) struct LinkPage {
    pub shell: Shell,
    pub flow: String,
    pub provider_name: String,
    pub initials: String,
    pub asked_by: &'static str,
    pub capabilities: Vec<String>,
    pub preset: &'static str,
    /// The account that is to be connected again.
    pub account: Option<String>,
    pub expires: When,
}

/// `POST /integrations/{provider}/connect`: begins and opens a flow in this browser.
pub(super) async fn connect(
    State(state): State<AdminState>,
    user: SignedIn,
    Path(provider): Path<String>,
    headers: HeaderMap,
    Posted(form): Posted,
) -> Reply {
    at_public_address(&state, &headers)?;
    let offers_choice = !known(&state.catalog, &provider)?.capabilities.is_empty();
    let capabilities: Vec<String> = form.all("capability").map(str::to_owned).collect();
    if offers_choice && capabilities.is_empty() {
        // To the service, none means all; a person who unticked every box meant something else.
        return see_other("/integrations?done=choose_capability", &[]);
    }
    let preset = match form.one("preset") {
        Some("write") => Some(Preset::Write),
        _ => Some(Preset::Read),
    };
    let given = form.prefixed("input.").map(|(name, value)| (name.to_owned(), value.trim().to_owned()));
    let inputs: Captures = given.filter(|(_, value)| !value.is_empty()).collect();
    let organization = organization(&state).await?;
    let begin = Begin { organization, provider, capabilities, preset, account: None, inputs, actor: user.actor };
    let begun = state.accounts.begin(begin).await?;
    go(&state, &state.accounts.open(begun.flow).await?)
}

/// `POST /accounts/{id}/reconnect`: the same for one account, with what it was connected with.
pub(super) async fn reconnect(
    State(state): State<AdminState>,
    user: SignedIn,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Reply {
    at_public_address(&state, &headers)?;
    let id = account_id(&id)?;
    let organization = organization(&state).await?;
    let Some(account) = state.store.account(organization, id).await? else {
        return Err(ConnectError::AccountNotFound.into());
    };
    let provider = known(&state.catalog, &account.provider)?;
    let inputs = account.captures.into_iter().filter(|(name, _)| provider.inputs.contains_key(name)).collect();
    let begin = Begin {
        organization,
        provider: account.provider,
        capabilities: account.targets.into_iter().map(|target| target.capability).collect(),
        preset: Some(account.preset),
        account: Some(id),
        inputs,
        actor: user.actor,
    };
    let begun = state.accounts.begin(begin).await?;
    go(&state, &state.accounts.open(begun.flow).await?)
}

/// `GET /connect/{flow}`: a page for whoever got the link. Looking at it opens nothing.
pub(super) async fn link(State(state): State<AdminState>, Flow(flow): Flow) -> Reply {
    let provider = known(&state.catalog, &flow.provider)?;
    let name = |id: &String| provider.capabilities.get(id).map_or_else(|| id.clone(), |found| found.name.clone());
    let account = match flow.account {
        Some(id) => state.store.account(flow.organization, id).await?.map(|row| row.email.unwrap_or(row.subject)),
        None => None,
    };
    Ok(html_to_providers(&LinkPage {
        shell: Shell::alone(format!("Connect {}", provider.name)),
        flow: flow.id.to_string(),
        provider_name: provider.name.clone(),
        initials: words::initials(&provider.name),
        asked_by: words::asked_by(&flow.actor),
        capabilities: flow.capabilities.iter().map(name).collect(),
        preset: words::preset(flow.preset),
        account,
        expires: When::new(flow.expires_at, state.clock.now()),
    }))
}

/// `POST /connect/{flow}`: its button. From here on only this browser can finish the flow.
pub(super) async fn follow(State(state): State<AdminState>, headers: HeaderMap, Flow(flow): Flow) -> Reply {
    at_public_address(&state, &headers)?;
    match state.accounts.open(flow.id).await {
        Ok(opened) => go(&state, &opened),
        Err(ConnectError::InvalidState) => Err(Problem::link_over()),
        Err(error) => Err(error.into()),
    }
}

/// The flow of a link that may still be opened. A link that an agent asked for needs somebody who is signed in, or an
/// agent could talk anybody into connecting an account to it.
pub(super) struct Flow(FlowRow);

impl FromRequestParts<AdminState> for Flow {
    type Rejection = Result<Response, Problem>;

    async fn from_request_parts(parts: &mut Parts, state: &AdminState) -> Result<Self, Self::Rejection> {
        let Path(id) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| Err(Problem::link_over()))?;
        let id: FlowId = id.parse().map_err(|_| Err(Problem::link_over()))?;
        let flow = state.accounts.flow(id).await.map_err(|error| match error {
            ConnectError::InvalidState => Err(Problem::link_over()),
            error => Err(error.into()),
        })?;
        if flow.actor.parse::<KeyId>().is_ok() {
            SignedIn::from_request_parts(parts, state).await.map_err(Ok)?;
        }
        Ok(Self(flow))
    }
}

/// On to the provider, with the cookie that binds the flow to this browser.
fn go(state: &AdminState, opened: &Opened) -> Reply {
    see_other(&opened.authorization_url, &[flow_cookie(state, opened)])
}

/// Providers send people back to the public URL. Begun under another name of this machine (`localhost` for
/// `127.0.0.1`), the flow's cookie would not be there then, so say so before anything starts. `Host` does not tell: a
/// proxy in front may have rewritten it.
fn at_public_address(state: &AdminState, headers: &HeaderMap) -> Result<(), Problem> {
    let origin = headers.get(ORIGIN).and_then(|value| value.to_str().ok());
    match origin {
        Some(here) if !same_origin(here, &state.public_url) => Err(wrong_address(here, &state.public_url)),
        _ => Ok(()),
    }
}

fn same_origin(here: &str, public: &str) -> bool {
    match (Url::parse(here), Url::parse(public)) {
        (Ok(here), Ok(public)) => here.origin() == public.origin(),
        // `null`, or nonsense: the same-origin proof was somebody else's job and is done.
        _ => true,
    }
}

fn wrong_address(here: &str, public: &str) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "wrong_address",
        "Open this page at its own address",
        format!("This page is open at {here}, but providers send people back to {public}."),
    )
    .hint(format!(
        "Open {public}/integrations and connect there, or set public_url in the [admin] part of gateway.toml."
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_begins_where_it_will_end() {
        assert!(same_origin("http://127.0.0.1:8081", "http://127.0.0.1:8081"));
        assert!(same_origin("https://keys.example.com", "https://keys.example.com:443"));
        assert!(same_origin("null", "http://127.0.0.1:8081"));
        assert!(!same_origin("http://localhost:8081", "http://127.0.0.1:8081"));
    }
}
