//! The one place that spends a refresh token.
//!
//! ```text
//! join ── somebody is on it ──▶ their watch channel
//!   │ nobody: a tracked task, which no caller's leaving cancels
//!   ▼
//! read the row ── newer than what was asked about? ──▶ publish it, done
//!   ▼
//! call the token endpoint ── passing trouble ──▶ degraded, back off, the old token while it lives
//!   │                     └─ refused ──▶ read the row again: moved? use that. else disconnected, one record
//!   ▼
//! save (compare-and-set on the generation, until it is stored) ──▶ publish ──▶ wake the waiters
//! ```
//! Nobody sees a token that is not stored. See `invariants.md` for what each answer means.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use serde_json::json;
use tokio::sync::{Semaphore, watch};

use crate::audit::{Actor, Record};
use crate::ids::{self, AccountId};
use crate::oauth::{self, Tokens};
use crate::secret::Secret;
use crate::store::{AccountRow, AccountTokens, NewTokens, Reason, Status, StatusChange, Validity};
use crate::telemetry::RefreshOutcome;
use crate::vault::Place;

use super::cache::{Held, Slot};
use super::{Accounts, Bearer, TokenError};

/// The longest pause between tries of a provider in trouble, and the pause when the operator's settings are wrong.
const BACKOFF: Duration = Duration::from_secs(60);

/// Why a flight is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The token is dead, or nothing is in memory: any living token will do.
    Dead,
    /// The token is old: one outside its margin will do.
    Soon,
    /// An upstream refused the token of this generation: a newer one is needed.
    Doubted(i64),
    /// A person asked: a new one in any case, whatever the backoff says.
    Asked,
}

/// What a flight brought.
pub(super) type Landing = Option<Result<Bearer, TokenError>>;

/// Refreshes under way by account, and how many calls each provider gets at once.
#[derive(Default)]
pub(super) struct Flights {
    by_account: DashMap<AccountId, watch::Receiver<Landing>>,
    by_provider: DashMap<String, Arc<Semaphore>>,
}

impl Flights {
    fn permits(&self, provider: &str, most: usize) -> Arc<Semaphore> {
        let made = self.by_provider.entry(provider.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most)));
        Arc::clone(&made)
    }
}

impl Accounts {
    /// The account's flight: the one that is up, or a new one (`true`).
    pub(super) fn join(
        self: &Arc<Self>,
        account: AccountId,
        slot: &Arc<Slot>,
        why: Why,
    ) -> (watch::Receiver<Landing>, bool) {
        match self.flights.by_account.entry(account) {
            Entry::Occupied(flight) => (flight.get().clone(), false),
            Entry::Vacant(place) => {
                let (landing, flight) = watch::channel(None);
                place.insert(flight.clone());
                let (accounts, slot) = (Arc::clone(self), Arc::clone(slot));
                self.parts.shutdown.spawn(async move {
                    // Taken down on every way out, a panic included: an account must never wait for a dead flight.
                    let down = TakeDown { accounts: &accounts, account };
                    let outcome = accounts.fly(account, &slot, why).await;
                    // Down before it lands: whoever comes after this outcome starts anew.
                    drop(down);
                    landing.send_replace(Some(outcome));
                });
                (flight, true)
            }
        }
    }

    async fn fly(&self, id: AccountId, slot: &Slot, why: Why) -> Result<Bearer, TokenError> {
        let unavailable = |retry_after| TokenError::Unavailable {
            reason: slot.trouble().reason.unwrap_or(Reason::ProviderUnavailable),
            retry_after,
        };
        // The row as it stands now, not as some waiter saw it: a late waiter must not spend an old refresh token.
        let row = match self.parts.store.tokens(id).await {
            Ok(Some(row)) => row,
            Ok(None) => {
                self.cache.forget(id);
                return Err(TokenError::Gone);
            }
            Err(cause) => {
                tracing::error!(account.id = %id, %cause, "an account can't be read");
                return Err(unavailable(Duration::from_secs(1)));
            }
        };
        if let Some(answer) = self.settle(slot, &row, why) {
            return answer;
        }
        let now = self.parts.clock.monotonic();
        if why != Why::Asked && !slot.may_try(now) {
            return self.publish(slot, &row).ok_or_else(|| unavailable(slot.wait(now)));
        }
        match self.renew(slot, &row).await {
            Some(answer) => answer,
            // It failed in passing: the old token while it lives.
            None => self.publish(slot, &row).ok_or_else(|| unavailable(slot.wait(self.parts.clock.monotonic()))),
        }
    }

    /// Answers from the row alone, when no refresh is needed or none is possible.
    fn settle(&self, slot: &Slot, row: &AccountTokens, why: Why) -> Option<Result<Bearer, TokenError>> {
        let account = &row.account;
        if let (Status::Disconnected, reason) = (account.status, account.reason) {
            let reason = reason.unwrap_or(Reason::RefreshRejected);
            slot.publish(Held::Disconnected { reason });
            return Some(Err(TokenError::Disconnected { account: account.id, reason }));
        }
        let now = self.parts.clock.monotonic();
        let enough = match why {
            Why::Dead => self.lives(row).is_some(),
            Why::Soon => self.lives(row).is_some_and(|(soon, _)| now < soon),
            Why::Doubted(generation) => account.generation > generation && self.lives(row).is_some(),
            Why::Asked => false,
        };
        enough.then(|| self.publish(slot, row).ok_or(TokenError::Gone))
    }

    /// Until when the row's token is fresh and alive (monotonic); `None` when it is dead or not there.
    fn lives(&self, row: &AccountTokens) -> Option<(Duration, Duration)> {
        row.access.as_ref()?;
        let left = row.account.access_expires_at?.since(self.parts.clock.now());
        if left.is_zero() {
            return None;
        }
        let ttl = Duration::from_millis(u64::try_from(row.access_ttl_ms.unwrap_or(0)).unwrap_or(0));
        let margin = self.parts.config.before_expiry.min(ttl / 4);
        let dead = self.parts.clock.monotonic() + left;
        Some((dead.saturating_sub(margin), dead))
    }

    /// Puts the row's token into the slot, when it lives.
    pub(super) fn publish(&self, slot: &Slot, row: &AccountTokens) -> Option<Bearer> {
        let (soon, dead) = self.lives(row)?;
        let token = self.opened(row, "access_token")?;
        let provider = self.parts.catalog.provider(&row.account.provider)?;
        let injection = match provider.inject.prepare(&token) {
            Ok(injection) => injection,
            Err(problem) => {
                tracing::error!(account.id = %row.account.id, %problem, "a token can't be put into a request");
                return None;
            }
        };
        let bearer = Bearer { injection: Arc::new(injection), generation: row.account.generation };
        slot.publish(Held::Live { bearer: bearer.clone(), soon, dead });
        Some(bearer)
    }

    pub(super) fn opened(&self, row: &AccountTokens, column: &'static str) -> Option<Secret<String>> {
        let sealed = if column == "access_token" { row.access.as_ref()? } else { row.refresh.as_ref()? };
        let id = row.account.id.to_string();
        match self.parts.vault.open_text(Place { table: "accounts", row: &id, column }, sealed) {
            Ok(token) => Some(token),
            Err(cause) => {
                tracing::error!(account.id = %id, %cause, "a stored token does not open");
                None
            }
        }
    }

    /// Spends the refresh token once. `None`: it failed in passing.
    async fn renew(&self, slot: &Slot, row: &AccountTokens) -> Option<Result<Bearer, TokenError>> {
        let account = &row.account;
        let Some(provider) = self.parts.catalog.provider(&account.provider) else {
            self.degrade(slot, account, Reason::ProviderMisconfigured, "unknown_provider", false, None).await;
            return None;
        };
        let Some(refresh) = self.opened(row, "refresh_token") else {
            // A token without a refresh token (or one that does not open) ends with its life: a person must sign in.
            return match self.lives(row) {
                Some(_) => None,
                None => Some(self.end(slot, row, Reason::SignInNeeded, "no_refresh_token").await),
            };
        };
        let permits = self.flights.permits(&account.provider, self.parts.config.per_provider);
        let _permit = permits.acquire().await.ok()?;
        match self.parts.oauth.refresh(provider, &account.captures, &refresh).await {
            Ok(tokens) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Ok);
                Some(self.keep(slot, row, tokens).await)
            }
            Err(oauth::Error::Transient { why, retry_after, ambiguous }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Transient);
                self.degrade(slot, account, Reason::ProviderUnavailable, why, ambiguous, retry_after).await;
                None
            }
            Err(oauth::Error::Misconfigured { code }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Misconfigured);
                self.degrade(slot, account, Reason::ProviderMisconfigured, &code, false, Some(BACKOFF)).await;
                None
            }
            Err(oauth::Error::Rejected { code, sign_in }) => {
                self.parts.metrics.observe_refresh(RefreshOutcome::Rejected);
                let reason = match (sign_in, slot.trouble().maybe_rotated) {
                    (true, _) => Reason::SignInNeeded,
                    (false, true) => Reason::LostInWindow,
                    (false, false) => Reason::RefreshRejected,
                };
                Some(self.end(slot, row, reason, &code).await)
            }
        }
    }

    /// Stores new tokens, however long it takes, then publishes them.
    async fn keep(&self, slot: &Slot, row: &AccountTokens, tokens: Tokens) -> Result<Bearer, TokenError> {
        let account = &row.account;
        let now = self.parts.clock.now();
        let new = self.seal(account.id, &tokens);
        let record = (account.status == Status::Degraded)
            .then(|| self.record(account, "account.recovered").detail(json!({"after": account.reason})).into_row());
        let mut pause = Duration::from_millis(50);
        let saved = loop {
            match self.parts.store.save_tokens(account.id, account.generation, &new, now, record.as_ref()).await {
                Ok(saved) => break saved,
                Err(cause) => {
                    // The new refresh token may exist nowhere else: go on until it is stored.
                    tracing::error!(account.id = %account.id, %cause, "new tokens can't be stored; trying again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        };
        let stored = self.parts.store.tokens(account.id).await;
        match stored {
            Ok(Some(stored)) => {
                if saved {
                    slot.recovered();
                }
                let dead = TokenError::Unavailable {
                    reason: Reason::ProviderUnavailable,
                    retry_after: Duration::from_secs(1),
                };
                self.settle(slot, &stored, Why::Dead).unwrap_or(Err(dead))
            }
            Ok(None) => {
                // Disconnected while the refresh ran: it stays so, and the token that nobody wants is given back.
                self.cache.forget(account.id);
                if let Some(provider) = self.parts.catalog.provider(&account.provider) {
                    let token = tokens.refresh.as_ref().unwrap_or(&tokens.access);
                    let kind = if tokens.refresh.is_some() { "refresh_token" } else { "access_token" };
                    let _ = self.parts.oauth.revoke(provider, &account.captures, token, kind).await;
                }
                Err(TokenError::Gone)
            }
            Err(cause) => {
                tracing::error!(account.id = %account.id, %cause, "an account can't be read");
                Err(TokenError::Unavailable {
                    reason: Reason::ProviderUnavailable,
                    retry_after: Duration::from_secs(1),
                })
            }
        }
    }

    /// Tokens as they are stored.
    pub(super) fn seal(&self, id: AccountId, tokens: &Tokens) -> NewTokens {
        let row = id.to_string();
        let seal = |column, token: &Secret<String>| {
            self.parts.vault.seal(Place { table: "accounts", row: &row, column }, token.expose().as_bytes())
        };
        let now = self.parts.clock.now();
        NewTokens {
            access: seal("access_token", &tokens.access),
            refresh: tokens.refresh.as_ref().map(|token| seal("refresh_token", token)),
            access_expires_at: now.after(tokens.expires_in),
            access_ttl_ms: i64::try_from(tokens.expires_in.as_millis()).unwrap_or(i64::MAX),
            refresh_expires_at: tokens.refresh_expires_in.map(|life| now.after(life)),
            scopes: tokens.scopes.clone(),
        }
    }

    /// Notes passing trouble: the status becomes `degraded` (told once), the next try waits.
    async fn degrade(
        &self,
        slot: &Slot,
        account: &AccountRow,
        reason: Reason,
        why: &str,
        maybe_rotated: bool,
        retry_after: Option<Duration>,
    ) {
        let pause = retry_after.unwrap_or_else(|| backoff(slot.trouble().failures));
        slot.failed(reason, maybe_rotated, self.parts.clock.monotonic() + pause);
        tracing::warn!(account.id = %account.id, provider = account.provider, why, retry_ms = pause.as_millis(), "a refresh failed");
        let record = self.record(account, "account.degraded").detail(json!({"reason": reason, "why": why})).into_row();
        let change = StatusChange { status: Status::Degraded, reason: Some(reason), validity: account.validity };
        if let Err(cause) =
            self.parts.store.set_status(account.id, account.generation, change, self.parts.clock.now(), &record).await
        {
            tracing::error!(account.id = %account.id, %cause, "a status can't be stored");
        }
    }

    /// The provider refused: reads the row once more (another instance may have been faster), then disconnects.
    async fn end(&self, slot: &Slot, row: &AccountTokens, reason: Reason, code: &str) -> Result<Bearer, TokenError> {
        let account = &row.account;
        if let Ok(Some(newer)) = self.parts.store.tokens(account.id).await
            && newer.account.generation != account.generation
            && let Some(answer) = self.settle(slot, &newer, Why::Dead)
        {
            return answer;
        }
        tracing::warn!(account.id = %account.id, provider = account.provider, code, "an account is disconnected");
        let record =
            self.record(account, "account.disconnected").detail(json!({"reason": reason, "code": code})).into_row();
        let change = StatusChange { status: Status::Disconnected, reason: Some(reason), validity: Validity::Invalid };
        match self.parts.store.set_status(account.id, account.generation, change, self.parts.clock.now(), &record).await
        {
            Ok(_) => slot.publish(Held::Disconnected { reason }),
            Err(cause) => tracing::error!(account.id = %account.id, %cause, "a status can't be stored"),
        }
        Err(TokenError::Disconnected { account: account.id, reason })
    }

    pub(super) fn record(&self, account: &AccountRow, action: &'static str) -> Record {
        Record::new(self.parts.clock.now(), account.organization, &Actor::System, action).account(account.id)
    }
}

/// 1, 2, 4 … 60 s, each ± a quarter so that accounts which failed together do not try together.
fn backoff(failures: u32) -> Duration {
    let step = Duration::from_secs(1 << failures.min(6)).min(BACKOFF);
    let share = f64::from(u16::from_be_bytes(ids::random())) / f64::from(u16::MAX);
    step.mul_f64(0.75 + share / 2.0)
}

struct TakeDown<'a> {
    accounts: &'a Accounts,
    account: AccountId,
}

impl Drop for TakeDown<'_> {
    fn drop(&mut self) {
        self.accounts.flights.by_account.remove(&self.account);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_and_stops_at_a_minute() {
        for (failures, low, high) in [(0, 750, 1_250), (1, 1_500, 2_500), (5, 24_000, 40_000), (60, 45_000, 75_000)] {
            let pause = backoff(failures).as_millis();
            assert!((low..=high).contains(&pause), "{failures}: {pause}");
        }
    }
}
