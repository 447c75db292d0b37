//! The connect flow as a state machine: begin, open in one browser, finish once. No HTML, no cookies, no axum.
//!
//! ```text
//! begin ──▶ flow row ──open(browser)──▶ state, cookie, verifier ──▶ provider ──▶ finish(callback, proof) ──▶ account
//! ```

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::audit::Actor;
use crate::catalog::{Preset, Provider};
use crate::clock::Timestamp;
use crate::ids::{self, AccountId, FlowId, OrgId};
use crate::oauth::AuthorizeRequest;
use crate::secret::{Secret, sha256};
use crate::store::{AccountRow, Captures, FlowOpened, FlowRow};
use crate::vault::Place;

use super::Accounts;

/// What somebody wants to connect.
pub struct Begin {
    /// For this organization.
    pub organization: OrgId,
    /// Provider id.
    pub provider: String,
    /// Capability ids; empty: all of the provider's.
    pub capabilities: Vec<String>,
    /// Reading, or reading and writing; `None`: what the account to reconnect has, else reading.
    pub preset: Option<Preset>,
    /// Reconnect this account and no other.
    pub account: Option<AccountId>,
    /// Values for the provider's inputs.
    pub inputs: Captures,
    /// Who asks.
    pub actor: Actor,
}

/// A flow that was begun.
#[derive(Debug)]
pub struct Begun {
    /// Its id.
    pub flow: FlowId,
    /// Our one-time page: `{public_url}/connect/{flow}`.
    pub page_url: String,
    /// Over at.
    pub expires_at: Timestamp,
}

/// A flow that was opened in a browser.
#[derive(Debug)]
pub struct Opened {
    /// Where the browser goes next: the provider's authorization URL.
    pub authorization_url: String,
    /// The value of the cookie that this browser must bring back (32 random bytes, base64url).
    pub cookie: Secret<String>,
    /// Over at.
    pub expires_at: Timestamp,
}

/// What the provider sent back through the browser. Values are raw query values.
pub struct Callback {
    /// The provider whose redirect URI was called.
    pub provider: String,
    /// `state`.
    pub state: Option<Secret<String>>,
    /// `code`.
    pub code: Option<Secret<String>>,
    /// `error` code.
    pub error: Option<String>,
    /// `iss` (RFC 9207).
    pub iss: Option<String>,
    /// Everything else by name, for captured values.
    pub rest: Captures,
}

/// Why the bringer of a callback may finish the flow.
pub enum Proof {
    /// The browser's cookie, if it brought one.
    Cookie(Option<Secret<String>>),
    /// An administrator pastes it back; no browser is bound.
    Administrator {
        /// Only a flow of this organization counts.
        organization: OrgId,
    },
}

/// A connected account.
#[derive(Debug)]
pub struct Connected {
    /// As stored.
    pub account: AccountRow,
    /// It was there before: reconnected in place.
    pub reconnected: bool,
}

/// Why there is no account, in words for a person, by what can be done.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No such provider.
    #[error("there is no provider `{0}`")]
    UnknownProvider(String),
    /// The provider has no such capability, or an input's value is not acceptable.
    #[error("{0}")]
    BadRequest(String),
    /// No such account to reconnect.
    #[error("there is no such account")]
    AccountNotFound,
    /// The two variables are not set.
    #[error("{name} is not configured")]
    NotConfigured {
        /// Provider's name.
        name: String,
        /// The two environment variables.
        variables: [String; 2],
    },
    /// Unknown, used or expired state; another browser; another provider or issuer.
    #[error("this connection attempt is over or was begun elsewhere")]
    InvalidState,
    /// The person (or the provider) said no.
    #[error("the provider did not allow it")]
    Denied {
        /// The provider's error code, `[a-z_]{1,64}`.
        code: String,
    },
    /// The code could not be exchanged, or the identity not be read.
    #[error("the provider did not accept the exchange")]
    ExchangeFailed {
        /// The provider's error code or one of ours.
        code: String,
    },
    /// Reconnecting gave somebody else's identity.
    #[error("this is another account than the one to reconnect")]
    AnotherIdentity,
    /// Our side failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl Accounts {
    /// Begins a flow: checks provider, capabilities, inputs and credentials, and stores it for 10 minutes.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn begin(&self, begin: Begin) -> Result<Begun, ConnectError> {
        let provider = self
            .parts
            .catalog
            .provider(&begin.provider)
            .ok_or_else(|| ConnectError::UnknownProvider(begin.provider.clone()))?;
        if provider.client.is_none() {
            return Err(ConnectError::NotConfigured {
                name: provider.name.clone(),
                variables: ["ID", "SECRET"].map(|what| format!("OAUTH_{}_CLIENT_{what}", provider.env)),
            });
        }
        let account = match begin.account {
            None => None,
            Some(id) => {
                let found = self.parts.store.account(begin.organization, id).await.map_err(internal)?;
                Some(found.filter(|a| a.provider == provider.id).ok_or(ConnectError::AccountNotFound)?)
            }
        };
        let capabilities = capabilities(provider, begin.capabilities, account.as_ref())?;
        let inputs = inputs(provider, begin.inputs, account.as_ref())?;
        let now = self.parts.clock.now();
        let flow = FlowRow {
            id: FlowId::new(),
            organization: begin.organization,
            provider: provider.id.clone(),
            capabilities,
            preset: begin.preset.or(account.map(|account| account.preset)).unwrap_or(Preset::Read),
            account: begin.account,
            inputs,
            owner: None,
            actor: begin.actor.to_string(),
            state_hash: None,
            cookie_hash: None,
            verifier: None,
            created_at: now,
            expires_at: now.after(LIFE),
        };
        self.parts.store.insert_flow(&flow).await.map_err(internal)?;
        let page_url = format!("{}/connect/{}", self.parts.public_url, flow.id);
        Ok(Begun { flow: flow.id, page_url, expires_at: flow.expires_at })
    }

    /// A flow that may still be opened, for the page that asks.
    ///
    /// # Errors
    /// [`ConnectError::InvalidState`].
    pub async fn flow(&self, id: FlowId) -> Result<FlowRow, ConnectError> {
        let flow = self.parts.store.flow(id, self.parts.clock.now()).await.map_err(internal)?;
        flow.filter(|flow| flow.state_hash.is_none()).ok_or(ConnectError::InvalidState)
    }

    /// Opens a flow in one browser: state, cookie and verifier are made now, and only once.
    ///
    /// # Errors
    /// [`ConnectError::InvalidState`] when it was opened before or is over.
    pub async fn open(&self, id: FlowId) -> Result<Opened, ConnectError> {
        let flow = self.flow(id).await?;
        let provider = self.parts.catalog.provider(&flow.provider).ok_or(ConnectError::InvalidState)?;
        let account = match flow.account {
            Some(account) => self.parts.store.account(flow.organization, account).await.map_err(internal)?,
            None => None,
        };
        let authorization = AuthorizeRequest {
            provider,
            captures: &flow.inputs,
            redirect_uri: &self.redirect_uri(&provider.id),
            scopes: &provider.scopes(&flow.capabilities, flow.preset),
            login_hint: account.as_ref().and_then(|account| account.email.as_deref()),
        }
        .begin()
        .map_err(|problem| ConnectError::Internal(anyhow::anyhow!(problem)))?;

        let cookie = Secret::new(URL_SAFE_NO_PAD.encode(ids::random::<32>()));
        let row = id.to_string();
        let opened = FlowOpened {
            state_hash: sha256(authorization.state.expose().as_bytes()),
            cookie_hash: sha256(cookie.expose().as_bytes()),
            verifier: self.parts.vault.seal(verifier_place(&row), authorization.verifier.0.expose().as_bytes()),
        };
        if !self.parts.store.open_flow(id, &opened, self.parts.clock.now()).await.map_err(internal)? {
            return Err(ConnectError::InvalidState);
        }
        Ok(Opened { authorization_url: authorization.url.into(), cookie, expires_at: flow.expires_at })
    }

    /// Finishes a flow: takes it (single use) before the code is spent, checks proof, provider, expiry and `iss`,
    /// exchanges the code, asks who this is, and saves account, tokens, managed targets and record in one transaction.
    ///
    /// Runs as a task of its own: a browser that hangs up after the code was spent must not lose the account.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn finish(self: &Arc<Self>, callback: Callback, proof: Proof) -> Result<Connected, ConnectError> {
        let accounts = Arc::clone(self);
        let task = self.parts.shutdown.spawn(async move { accounts.finish_task(callback, proof).await });
        task.await.map_err(|_| ConnectError::Internal(anyhow::anyhow!("finishing a connect flow broke off")))?
    }

    /// The redirect URI of a provider: one for each, so that an answer of one can't pass for another's.
    pub(super) fn redirect_uri(&self, provider: &str) -> String {
        format!("{}/integrations/{provider}/callback", self.parts.public_url)
    }
}

/// How long a person has, from the link to the callback.
const LIFE: Duration = Duration::from_secs(10 * 60);

pub(super) fn internal(cause: impl Into<anyhow::Error>) -> ConnectError {
    ConnectError::Internal(cause.into())
}

pub(super) const fn verifier_place(flow: &str) -> Place<'_> {
    Place { table: "flows", row: flow, column: "verifier" }
}

/// What is asked for. An account that reconnects keeps what it has: asking for less would take it from its agents.
fn capabilities(
    provider: &Provider,
    named: Vec<String>,
    account: Option<&AccountRow>,
) -> Result<Vec<String>, ConnectError> {
    if let Some(unknown) = named.iter().find(|id| !provider.capabilities.contains_key(*id)) {
        let known: Vec<_> = provider.capabilities.keys().map(String::as_str).collect();
        return Err(ConnectError::BadRequest(format!(
            "{} has no capability `{}`; it has {}",
            provider.name,
            shown(unknown),
            known.join(", ")
        )));
    }
    let connected = account.into_iter().flat_map(|account| &account.targets).map(|target| target.capability.clone());
    let mut wanted: Vec<String> = named;
    wanted.extend(connected.filter(|id| provider.capabilities.contains_key(id)));
    if wanted.is_empty() {
        wanted = provider.capabilities.keys().cloned().collect();
    }
    wanted.sort_unstable();
    wanted.dedup();
    Ok(wanted)
}

/// The values that fill the provider's URLs: given ones over those of the account that reconnects.
fn inputs(provider: &Provider, given: Captures, account: Option<&AccountRow>) -> Result<Captures, ConnectError> {
    if let Some(unknown) = given.keys().find(|name| !provider.inputs.contains_key(*name)) {
        return Err(ConnectError::BadRequest(format!("{} has no input `{}`", provider.name, shown(unknown))));
    }
    let mut inputs = account.map(|account| account.captures.clone()).unwrap_or_default();
    inputs.extend(given.into_iter().filter(|(_, value)| !value.is_empty()));
    for (name, input) in &provider.inputs {
        provider
            .fill(&format!("{{{name}}}"), &inputs)
            .map_err(|problem| ConnectError::BadRequest(format!("{}: {problem}", input.label)))?;
    }
    Ok(inputs)
}

/// A caller's word in a message: short, and on one line.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_words_stay_short() {
        assert_eq!(shown("mail\r\nx"), "mailx");
        assert_eq!(shown(&"a".repeat(100)).len(), 64);
    }
}
