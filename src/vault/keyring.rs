//! The sealing keys: several may open, the first seals.

use std::path::Path;

use crate::secret::Secret;

/// 256-bit keys by id; the first is the primary.
pub struct Keyring {}

/// Why there are no usable keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The text is not `id:base64,…`.
    #[error("KEYWARD_SEALING_KEYS: {0}")]
    Malformed(String),
    /// The key file can't be read or made.
    #[error("sealing key file {path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Keyring {
    /// Reads `id:base64,id:base64…`; ids are `[a-z0-9-]{1,32}`, keys 32 bytes.
    ///
    /// # Errors
    /// [`KeyringError::Malformed`], which never repeats key material.
    pub fn parse(_text: &Secret<String>) -> Result<Self, KeyringError> {
        todo!()
    }
    /// Reads the key file, or makes one with a fresh key and mode 0600 when there is none.
    ///
    /// # Errors
    /// [`KeyringError`]; also when the file may be read by others than its owner.
    pub fn open_or_create(_path: &Path) -> Result<Self, KeyringError> {
        todo!()
    }
    /// The primary key's id.
    #[must_use]
    pub fn primary_id(&self) -> &str {
        todo!()
    }
}
