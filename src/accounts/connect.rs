//! The connect flow as a state machine: begin, open in one browser, finish once. No HTML, no cookies, no axum.
//!
//! ```text
//! begin ──▶ flow row ──open(browser)──▶ state, cookie, verifier ──▶ provider ──▶ finish(callback, proof) ──▶ account
//! ```

use std::sync::Arc;

use crate::audit::Actor;
use crate::catalog::Preset;
use crate::clock::Timestamp;
use crate::ids::{AccountId, FlowId, OrgId};
use crate::secret::Secret;
use crate::store::{AccountRow, Captures, FlowRow};

use super::Accounts;

/// What somebody wants to connect.
pub struct Begin {
    /// For this organization.
    pub organization: OrgId,
    /// Provider id.
    pub provider: String,
    /// Capability ids; empty: all of the provider's.
    pub capabilities: Vec<String>,
    /// Reading, or reading and writing.
    pub preset: Preset,
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
    pub async fn begin(&self, _begin: Begin) -> Result<Begun, ConnectError> {
        todo!()
    }

    /// A flow that may still be opened, for the page that asks.
    ///
    /// # Errors
    /// [`ConnectError::InvalidState`].
    pub async fn flow(&self, _id: FlowId) -> Result<FlowRow, ConnectError> {
        todo!()
    }

    /// Opens a flow in one browser: state, cookie and verifier are made now, and only once.
    ///
    /// # Errors
    /// [`ConnectError::InvalidState`] when it was opened before or is over.
    pub async fn open(&self, _id: FlowId) -> Result<Opened, ConnectError> {
        todo!()
    }

    /// Finishes a flow: takes it (single use) before the code is spent, checks proof, provider, expiry and `iss`,
    /// exchanges the code, asks who this is, and saves account, tokens, managed targets and record in one transaction.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn finish(self: &Arc<Self>, _callback: Callback, _proof: Proof) -> Result<Connected, ConnectError> {
        todo!()
    }
}
