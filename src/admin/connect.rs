//! Connecting an account by API: a link to begin with, and pasting back the end of it where no browser can bring it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{AppendHeaders, IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::accounts::{AccountView, Begin, Callback, Proof};
use crate::audit::Actor;
use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, FlowId};
use crate::secret::Secret;
use crate::store::Captures;

use super::AdminState;
use super::edge::{cross_site, is_from_elsewhere};
use super::error::{ApiError, ErrorBody};
use super::extract::{Body, Nothing, ProviderId, Query, Scope, read_query};
use super::flow::flow_cookie;
use super::openapi::Refusals;

pub(super) fn routes() -> OpenApiRouter<AdminState> {
    OpenApiRouter::new().routes(routes!(get_auth_link)).routes(routes!(finish_connecting))
}

#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "describes what `Wish` reads; a query with brackets has no derive")]
struct AuthLinkQuery {
    /// Capability ids, separated by commas; all of the provider's when absent.
    capabilities: Option<String>,
    /// Reading, or reading and writing; default: what the account to reconnect has, else `read`.
    #[param(inline)]
    preset: Option<Preset>,
    /// Reconnect this account and no other.
    account: Option<AccountId>,
    /// Values for the provider's inputs: `input[tenant]=contoso`.
    #[param(style = DeepObject, explode)]
    input: Option<BTreeMap<String, String>>,
}

/// Where to go to connect an account.
#[derive(Serialize, ToSchema)]
struct AuthLink {
    /// With a session: the provider's page. With the admin token: a one-time page of Keyward's, for a browser.
    authorization_url: String,
    /// The flow.
    flow_id: FlowId,
    /// It is over then.
    expires_at: Timestamp,
}

/// What the provider's redirect carried, pasted back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PastedCallback {
    /// `code` of the redirect's query.
    code: String,
    /// `state` of the redirect's query.
    state: String,
    /// `iss`, when it was there.
    iss: Option<String>,
    /// Anything else that was there and that this provider needs, such as `realmId`.
    #[serde(default)]
    params: BTreeMap<String, String>,
}

/// Begin connecting an account
///
/// With a session, the answer is the provider's own page and binds the flow to this browser. With the admin token, it is a
/// one-time page of Keyward's: whoever opens it connects the account in their browser.
#[utoipa::path(
    get, path = "/api/organizations/{org}/integrations/{provider}/auth_link", tag = "integrations",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("provider" = String, Path, description = "Provider id"),
        AuthLinkQuery,
    ),
    responses(
        Refusals,
        (status = 200, body = AuthLink, description = "Open `authorization_url` in a browser."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `provider_not_found`, `account_not_found`."),
        (status = 501, body = ErrorBody, description = "`provider_not_configured`: the hint names two variables."),
    ),
)]
async fn get_auth_link(
    scope: Scope,
    ProviderId(provider): ProviderId,
    State(state): State<AdminState>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let wish = Wish::read(query.as_deref().unwrap_or_default())?;
    let actor = scope.actor();
    let with_session = actor == Actor::Session;
    // A GET, but one that begins something: another site's page may not do that in somebody's browser.
    if with_session && is_from_elsewhere(&headers) {
        return Err(cross_site());
    }
    let begin = Begin {
        organization: scope.org,
        provider,
        capabilities: wish.capabilities,
        preset: wish.preset,
        account: wish.account,
        inputs: wish.inputs,
        actor,
    };
    let begun = state.accounts.begin(begin).await?;
    if !with_session {
        let link = AuthLink { authorization_url: begun.page_url, flow_id: begun.flow, expires_at: begun.expires_at };
        return Ok(Json(link).into_response());
    }
    let opened = state.accounts.open(begun.flow).await?;
    let cookie = AppendHeaders([(header::SET_COOKIE, flow_cookie(&state, &opened))]);
    let link =
        AuthLink { authorization_url: opened.authorization_url, flow_id: begun.flow, expires_at: opened.expires_at };
    Ok((cookie, Json(link)).into_response())
}

/// The query of `auth_link`, checked.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    capabilities: Vec<String>,
    preset: Option<Preset>,
    account: Option<AccountId>,
    inputs: Captures,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainWish {
    capabilities: Option<String>,
    preset: Option<Preset>,
    account: Option<String>,
}

impl Wish {
    fn read(query: &str) -> Result<Self, ApiError> {
        let mut inputs = Captures::new();
        let mut plain = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match name.strip_prefix("input[").and_then(|name| name.strip_suffix(']')) {
                Some(input) => {
                    if inputs.insert(input.to_owned(), value.into_owned()).is_some() {
                        return Err(ApiError::bad_request(format!("query `input[{input}]`: given twice")));
                    }
                }
                None => {
                    plain.append_pair(&name, &value);
                }
            }
        }
        let plain: PlainWish = read_query(&plain.finish())?;
        let capabilities = plain.capabilities.unwrap_or_default();
        let capabilities = capabilities.split(',').map(str::trim).filter(|id| !id.is_empty());
        let account = match plain.account {
            Some(text) => Some(text.parse().map_err(|_| ApiError::account_not_found())?),
            None => None,
        };
        Ok(Self { capabilities: capabilities.map(str::to_owned).collect(), preset: plain.preset, account, inputs })
    }
}

/// Finish connecting by hand
///
/// For a Keyward that the browser can't reach: paste back what the redirect's query held. With the admin token only.
#[utoipa::path(
    post, path = "/api/organizations/{org}/integrations/{provider}/callback", tag = "integrations",
    params(
        ("org" = String, Path, description = "Organization: name or id"),
        ("provider" = String, Path, description = "Provider id"),
    ),
    request_body = PastedCallback,
    responses(
        Refusals,
        (status = 200, body = AccountView, description = "The connected account."),
        (status = 400, body = ErrorBody, description = "`invalid_state`, `exchange_failed`, `bad_request`."),
        (status = 404, body = ErrorBody, description = "`organization_not_found`, `provider_not_found`."),
        (status = 409, body = ErrorBody, description = "`another_identity`: not the account to reconnect."),
    ),
)]
async fn finish_connecting(
    scope: Scope,
    ProviderId(provider): ProviderId,
    State(state): State<AdminState>,
    Query(Nothing {}): Query<Nothing>,
    Body(pasted): Body<PastedCallback>,
) -> Result<Json<AccountView>, ApiError> {
    // Without the flow's cookie nothing binds the code to a browser, so a browser may not do this.
    if scope.actor() != Actor::AdminToken {
        return Err(ApiError::new(StatusCode::FORBIDDEN, "not_permitted", "pasting back needs the admin token")
            .hint("Send `Authorization: Bearer kwa_…`, or connect in the dashboard."));
    }
    let callback = Callback {
        provider,
        state: Some(Secret::new(pasted.state)),
        code: Some(Secret::new(pasted.code)),
        error: None,
        iss: pasted.iss,
        rest: pasted.params,
    };
    let proof = Proof::Administrator { organization: scope.org };
    let connected = state.accounts.finish(callback, proof).await?;
    Ok(Json(state.accounts.view(connected.account)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_from_the_query() {
        let account = AccountId::new();
        let wish =
            Wish::read(&format!("capabilities=mail,calendar&preset=write&account={account}&input[tenant]=t%201"));
        assert_eq!(
            wish.unwrap(),
            Wish {
                capabilities: vec!["mail".into(), "calendar".into()],
                preset: Some(Preset::Write),
                account: Some(account),
                inputs: Captures::from([("tenant".to_owned(), "t 1".to_owned())]),
            }
        );
        let nothing = Wish::read("").unwrap();
        assert_eq!((nothing.capabilities.len(), nothing.preset), (0, None));
    }

    #[test]
    fn a_wish_that_can_not_be_read_is_refused() {
        for (query, code) in [
            ("scopes=all", "bad_request"),
            ("preset=admin", "bad_request"),
            ("account=nobody", "account_not_found"),
            ("input[a]=1&input[a]=2", "bad_request"),
            ("input=1", "bad_request"),
        ] {
            assert_eq!(Wish::read(query).unwrap_err().code, code, "{query}");
        }
    }
}
