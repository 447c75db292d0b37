//! The authorization URL and what must be remembered for the answer: state and PKCE verifier.

use std::collections::BTreeMap;

use url::Url;

use crate::catalog::Provider;
use crate::secret::Secret;

/// A PKCE verifier: base64url of 64 random bytes (RFC 7636 §4.1).
pub struct Verifier(pub Secret<String>);

/// What an authorization URL is made of.
pub struct AuthorizeRequest<'a> {
    /// The provider.
    pub provider: &'a Provider,
    /// Inputs (and captured values of an account that reconnects).
    pub captures: &'a BTreeMap<String, String>,
    /// Our callback.
    pub redirect_uri: &'a str,
    /// Scopes wanted.
    pub scopes: &'a [String],
    /// Preselects a person at the provider, when known.
    pub login_hint: Option<&'a str>,
}

/// An authorization under way.
pub struct Authorization {
    /// Where the browser goes.
    pub url: Url,
    /// 32 random bytes, base64url; only its hash is stored.
    pub state: Secret<String>,
    /// To be sealed.
    pub verifier: Verifier,
}

impl AuthorizeRequest<'_> {
    /// Makes the URL with a fresh state and verifier.
    ///
    /// # Errors
    /// In words, when the provider's URL can't be filled or the provider has no client credentials.
    pub fn begin(&self) -> Result<Authorization, String> {
        todo!()
    }
}
