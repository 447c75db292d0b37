//! One sealed value, and the two operations on it.

use crate::secret::Secret;

use super::Keyring;

/// A sealed value as it stands in a column of bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

impl Sealed {
    /// From the bytes of a column. Nothing is checked here: opening checks.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
    /// The bytes for a column.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Where a sealed value lives; it opens nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Table name.
    pub table: &'static str,
    /// The row's primary key, as text.
    pub row: &'a str,
    /// Column name.
    pub column: &'static str,
}

/// Why a value does not open.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VaultError {
    /// The value is not in the sealed form.
    #[error("a sealed value in {table}.{column} is damaged")]
    Damaged {
        /// Table name.
        table: &'static str,
        /// Column name.
        column: &'static str,
    },
    /// Sealed with a key that this process was not given.
    #[error("a value in {table}.{column} was sealed with key `{key_id}`, which is not among the sealing keys")]
    UnknownKey {
        /// Table name.
        table: &'static str,
        /// Column name.
        column: &'static str,
        /// The key's id as written in the value.
        key_id: String,
    },
}

/// Seals and opens with a [`Keyring`].
pub struct Vault {
    keyring: Keyring,
}

impl Vault {
    /// A vault over these keys.
    #[must_use]
    pub fn new(keyring: Keyring) -> Self {
        Self { keyring }
    }
    /// Seals `plain` for `place` with the primary key and a fresh random nonce.
    #[must_use]
    pub fn seal(&self, _place: Place<'_>, _plain: &[u8]) -> Sealed {
        let _ = &self.keyring;
        todo!()
    }
    /// Opens a value that was sealed for `place`.
    ///
    /// # Errors
    /// [`VaultError`]: another place, another key, or damaged bytes.
    pub fn open(&self, _place: Place<'_>, _sealed: &Sealed) -> Result<Secret<Vec<u8>>, VaultError> {
        todo!()
    }
    /// As [`Vault::open`], for text.
    ///
    /// # Errors
    /// As [`Vault::open`]; not UTF-8 counts as damaged.
    pub fn open_text(&self, _place: Place<'_>, _sealed: &Sealed) -> Result<Secret<String>, VaultError> {
        todo!()
    }
}
