//! What a refresh or a check changes of an account: tokens, status, validity.
//!
//! Tokens that the provider gave are saved while the generation is theirs, whatever the status says meanwhile: nothing
//! that works is lost. Bad news counts less: only from whoever holds the lease, and never over `disconnected`.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::{AccountId, InstanceId};
use crate::vault::Sealed;

use super::codec::{json, millis, read_word, word};
use super::db::{execute, fetch_optional};
use super::{AuditRow, Reason, Result, Store, Validity, audit_insert, keeping};

/// New tokens of an account.
#[derive(Clone)]
pub struct NewTokens {
    /// Sealed access token.
    pub access: Sealed,
    /// Sealed refresh token. `None`: the answer had none. A refresh then keeps the stored one (RFC 6749 §6), a new
    /// authorization has none.
    pub refresh: Option<Sealed>,
    /// When the access token ends, by the database's clock.
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

/// A refresh that failed in passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed {
    /// The generation it was tried at.
    pub generation: i64,
    /// Who tried, and must hold the lease.
    pub owner: InstanceId,
    /// Why.
    pub reason: Reason,
    /// How long nobody tries again.
    pub pause: Duration,
    /// Since when the provider has said nothing but what nobody understands; `None`: it said something else.
    pub unknown_since: Option<Timestamp>,
}

/// The end of an account, as the provider said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// The generation it was tried at.
    pub generation: i64,
    /// Who tried, and must hold the lease.
    pub owner: InstanceId,
    /// Why.
    pub reason: Reason,
    /// When the provider said so; `None`: it was not asked.
    pub checked_at: Option<Timestamp>,
}

impl Store {
    /// Compare-and-set: saves refreshed tokens, and writes `records`, when the generation still is `generation` and the
    /// account is there; status becomes `connected` (with the record that `recovered` makes of the reason, if it was
    /// not), validity `valid`. Answers whether it was saved (the generation is then one more).
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
        recovered: impl FnOnce(Reason) -> AuditRow,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let time = self.database_now(&mut tx).await?;
        // The status stays as it is for one more statement, so that this one tells what it was.
        let before = fetch_optional!(
            &mut tx,
            (Option<String>,),
            "update accounts set access_token = $3, refresh_token = coalesce($4, refresh_token), \
             access_expires_at = $5, access_ttl_ms = $6, refresh_expires_at = coalesce($7, refresh_expires_at), \
             scopes = coalesce($8, scopes), missing_scopes = coalesce($10, missing_scopes), validity = 'valid', \
             checked_at = $9, updated_at = $9, generation = generation + 1, \
             lease_owner = null, lease_until = null, refresh_started_at = null, \
             refresh_failures = 0, next_attempt_at = null, unknown_since = null, \
             reconnect_soon_at = case when $7 >= $11 then null else reconnect_soon_at end \
             where id = $1 and generation = $2 and removed_at is null returning reason",
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
            Timestamp::from_millis(time).after(keeping::ENDING).millis(),
        )?;
        let Some((reason,)) = before else { return Ok(false) };
        if let Some(reason) = reason {
            execute!(
                &mut tx,
                "update accounts set status = 'connected', reason = null, \
                 standing_at = case when status = 'disconnected' then $2 else standing_at end where id = $1",
                id,
                time,
            )?;
            let reason = read_word("accounts.reason", &reason)?;
            audit_insert::insert(&mut tx, std::slice::from_ref(&recovered(reason))).await?;
        }
        audit_insert::insert(&mut tx, records).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Notes that a refresh failed in passing: `degraded`, and nobody tries before the pause is over. Writes `record`
    /// when the status or the reason really changes (so that one event is told once). `false`: nothing was changed, for
    /// the account has moved on: it is disconnected or gone, has other tokens, or somebody else holds the lease.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn note_failure(
        &self,
        id: AccountId,
        failed: &Failed,
        now: Timestamp,
        record: &AuditRow,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let time = Timestamp::from_millis(self.database_now(&mut tx).await?);
        let noted = execute!(
            &mut tx,
            "update accounts set refresh_failures = refresh_failures + 1, next_attempt_at = $4, unknown_since = $5 \
             where id = $1 and generation = $2 and lease_owner = $3 and removed_at is null \
             and status <> 'disconnected'",
            id,
            failed.generation,
            failed.owner,
            time.after(failed.pause).millis(),
            millis(failed.unknown_since),
        )?;
        if noted == 0 {
            return Ok(false);
        }
        let changed = execute!(
            &mut tx,
            "update accounts set status = 'degraded', reason = $2, updated_at = $3 \
             where id = $1 and (status <> 'degraded' or reason is distinct from $2)",
            id,
            word(failed.reason),
            now.millis(),
        )?;
        if changed > 0 {
            audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Disconnects an account that its provider has ended, and writes `record`. `false`: nothing was changed, for the
    /// account has moved on, as for [`Store::note_failure`], or has a refresh token that is still to be tried.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn end_account(&self, id: AccountId, ended: &Ended, now: Timestamp, record: &AuditRow) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let time = self.database_now(&mut tx).await?;
        let changed = execute!(
            &mut tx,
            "update accounts set status = 'disconnected', reason = $4, validity = 'invalid', \
             checked_at = coalesce($5, checked_at), updated_at = $6, standing_at = $7, \
             refresh_failures = 0, next_attempt_at = null, unknown_since = null \
             where id = $1 and generation = $2 and lease_owner = $3 and removed_at is null \
             and status <> 'disconnected' and not exists (select 1 from token_candidates where account = $1)",
            id,
            ended.generation,
            ended.owner,
            word(ended.reason),
            millis(ended.checked_at),
            now.millis(),
            time,
        )?;
        if changed == 0 {
            return Ok(false);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Notes what a check of the token of `generation` saw, unless there is a newer one or the account is disconnected.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn set_validity(&self, id: AccountId, generation: i64, validity: Validity, now: Timestamp) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "update accounts set validity = $2, checked_at = $3 \
             where id = $1 and generation = $4 and removed_at is null and status <> 'disconnected'",
            id,
            word(validity),
            now.millis(),
            generation,
        )?;
        tx.commit().await
    }
}
