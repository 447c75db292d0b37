//! rustls configurations.

use std::path::Path;
use std::sync::Arc;

/// A file of certificates that can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub String);

/// For outgoing connections: the system's roots (Mozilla's when the system has none) and `extra_ca`; HTTP/1.1 by ALPN.
///
/// # Errors
/// When `extra_ca` can't be read or holds no certificate.
pub fn client_config(_extra_ca: Option<&Path>) -> Result<Arc<rustls::ClientConfig>, TlsError> {
    todo!()
}
