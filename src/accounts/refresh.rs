//! The one place that spends a refresh token.
//!
//! ```text
//! read the row ── newer than what was asked about? ──▶ publish it, done                       (no lease, no call)
//!   ▼
//! take the lease ─┬ another instance has it ──▶ read the row until it moves, or the lease is free
//!   ▼             └ nobody may try yet ──▶ the old token while it lives          (whichever instance failed last)
//! won: read the row again, inside the lease
//!   ▼
//! each refresh token that there is: a successor of the current one, the current one, those that were kept
//!   call the token endpoint, renewing the lease meanwhile (a further call only while it is ours)
//!   ├─ new tokens ──▶ save (compare-and-set on the generation, until it is stored) ──▶ publish ──▶ wake the waiters
//!   ├─ passing trouble ──▶ degraded, back off, the old token while it lives
//!   └─ refused ──▶ read the row: moved? use that. Else the next one; when none is left, disconnected, told once
//! ```
//! Taking the lease is a write: when the result could not be stored, the provider is not asked. See `invariants.md` for
//! what each answer means.

use std::time::Duration;

use tokio::time::Instant;

use crate::catalog::Provider;
use crate::ids::{AccountId, CandidateId};
use crate::oauth::{self, Tokens};
use crate::secret::Secret;
use crate::store::{self, AccountRow, AccountTokens, CandidateRow, Lease, Reason, Taken};
use crate::telemetry::RefreshOutcome;

use super::cache::Slot;
use super::flight::Why;
use super::outcome::{BACKOFF, Setback, soon};
use super::{Accounts, Bearer, TokenError};

/// How long a lease lasts without being renewed: what a crashed instance costs its accounts.
const LEASE: Duration = Duration::from_secs(6);
/// How often it is renewed while the provider is asked.
const RENEW: Duration = Duration::from_secs(2);
/// How often an account is looked at whose lease another instance holds.
const LOOK: Duration = Duration::from_millis(50);

const LEASE_MS: i64 = LEASE.as_millis() as i64;

/// An attempt to refresh an account, inside its lease.
pub(super) struct Attempt<'a> {
    pub(super) slot: &'a Slot,
    /// As it was when the lease was won.
    pub(super) account: &'a AccountRow,
    pub(super) lease: Lease,
    /// A refresh token may have been spent without a stored result.
    spent: bool,
    /// When the lease was taken or renewed for a call.
    leased: Instant,
    /// The provider was asked in it.
    pub(super) asked: bool,
}

impl Attempt<'_> {
    /// Its result is stored: nothing is in doubt any more.
    pub(super) fn resolved(&mut self) {
        self.spent = false;
    }
}

/// A refresh token to try.
struct Spendable {
    token: Secret<String>,
    /// Where it was kept, when it is not the current one.
    candidate: Option<CandidateId>,
}

/// What can be tried.
struct Spendables {
    /// In the order of trying.
    tokens: Vec<Spendable>,
    /// There is one that does not open.
    sealed: bool,
}

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
        let (account, leased) = (&row.account, Instant::now());
        let mut attempt = Attempt { slot, account, lease, spent: lease.maybe_spent, leased, asked: false };
        let answer = self.renew(&mut attempt, &row).await;
        if let Err(cause) = self.parts.store.release_lease(id, self.parts.instance, attempt.spent).await {
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
                Err(soon())
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

    /// What the row says, after this attempt turned out not to be the one that counts.
    pub(super) async fn overtaken(&self, slot: &Slot, id: AccountId) -> Result<Bearer, TokenError> {
        let row = self.row(id).await?;
        self.settle(slot, &row, Why::Dead).unwrap_or_else(|| Err(soon()))
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
        let at_once = why == Why::Asked || self.settings_are_new(&row);
        let patience = Instant::now() + self.parts.config.timeout + LEASE;
        loop {
            match self.take_lease(id, at_once).await {
                Ok(Taken::Won(lease)) => {
                    row = self.row(id).await.map_err(Err)?;
                    let Some(answer) = self.moved_on(slot, &row, why, asked_at) else { return Ok((lease, row)) };
                    let _ = self.parts.store.release_lease(id, self.parts.instance, lease.maybe_spent).await;
                    return Err(answer);
                }
                Ok(Taken::Held) if Instant::now() < patience => {
                    tokio::time::sleep(LOOK).await;
                    row = self.row(id).await.map_err(Err)?;
                    if let Some(answer) = self.moved_on(slot, &row, why, asked_at) {
                        return Err(answer);
                    }
                }
                Ok(Taken::Held) => return Err(self.fallback(slot, &row)),
                Ok(Taken::Resting(pause)) => {
                    // Another instance failed, or this one before it was started anew.
                    let reason = row.account.reason.unwrap_or(Reason::ProviderUnavailable);
                    slot.failed(reason, self.parts.clock.monotonic() + pause);
                    return Err(self.fallback(slot, &row));
                }
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

    async fn take_lease(&self, id: AccountId, at_once: bool) -> store::Result<Taken> {
        let instance = self.parts.instance;
        if at_once {
            self.parts.store.take_lease_at_once(id, instance, LEASE_MS).await
        } else {
            self.parts.store.take_lease(id, instance, LEASE_MS).await
        }
    }

    /// Whether the client settings that a provider refused may have been corrected since: this process read them later.
    fn settings_are_new(&self, row: &AccountTokens) -> bool {
        row.account.reason == Some(Reason::ProviderMisconfigured)
            && row.next_attempt_at.is_some_and(|at| at < self.started.after(BACKOFF))
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

    /// Spends refresh tokens, each once, until one brings new tokens. `None`: it failed in passing.
    async fn renew(&self, attempt: &mut Attempt<'_>, row: &AccountTokens) -> Option<Result<Bearer, TokenError>> {
        let Some(provider) = self.parts.catalog.provider(&row.account.provider) else {
            return self.degrade(attempt, Setback::own_settings("unknown_provider")).await;
        };
        let found = match self.spendables(row).await {
            Ok(found) => found,
            Err(cause) => {
                tracing::error!(account.id = %row.account.id, %cause, "kept refresh tokens can't be read; the provider is not asked");
                return None;
            }
        };
        if found.tokens.is_empty() && !found.sealed {
            // A token that can't be refreshed ends with its life, or when it is refused: a person must sign in.
            let ended = self.lives(row).is_none();
            return if ended { Some(self.end(attempt, Reason::SignInNeeded, "no_refresh_token").await) } else { None };
        }
        let mut refusal = None;
        for spendable in found.tokens {
            let Some(answer) = self.spend(attempt, provider, &spendable.token).await else {
                return Some(self.overtaken(attempt.slot, row.account.id).await);
            };
            match answer {
                Ok(tokens) => {
                    self.parts.metrics.observe_refresh(RefreshOutcome::Ok);
                    let kept = self.keep(attempt, tokens).await;
                    self.tried(spendable.candidate).await;
                    attempt.resolved();
                    return Some(kept);
                }
                Err(oauth::Error::Rejected { code, sign_in }) => {
                    self.parts.metrics.observe_refresh(RefreshOutcome::Rejected);
                    self.tried(spendable.candidate).await;
                    // Another instance may have been faster.
                    match self.row(row.account.id).await {
                        Ok(newer) if newer.account.generation == row.account.generation => {}
                        Ok(newer) => return Some(self.settle(attempt.slot, &newer, Why::Dead).unwrap_or(Err(soon()))),
                        Err(error) => return Some(Err(error)),
                    }
                    // The current one's refusal says more than that of a kept one.
                    if refusal.is_none() || spendable.candidate.is_none() {
                        refusal = Some((code, sign_in));
                    }
                }
                Err(error) => return self.passing(attempt, spendable.candidate, error).await,
            }
        }
        match refusal {
            Some((code, sign_in)) if !found.sealed => Some(self.refused(attempt, &code, sign_in).await),
            // What does not open may still be good: for whoever has its key.
            _ => self.degrade(attempt, Setback::own_settings("sealed")).await,
        }
    }

    /// Every refresh token that may be good, the likeliest first.
    async fn spendables(&self, row: &AccountTokens) -> store::Result<Spendables> {
        let candidates = self.parts.store.candidates(row.account.id).await?;
        let (successors, others): (Vec<_>, Vec<_>) =
            candidates.iter().partition(|kept| kept.successor_of == Some(row.account.generation));
        let opened =
            |kept: &&CandidateRow| self.candidate(kept).map(|token| Spendable { token, candidate: Some(kept.id) });
        let current = self.opened(row, "refresh_token").map(|token| Spendable { token, candidate: None });
        let stored = candidates.len() + usize::from(row.refresh.is_some());
        let mut tokens: Vec<_> = successors.iter().filter_map(opened).collect();
        tokens.extend(current);
        tokens.extend(others.iter().filter_map(opened));
        Ok(Spendables { sealed: tokens.len() < stored, tokens })
    }

    /// Asks the provider once, in a lease that is ours when the call begins. `None`: it is not, or nobody can tell.
    async fn spend(
        &self,
        attempt: &mut Attempt<'_>,
        provider: &Provider,
        refresh: &Secret<String>,
    ) -> Option<Result<Tokens, oauth::Error>> {
        let account = attempt.account;
        let permits = self.flights.permits(&account.provider, self.parts.config.per_provider);
        let call = async {
            let _permit = permits.acquire().await;
            if !self.is_leased(attempt).await {
                return None;
            }
            attempt.asked = true;
            Some(self.parts.oauth.refresh(provider, &account.captures, refresh).await)
        };
        self.while_leased(account.id, call).await
    }

    /// Whether the lease is ours for the next call: renewed before each but the first, and before that one when it had
    /// to wait.
    async fn is_leased(&self, attempt: &mut Attempt<'_>) -> bool {
        if !attempt.asked && attempt.leased.elapsed() < RENEW {
            return true;
        }
        let id = attempt.account.id;
        match self.parts.store.renew_lease(id, self.parts.instance, LEASE_MS).await {
            Ok(true) => {
                attempt.leased = Instant::now();
                true
            }
            Ok(false) => {
                tracing::warn!(account.id = %id, "a lease was lost; the provider is not asked");
                false
            }
            Err(cause) => {
                tracing::error!(account.id = %id, %cause, "a lease can't be renewed; the provider is not asked");
                false
            }
        }
    }

    /// Forgets a candidate that was spent.
    async fn tried(&self, candidate: Option<CandidateId>) {
        if let Some(id) = candidate
            && let Err(cause) = self.parts.store.delete_candidate(id).await
        {
            tracing::warn!(%cause, "a spent refresh token is still kept");
        }
    }

    /// The answer says nothing about the account: wait.
    async fn passing(
        &self,
        attempt: &mut Attempt<'_>,
        candidate: Option<CandidateId>,
        error: oauth::Error,
    ) -> Option<Result<Bearer, TokenError>> {
        let error = match error {
            oauth::Error::Unusable { refresh, cause } => {
                // What was sent may be spent, and this took its place.
                attempt.spent = true;
                self.keep_successor(attempt.account, &refresh).await;
                self.tried(candidate).await;
                *cause
            }
            error => error,
        };
        let trouble = match &error {
            oauth::Error::Transient { why, retry_after, ambiguous } => {
                attempt.spent |= ambiguous;
                Setback { pause: *retry_after, ..Setback::passing(why) }
            }
            oauth::Error::Misconfigured { code } => Setback::settings(code),
            oauth::Error::Unknown { code } => Setback { unknown: true, ..Setback::passing(code) },
            // Taken apart above, and by the caller.
            oauth::Error::Unusable { .. } | oauth::Error::Rejected { .. } => Setback::passing("an unusable answer"),
        };
        self.parts.metrics.observe_refresh(if trouble.reason == Reason::ProviderMisconfigured {
            RefreshOutcome::Misconfigured
        } else {
            RefreshOutcome::Transient
        });
        self.degrade(attempt, trouble).await
    }

    /// Every refresh token was refused.
    async fn refused(&self, attempt: &mut Attempt<'_>, code: &str, sign_in: bool) -> Result<Bearer, TokenError> {
        let reason = match (sign_in, attempt.spent) {
            (true, _) => Reason::SignInNeeded,
            (false, true) => Reason::LostInWindow,
            (false, false) => Reason::RefreshRejected,
        };
        self.end(attempt, reason, code).await
    }

    /// Does something inside a lease, which is renewed until it is done.
    pub(super) async fn while_leased<T>(&self, id: AccountId, work: impl Future<Output = T>) -> T {
        // Beside the work, never instead of it: both may want the one connection that writes.
        let renewing = async {
            loop {
                tokio::time::sleep(RENEW).await;
                // A lease that is lost is no reason to stop: the compare-and-set decides whose tokens count.
                if let Err(cause) = self.parts.store.renew_lease(id, self.parts.instance, LEASE_MS).await {
                    tracing::warn!(account.id = %id, %cause, "a lease could not be renewed");
                }
            }
        };
        tokio::select! {
            done = work => done,
            _ = renewing => unreachable!("it is never renewed enough"),
        }
    }
}
