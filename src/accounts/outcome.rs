//! What the answer of a token endpoint does to an account: keep the new tokens, degrade, or end.

use std::time::Duration;

use serde_json::json;

use crate::audit::{Actor, Record};
use crate::ids::{self, AccountId};
use crate::oauth::{self, Tokens};
use crate::secret::Secret;
use crate::store::{AccountRow, AccountTokens, NewTokens, Reason, Status, StatusChange, Validity};
use crate::vault::Place;

use super::cache::{Held, Slot};
use super::flight::Why;
use super::{Accounts, Bearer, TokenError, scopes};

/// The longest pause between tries of a provider in trouble, and the pause when the operator's settings are wrong.
pub(super) const BACKOFF: Duration = Duration::from_secs(60);

fn soon() -> TokenError {
    TokenError::Unavailable { reason: Reason::ProviderUnavailable, retry_after: Duration::from_secs(1) }
}

impl Accounts {
    /// Stores new tokens, however long it takes, then publishes them.
    pub(super) async fn keep(&self, slot: &Slot, account: &AccountRow, tokens: Tokens) -> Result<Bearer, TokenError> {
        let mut new = self.seal(account.id, &tokens);
        new.missing_scopes = new.scopes.as_ref().and_then(|granted| self.missing_scopes(account, granted));
        match self.save(account, &new).await {
            Some(true) => {}
            Some(false) => return self.lost(slot, account, tokens).await,
            None => {
                if let Some(refresh) = &tokens.refresh {
                    self.spill(account.id, refresh);
                }
                return Err(soon());
            }
        }
        slot.recovered();
        match self.parts.store.tokens(account.id).await {
            Ok(Some(stored)) => self.settle(slot, &stored, Why::Dead).unwrap_or_else(|| Err(soon())),
            Ok(None) => Err(TokenError::Gone),
            Err(cause) => {
                tracing::error!(account.id = %account.id, %cause, "an account can't be read");
                Err(soon())
            }
        }
    }

    /// Saves until the store has answered: the new refresh token may exist nowhere else. `false`: the account has moved
    /// on (or is gone), these tokens are not its current ones. `None`: the process ends and the store has not answered.
    async fn save(&self, account: &AccountRow, new: &NewTokens) -> Option<bool> {
        let mut records = Vec::new();
        if account.status == Status::Degraded {
            records.push(self.record(account, "account.recovered").detail(json!({"after": account.reason})).into_row());
        }
        // Told once: the next answer is compared with what is stored now.
        let lost = new.scopes.as_ref().map(|granted| scopes::missing(&account.scopes, granted)).unwrap_or_default();
        if !lost.is_empty() {
            records.push(self.record(account, "account.scope_reduced").detail(json!({"lost": lost})).into_row());
        }
        let mut pause = Duration::from_millis(50);
        let mut tries = 0u32;
        loop {
            let now = self.parts.clock.now();
            match self.parts.store.save_tokens(account.id, account.generation, new, now, &records).await {
                Ok(saved) if saved || tries == 0 => return Some(saved),
                // An earlier try failed without telling whether it was stored: it was, if the generation moved by one.
                Ok(_) => {
                    let stored = self.parts.store.tokens(account.id).await;
                    let ours = |row: AccountTokens| row.access.as_ref() == Some(&new.access);
                    return Some(stored.is_ok_and(|row| row.is_some_and(ours)));
                }
                Err(cause) => {
                    tries += 1;
                    tracing::error!(account.id = %account.id, %cause, "new tokens can't be stored; trying again");
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.parts.shutdown.stopped() => return None,
                    }
                    pause = (pause * 2).min(Duration::from_secs(2));
                }
            }
        }
    }

    /// The tokens of a refresh that lost its race: a candidate while the account is there, given back when it is not.
    async fn lost(&self, slot: &Slot, account: &AccountRow, tokens: Tokens) -> Result<Bearer, TokenError> {
        match self.parts.store.tokens(account.id).await {
            Ok(Some(current)) => {
                if let Some(refresh) = &tokens.refresh {
                    self.keep_candidate(account.id, refresh).await;
                }
                self.settle(slot, &current, Why::Dead).unwrap_or_else(|| Err(soon()))
            }
            Ok(None) => {
                // Disconnected while the refresh ran: it stays so.
                self.cache.forget(account.id);
                self.revoke_unwanted(account, &tokens).await;
                Err(TokenError::Gone)
            }
            Err(cause) => {
                tracing::error!(account.id = %account.id, %cause, "an account can't be read");
                Err(soon())
            }
        }
    }

    /// Keeps a refresh token that is not the current one and may be good.
    pub(super) async fn keep_candidate(&self, account: AccountId, refresh: &Secret<String>) {
        let (id, sealed) = self.seal_candidate(refresh);
        let stored = self.parts.store.insert_candidate(id, account, &sealed, self.parts.clock.now()).await;
        if let Err(cause) = stored {
            tracing::error!(account.id = %account, %cause, "a refresh token that may be needed can't be kept");
        }
    }

    /// Revokes tokens that nobody wants, best effort, unless the same grant serves another account.
    async fn revoke_unwanted(&self, account: &AccountRow, tokens: &Tokens) {
        let Some(provider) = self.parts.catalog.provider(&account.provider) else { return };
        if self.shares_grant(provider, &account.subject, Some(account.id)).await.unwrap_or(true) {
            return;
        }
        let token = tokens.refresh.as_ref().unwrap_or(&tokens.access);
        let kind = if tokens.refresh.is_some() { "refresh_token" } else { "access_token" };
        if let Err(cause) = self.parts.oauth.revoke(provider, &account.captures, token, kind).await {
            tracing::warn!(account.id = %account.id, %cause, "tokens that nobody wants could not be revoked");
        }
    }

    /// The provider refused the refresh token: tries every candidate once. `None`: none helped.
    pub(super) async fn try_candidates(&self, slot: &Slot, account: &AccountRow) -> Option<Result<Bearer, TokenError>> {
        let provider = self.parts.catalog.provider(&account.provider)?;
        for candidate in self.parts.store.candidates(account.id).await.unwrap_or_default() {
            let row = candidate.id.to_string();
            let place = Place { table: "token_candidates", row: &row, column: "token" };
            let answer = match self.parts.vault.open_text(place, &candidate.token) {
                Ok(token) => self.parts.oauth.refresh(provider, &account.captures, &token).await,
                Err(cause) => {
                    tracing::error!(account.id = %account.id, %cause, "a candidate does not open");
                    continue;
                }
            };
            match answer {
                Ok(tokens) => {
                    let kept = self.keep(slot, account, tokens).await;
                    let _ = self.parts.store.delete_candidate(candidate.id).await;
                    return Some(kept);
                }
                Err(oauth::Error::Rejected { .. }) => {
                    let _ = self.parts.store.delete_candidate(candidate.id).await;
                }
                // It may still be good: the account is not given up while one candidate is untried.
                Err(passing) => {
                    if let oauth::Error::Unusable { refresh, .. } = &passing {
                        // Spent, and what it brought takes its place.
                        self.keep_candidate(account.id, refresh).await;
                        let _ = self.parts.store.delete_candidate(candidate.id).await;
                    }
                    let reason = Reason::ProviderUnavailable;
                    self.degrade(slot, account, reason, "a kept refresh token could not be tried", None).await;
                    let retry_after = slot.wait(self.parts.clock.monotonic());
                    return Some(Err(TokenError::Unavailable { reason, retry_after }));
                }
            }
        }
        None
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
            missing_scopes: None,
        }
    }

    /// What the account's targets need and is not granted (any more).
    fn missing_scopes(&self, account: &AccountRow, granted: &[String]) -> Option<Vec<String>> {
        let provider = self.parts.catalog.provider(&account.provider)?;
        let connected: Vec<String> = account.targets.iter().map(|target| target.capability.clone()).collect();
        Some(scopes::missing(&provider.scopes(&connected, account.preset), granted))
    }

    fn pause(&self, slot: &Slot, wished: Option<Duration>) -> Duration {
        wished.unwrap_or_else(|| backoff(slot.trouble().failures))
    }

    /// Notes passing trouble: the status becomes `degraded` (told once), the next try waits.
    pub(super) async fn degrade(
        &self,
        slot: &Slot,
        account: &AccountRow,
        reason: Reason,
        why: &str,
        retry_after: Option<Duration>,
    ) {
        let pause = self.pause(slot, retry_after);
        slot.failed(reason, self.parts.clock.monotonic() + pause);
        tracing::warn!(account.id = %account.id, provider = account.provider, why, retry_ms = pause.as_millis(), "a refresh failed");
        let record = self.record(account, "account.degraded").detail(json!({"reason": reason, "why": why})).into_row();
        let change = StatusChange { status: Status::Degraded, reason: Some(reason), validity: account.validity };
        if let Err(cause) =
            self.parts.store.set_status(account.id, account.generation, change, self.parts.clock.now(), &record).await
        {
            tracing::error!(account.id = %account.id, %cause, "a status can't be stored");
        }
    }

    /// The provider refused for good: disconnected, told once.
    pub(super) async fn end(
        &self,
        slot: &Slot,
        account: &AccountRow,
        reason: Reason,
        code: &str,
    ) -> Result<Bearer, TokenError> {
        let record =
            self.record(account, "account.disconnected").detail(json!({"reason": reason, "code": code})).into_row();
        let change = StatusChange { status: Status::Disconnected, reason: Some(reason), validity: Validity::Invalid };
        match self.parts.store.set_status(account.id, account.generation, change, self.parts.clock.now(), &record).await
        {
            Ok(true) => {
                tracing::warn!(account.id = %account.id, provider = account.provider, code, "an account is disconnected");
                slot.publish(Held::Disconnected { reason });
            }
            // Another instance said so first, or had a better answer from the provider: the row tells which.
            Ok(false) => {
                let row = self.row(account.id).await?;
                return self.settle(slot, &row, Why::Dead).unwrap_or_else(|| Err(soon()));
            }
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
