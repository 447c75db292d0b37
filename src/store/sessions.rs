//! Dashboard sessions, by the hash of their cookie.

use crate::clock::Timestamp;

use super::codec::read_hash;
use super::db::{execute, fetch_optional};
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
    pub async fn insert_session(&self, session: &SessionRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "insert into sessions (hash, created_at, expires_at) values ($1, $2, $3)",
            &session.hash[..],
            session.created_at.millis(),
            session.expires_at.millis()
        )?;
        tx.commit().await
    }

    /// A session that is not over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn session(&self, hash: &[u8; 32], now: Timestamp) -> Result<Option<SessionRow>> {
        let mut read = self.db.read().await?;
        let sql = "select hash, created_at, expires_at from sessions where hash = $1 and expires_at > $2";
        let row = fetch_optional!(&mut read, (Vec<u8>, i64, i64), sql, &hash[..], now.millis())?;
        row.map(|(hash, created_at, expires_at)| {
            Ok(SessionRow {
                hash: read_hash("sessions.hash", &hash)?,
                created_at: Timestamp::from_millis(created_at),
                expires_at: Timestamp::from_millis(expires_at),
            })
        })
        .transpose()
    }

    /// Ends a session.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_session(&self, hash: &[u8; 32]) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(&mut tx, "delete from sessions where hash = $1", &hash[..])?;
        tx.commit().await
    }

    /// Deletes sessions that are over.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn prune_sessions(&self, now: Timestamp) -> Result<u64> {
        let mut tx = self.db.write().await?;
        let gone = execute!(&mut tx, "delete from sessions where expires_at <= $1", now.millis())?;
        tx.commit().await?;
        Ok(gone)
    }
}
