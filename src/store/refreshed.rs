//! What a refresh or a check changes of an account: tokens, status, validity.

use crate::clock::Timestamp;
use crate::ids::AccountId;
use crate::vault::Sealed;

use super::codec::{json, millis, word};
use super::db::execute;
use super::{AuditRow, Reason, Result, Status, Store, Validity, audit};

/// New tokens of an account.
#[derive(Clone)]
pub struct NewTokens {
    /// Sealed access token.
    pub access: Sealed,
    /// Sealed refresh token. `None`: the answer had none. A refresh then keeps the stored one (RFC 6749 §6), a new
    /// authorization has none.
    pub refresh: Option<Sealed>,
    /// When the access token ends.
    pub access_expires_at: Timestamp,
    /// Its whole life in ms.
    pub access_ttl_ms: i64,
    /// When the refresh token ends, when the answer said.
    pub refresh_expires_at: Option<Timestamp>,
    /// Granted scopes when the answer said; `None` keeps what is stored.
    pub scopes: Option<Vec<String>>,
    /// What was asked for and is not among them; `None` keeps what is stored. A connected account says it itself.
    pub missing_scopes: Option<Vec<String>>,
}

/// A status to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatusChange {
    /// Status.
    pub status: Status,
    /// Why; left out when the status is `connected`.
    pub reason: Option<Reason>,
    /// Validity.
    pub validity: Validity,
}

impl Store {
    /// Compare-and-set: saves refreshed tokens, and writes `records`, when the generation still is `generation` and the
    /// account is there; status becomes `connected`, validity `valid`. Answers whether it was saved (the generation is then one more).
    ///
    /// # Errors
    /// [`super::Error::Database`]: unknown whether it was saved.
    pub async fn save_tokens(
        &self,
        id: AccountId,
        generation: i64,
        tokens: &NewTokens,
        now: Timestamp,
        records: &[AuditRow],
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let saved = execute!(
            &mut tx,
            "update accounts set access_token = $3, refresh_token = coalesce($4, refresh_token), \
             access_expires_at = $5, access_ttl_ms = $6, refresh_expires_at = coalesce($7, refresh_expires_at), \
             scopes = coalesce($8, scopes), missing_scopes = coalesce($10, missing_scopes), status = 'connected', reason = null, validity = 'valid', \
             checked_at = $9, updated_at = $9, generation = generation + 1, \
             lease_owner = null, lease_until = null, refresh_started_at = null, \
             reconnect_soon_at = case when $7 is null then reconnect_soon_at else null end \
             where id = $1 and generation = $2 and removed_at is null",
            id,
            generation,
            tokens.access.as_bytes(),
            tokens.refresh.as_ref().map(Sealed::as_bytes),
            tokens.access_expires_at.millis(),
            tokens.access_ttl_ms,
            millis(tokens.refresh_expires_at),
            tokens.scopes.as_ref().map(json),
            now.millis(),
            tokens.missing_scopes.as_ref().map(json),
        )?;
        if saved == 0 {
            return Ok(false);
        }
        audit::insert(&mut tx, records).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Sets the status when the generation still is `generation` and the status or reason really changes; writes
    /// `record` in the same transaction. Answers whether it changed (so that one event is told once).
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn set_status(
        &self,
        id: AccountId,
        generation: i64,
        change: StatusChange,
        now: Timestamp,
        record: &AuditRow,
    ) -> Result<bool> {
        let StatusChange { status, validity, .. } = change;
        let reason = change.reason.filter(|_| status != Status::Connected);
        let mut tx = self.db.write().await?;
        let changed = execute!(
            &mut tx,
            "update accounts set status = $3, reason = $4, validity = $5, checked_at = $6, updated_at = $6 \
             where id = $1 and generation = $2 and removed_at is null \
             and (status <> $3 or reason is distinct from $4)",
            id,
            generation,
            word(status),
            reason.map(word),
            word(validity),
            now.millis(),
        )?;
        if changed == 0 {
            return Ok(false);
        }
        audit::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Notes what a check saw.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn set_validity(&self, id: AccountId, validity: Validity, now: Timestamp) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "update accounts set validity = $2, checked_at = $3 where id = $1 and removed_at is null",
            id,
            word(validity),
            now.millis()
        )?;
        tx.commit().await
    }
}
