//! What a token endpoint said, read leniently and checked strictly.

use std::time::Duration;

use crate::catalog::Provider;
use crate::secret::Secret;

use super::Error;

/// Tokens out of an answer.
pub struct Tokens {
    /// Access token, never empty.
    pub access: Secret<String>,
    /// Refresh token, when the answer held a non-empty one.
    pub refresh: Option<Secret<String>>,
    /// Life of the access token: the answer's if believable (1 s … 1 year), else the provider's default.
    pub expires_in: Duration,
    /// Life of the refresh token, when said.
    pub refresh_expires_in: Option<Duration>,
    /// Granted scopes, when said.
    pub scopes: Option<Vec<String>>,
    /// The rest of the answer, for identity and captured values.
    pub extras: Extras,
}

/// The whole answer, kept from view: it holds tokens.
pub struct Extras(serde_json::Value);

impl Extras {
    /// The text (or number, as text) at a JSON pointer.
    #[must_use]
    pub fn pointer(&self, _pointer: &str) -> Option<String> {
        let _ = &self.0;
        todo!()
    }
}

/// Reads an answer of a token endpoint.
///
/// # Errors
/// What the answer means when it holds no usable token.
pub(super) fn read(
    _provider: &Provider,
    _status: http::StatusCode,
    _headers: &http::HeaderMap,
    _body: &[u8],
) -> Result<Tokens, Error> {
    todo!()
}
