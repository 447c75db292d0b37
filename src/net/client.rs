//! Keyward's own small HTTP client, for token endpoints, identities and revocations. One connection a call: such calls
//! are rare, and "was anything written?" stays an honest question. Never follows a redirect, never retries.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};

use super::Guard;

/// Limits of a call.
#[derive(Debug, Clone)]
pub struct ClientLimits {
    /// TCP and TLS together.
    pub connect: Duration,
    /// The whole call.
    pub total: Duration,
    /// Bytes of the answer's body.
    pub body: usize,
}

/// Makes calls.
#[derive(Clone)]
pub struct Client {
    guard: Arc<Guard>,
    tls: Arc<rustls::ClientConfig>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing was written: resolving, connecting, TLS, or a URL that can't be called. Safe to try again.
    #[error("the call was not sent: {0}")]
    Unsent(String),
    /// The request was (or may have been) written and no whole answer came: it may have had its effect.
    #[error("the call was sent and no whole answer came: {0}")]
    Ambiguous(String),
    /// The answer's body is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

impl Client {
    /// Over this guard and these roots.
    #[must_use]
    pub fn new(guard: Arc<Guard>, tls: Arc<rustls::ClientConfig>) -> Self {
        Self { guard, tls }
    }

    /// Sends a request with an absolute URI (https, or http as the guard allows) and reads the whole answer.
    /// `Host`, `Content-Length`, `User-Agent`, `Accept-Encoding: identity` are set here. Must be called on the main
    /// runtime.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn call(&self, _request: Request<Bytes>, _limits: &ClientLimits) -> Result<Response<Bytes>, ClientError> {
        let _ = (&self.guard, &self.tls);
        todo!()
    }
}
