//! Dashboard sessions, by the hash of their cookie.

use crate::clock::Timestamp;

use super::{Result, Store};

/// One signed-in browser.
#[derive(Debug, Clone)]
pub struct SessionRow {
    /// SHA-256 of the cookie.
    pub hash: [u8; 32],
    /// Made at.
    pub created_at: Timestamp,
    /// Over at.
    pub expires_at: Timestamp,
}

impl Store {
    /// Stores a session.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn insert_session(&self, _session: &SessionRow) -> Result<()> {
        todo!()
    }
    /// A session that is not over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn session(&self, _hash: &[u8; 32], _now: Timestamp) -> Result<Option<SessionRow>> {
        todo!()
    }
    /// Ends a session.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_session(&self, _hash: &[u8; 32]) -> Result<()> {
        todo!()
    }
    /// Deletes sessions that are over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_sessions(&self, _now: Timestamp) -> Result<u64> {
        todo!()
    }
}
