//! TOML in, checked [`Provider`](super::Provider)s out; every mistake names its file and key.

/// One mistake in a provider's data.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {key}: {problem}")]
pub struct CatalogError {
    /// The embedded file's name, or `gateway.toml`.
    pub file: String,
    /// Dotted key.
    pub key: String,
    /// What is wrong and what would be right.
    pub problem: String,
}
