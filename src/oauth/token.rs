//! The calls: exchange, refresh, revoke, identity.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::catalog::Provider;
use crate::net::Client;
use crate::secret::Secret;

use super::{Error, Extras, Tokens};

/// Who an account is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What never changes.
    pub subject: String,
    /// E-mail address.
    pub email: Option<String>,
    /// For people.
    pub name: Option<String>,
    /// Values captured from the identity answer, by name.
    pub captured: BTreeMap<String, String>,
}

/// Makes the calls, with time limits.
#[derive(Clone)]
pub struct OAuthClient {
    http: Client,
    timeout: Duration,
}

impl OAuthClient {
    /// Over this client; `timeout` bounds a whole token call.
    #[must_use]
    pub fn new(http: Client, timeout: Duration) -> Self {
        Self { http, timeout }
    }

    /// Exchanges a code (RFC 6749 §4.1.3, RFC 7636 §4.5).
    ///
    /// # Errors
    /// [`Error`].
    pub async fn exchange(
        &self,
        _provider: &Provider,
        _captures: &BTreeMap<String, String>,
        _code: &Secret<String>,
        _redirect_uri: &str,
        _verifier: Option<&Secret<String>>,
    ) -> Result<Tokens, Error> {
        let _ = (&self.http, self.timeout);
        todo!()
    }

    /// Refreshes (RFC 6749 §6). Never retried here.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn refresh(
        &self,
        _provider: &Provider,
        _captures: &BTreeMap<String, String>,
        _refresh: &Secret<String>,
    ) -> Result<Tokens, Error> {
        todo!()
    }

    /// Revokes (RFC 7009). `Ok(false)`: the provider has no such endpoint.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn revoke(
        &self,
        _provider: &Provider,
        _captures: &BTreeMap<String, String>,
        _token: &Secret<String>,
        _kind: &str,
    ) -> Result<bool, Error> {
        todo!()
    }

    /// Asks whose token this is; from the token answer when the provider has no identity endpoint (`extras` must be
    /// given then).
    ///
    /// # Errors
    /// [`Error::Rejected`] when the provider answers 401: the token is not good.
    pub async fn identity(
        &self,
        _provider: &Provider,
        _captures: &BTreeMap<String, String>,
        _access: &Secret<String>,
        _extras: Option<&Extras>,
    ) -> Result<Identity, Error> {
        todo!()
    }
}
