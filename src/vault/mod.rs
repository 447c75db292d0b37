//! Seals secrets for storage and opens them again. Nothing else in Keyward encrypts.
//!
//! Against whom: somebody who copies the database. A copy without the keys yields no token, no stored credential and
//! no usable agent key; a value moved to another row, column or table does not open there. Not against: somebody who
//! can read this process's memory or its key file.
//!
//! ```text
//! Sealed = 0x01 │ length of key id │ key id │ nonce (12) │ AES-256-GCM ciphertext and tag
//! associated data = table ␟ row ␟ column ␟ key id        (␟ is the byte 0x1f)
//! ```
//!
//! Called by services that put a secret into a row or take one out. The store moves [`Sealed`] values about and has no
//! way to open one.

mod keyring;
mod sealed;

pub use keyring::{Keyring, KeyringError};
pub use sealed::{CHECK_PLACE, Place, Sealed, Vault, VaultError};
