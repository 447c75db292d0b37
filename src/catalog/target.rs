//! What a request to a target is made of: the base URL it can't leave, and the credential that goes in.

use http::{HeaderName, HeaderValue};

/// A base URL, taken apart once so that nothing in a request can change it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// TLS to the upstream.
    pub https: bool,
    /// Host name or IP literal (no brackets), lower case.
    pub host: Box<str>,
    /// Port, the scheme's own when the URL has none.
    pub port: u16,
    /// The `Host` header: host, and port when it is not the scheme's own.
    pub authority: HeaderValue,
    /// Path prefix without a trailing slash: empty or `/v1.0`.
    pub path: Box<str>,
}

/// Why a URL can't be a base.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BaseError(pub String);

impl Base {
    /// Reads a base URL: https (http only for loopback hosts), no user, query or fragment, a normal path.
    ///
    /// # Errors
    /// Says which of these it breaks.
    pub fn parse(_text: &str) -> Result<Self, BaseError> {
        todo!()
    }
    /// The URL as text, without a trailing slash.
    #[must_use]
    pub fn url(&self) -> String {
        todo!()
    }
}

/// A credential ready to be put into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Injection {
    /// Headers, marked sensitive; each replaces what the agent sent under that name.
    Headers(Vec<(HeaderName, HeaderValue)>),
    /// One query parameter, percent-encoded (`api_key=…`), and constant headers.
    Query {
        /// Parameter name, as it is compared (any such parameter of the agent's is refused).
        name: Box<str>,
        /// `name=value`, encoded.
        pair: Box<str>,
        /// Constant headers.
        headers: Vec<(HeaderName, HeaderValue)>,
    },
}
