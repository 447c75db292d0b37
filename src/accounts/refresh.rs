//! The one place that spends a refresh token.
//!
//! ```text
//! read the row ── newer than what was asked about? ──▶ publish it, done                       (no lease, no call)
//!   ▼
//! take the lease ── another instance has it ──▶ read the row until it moves, or the lease is free
//!   ▼  won: read the row again, inside the lease
//! call the token endpoint, renewing the lease meanwhile
//!   ├─ new tokens ──▶ save (compare-and-set on the generation, until it is stored) ──▶ publish ──▶ wake the waiters
//!   ├─ passing trouble ──▶ degraded, back off, the old token while it lives
//!   └─ refused ──▶ read the row: moved? use that. Else the candidates, else disconnected, told once
//! ```
//! Taking the lease is a write: when the result could not be stored, the provider is not asked. See `invariants.md` for
//! what each answer means.

use std::time::Duration;

use crate::ids::AccountId;
use crate::oauth::{self, Tokens};
use crate::store::{AccountTokens, Lease, Reason, Taken};
use crate::telemetry::RefreshOutcome;

use super::cache::Slot;
use super::flight::Why;
use super::outcome::BACKOFF;
use super::{Accounts, Bearer, TokenError};

/// How long a lease lasts without being renewed: what a crashed instance costs its accounts.
const LEASE: Duration = Duration::from_secs(6);
/// How often it is renewed while the provider is asked.
const RENEW: Duration = Duration::from_secs(2);
/// How often an account is looked at whose lease another instance holds.
const LOOK: Duration = Duration::from_millis(50);

const LEASE_MS: i64 = LEASE.as_millis() as i64;

impl Accounts {
    pub(super) async fn fly(&self, id: AccountId, slot: &Slot, why: Why) -> Result<Bearer, TokenError> {
        // The row as it stands now, not as some waiter saw it: a late waiter must not spend an old refresh token.
        let row = self.row(id).await?;
        if let Some(answer) = self.settle(slot, &row, why) {
            return answer;
        }
        let now = self.parts.clock.monotonic();
        if why != Why::Asked && !slot.may_try(now) {
            return self.fallback(slot, &row);
        }
        let (lease, row) = match self.lease(id, slot, why, row).await {
            Ok(won) => won,
            Err(answer) => return answer,
        };
        let mut spent = lease.maybe_spent;
        let answer = self.renew(slot, &row, &mut spent).await;
        if let Err(cause) = self.parts.store.release_lease(id, self.parts.instance, spent).await {
            tracing::warn!(account.id = %id, %cause, "a lease could not be ended; it ends by its time");
        }
        answer.unwrap_or_else(|| self.fallback(slot, &row))
    }

    pub(super) async fn row(&self, id: AccountId) -> Result<AccountTokens, TokenError> {
        match self.parts.store.tokens(id).await {
            Ok(Some(row)) => Ok(row),
            Ok(None) => {
                self.cache.forget(id);
                Err(TokenError::Gone)
            }
            Err(cause) => {
                tracing::error!(account.id = %id, %cause, "an account can't be read");
                let retry_after = Duration::from_secs(1);
                Err(TokenError::Unavailable { reason: Reason::ProviderUnavailable, retry_after })
            }
        }
    }

    /// The old token while it lives; else when to ask again.
    fn fallback(&self, slot: &Slot, row: &AccountTokens) -> Result<Bearer, TokenError> {
        self.publish(slot, row).ok_or_else(|| TokenError::Unavailable {
            reason: slot.trouble().reason.unwrap_or(Reason::ProviderUnavailable),
            retry_after: slot.wait(self.parts.clock.monotonic()).max(Duration::from_secs(1)),
        })
    }

    /// Wins the account's lease and reads the row inside it. `Err`: the answer, because somebody else refreshed it, or
    /// because there can be no lease.
    async fn lease(
        &self,
        id: AccountId,
        slot: &Slot,
        why: Why,
        mut row: AccountTokens,
    ) -> Result<(Lease, AccountTokens), Result<Bearer, TokenError>> {
        let asked_at = row.account.generation;
        let patience = tokio::time::Instant::now() + self.parts.config.timeout + LEASE;
        loop {
            match self.parts.store.take_lease(id, self.parts.instance, LEASE_MS).await {
                Ok(Taken::Won(lease)) => {
                    row = self.row(id).await.map_err(Err)?;
                    let Some(answer) = self.moved_on(slot, &row, why, asked_at) else { return Ok((lease, row)) };
                    let _ = self.parts.store.release_lease(id, self.parts.instance, lease.maybe_spent).await;
                    return Err(answer);
                }
                Ok(Taken::Held) if tokio::time::Instant::now() < patience => {
                    tokio::time::sleep(LOOK).await;
                    row = self.row(id).await.map_err(Err)?;
                    if let Some(answer) = self.moved_on(slot, &row, why, asked_at) {
                        return Err(answer);
                    }
                }
                Ok(Taken::Held) => return Err(self.fallback(slot, &row)),
                Ok(Taken::Gone) => {
                    self.cache.forget(id);
                    return Err(Err(TokenError::Gone));
                }
                Err(cause) => {
                    tracing::error!(account.id = %id, %cause, "a lease can't be taken; the provider is not asked");
                    return Err(self.fallback(slot, &row));
                }
            }
        }
    }

    /// The answer, when the row has what is wanted now: any newer tokens will do, whoever fetched them.
    fn moved_on(
        &self,
        slot: &Slot,
        row: &AccountTokens,
        why: Why,
        asked_at: i64,
    ) -> Option<Result<Bearer, TokenError>> {
        let why = if row.account.generation > asked_at { Why::Dead } else { why };
        self.settle(slot, row, why)
    }

    /// Spends the refresh token once, inside the lease. `None`: it failed in passing. `spent` is set while the token may
    /// have been spent without a stored result.
    async fn renew(&self, slot: &Slot, row: &AccountTokens, spent: &mut bool) -> Option<Result<Bearer, TokenError>> {
        let account = &row.account;
        let Some(provider) = self.parts.catalog.provider(&account.provider) else {
            self.degrade(slot, account, Reason::ProviderMisconfigured, "unknown_provider", None).await;
            return None;
        };
        if row.refresh.is_none() {
            // A token that can't be refreshed ends with its life, or when it is refused: a person must sign in.
            let ended = self.lives(row).is_none();
            return if ended {
                Some(self.end(slot, account, Reason::SignInNeeded, "no_refresh_token").await)
            } else {
                None
            };
        }
        let Some(refresh) = self.opened(row, "refresh_token") else {
            self.degrade(slot, account, Reason::ProviderMisconfigured, "sealed", None).await;
            return None;
        };
        let permits = self.flights.permits(&account.provider, self.parts.config.per_provider);
        let asked = async {
            let _permit = permits.acquire().await;
            self.parts.oauth.refresh(provider, &account.captures, &refresh).await
        };
        let mut answer = self.while_leased(account.id, asked).await;
        if let Err(oauth::Error::Unusable { refresh, cause }) = answer {
            *spent = true;
            self.keep_candidate(account.id, &refresh).await;
            answer = Err(*cause);
        }
        match answer {
            Ok(tokens) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Ok);
                let kept = self.keep(slot, account, tokens).await;
                *spent = false;
                Some(kept)
            }
            Err(oauth::Error::Transient { why, retry_after, ambiguous }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Transient);
                *spent |= ambiguous;
                self.degrade(slot, account, Reason::ProviderUnavailable, why, retry_after).await;
                None
            }
            Err(oauth::Error::Misconfigured { code }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Misconfigured);
                self.degrade(slot, account, Reason::ProviderMisconfigured, &code, Some(BACKOFF)).await;
                None
            }
            Err(oauth::Error::Rejected { code, sign_in }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Rejected);
                Some(self.refused(slot, row, &code, sign_in, spent).await)
            }
            // Taken apart above.
            Err(oauth::Error::Unusable { .. }) => None,
        }
    }

    /// Another instance may have been faster, and a candidate may still be good; only then is it over.
    async fn refused(
        &self,
        slot: &Slot,
        row: &AccountTokens,
        code: &str,
        sign_in: bool,
        spent: &mut bool,
    ) -> Result<Bearer, TokenError> {
        let account = &row.account;
        let newer = self.row(account.id).await?;
        if newer.account.generation != account.generation
            && let Some(answer) = self.settle(slot, &newer, Why::Dead)
        {
            return answer;
        }
        if let Some(answer) = self.try_candidates(slot, account).await {
            return answer;
        }
        let reason = match (sign_in, *spent) {
            (true, _) => Reason::SignInNeeded,
            (false, true) => Reason::LostInWindow,
            (false, false) => Reason::RefreshRejected,
        };
        *spent = false;
        self.end(slot, account, reason, code).await
    }

    /// Does something inside a lease, which is renewed until it is done.
    async fn while_leased(
        &self,
        id: AccountId,
        work: impl Future<Output = Result<Tokens, oauth::Error>>,
    ) -> Result<Tokens, oauth::Error> {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(RENEW) => {
                    // A lease that is lost is no reason to stop: the compare-and-set decides whose tokens count.
                    if let Err(cause) = self.parts.store.renew_lease(id, self.parts.instance, LEASE_MS).await {
                        tracing::warn!(account.id = %id, %cause, "a lease could not be renewed");
                    }
                }
            }
        }
    }
}
