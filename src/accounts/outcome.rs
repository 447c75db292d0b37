//! What the answer of a token endpoint does to an account: keep the new tokens, degrade, or end.

use std::time::Duration;

use serde_json::json;

use crate::audit::{Actor, Record};
use crate::ids::{self, AccountId, OrgId};
use crate::oauth::Tokens;
use crate::secret::Secret;
use crate::store::{self, AccountRow, AuditRow, Ended, Failed, LONGEST_PAUSE, NewTokens, Reason};
use crate::vault::Place;

use super::cache::{Held, Slot};
use super::refresh::Attempt;
use super::{Accounts, Bearer, TokenError, scopes};

/// The longest pause between tries of a provider in trouble, and the pause when the operator's settings are wrong.
pub(super) const BACKOFF: Duration = Duration::from_secs(60);
/// How long a provider may say nothing but what nobody understands before that is called failing.
const FAILING: Duration = Duration::from_secs(24 * 3600);

/// Why a refresh failed in passing.
pub(super) struct Setback<'a> {
    pub(super) reason: Reason,
    /// For the log and the trail: a word of ours, or the provider's code as it may be shown.
    pub(super) why: &'a str,
    /// The pause that is wished for; `None`: the next step of the backoff.
    pub(super) pause: Option<Duration>,
    /// Nobody understands the provider's error code.
    pub(super) unknown: bool,
    /// It is a matter of this instance: others need not wait.
    pub(super) here_only: bool,
}

impl<'a> Setback<'a> {
    /// The provider is in trouble.
    pub(super) const fn passing(why: &'a str) -> Self {
        Self { reason: Reason::ProviderUnavailable, why, pause: None, unknown: false, here_only: false }
    }

    /// The operator must change something.
    pub(super) const fn settings(why: &'a str) -> Self {
        Self { reason: Reason::ProviderMisconfigured, pause: Some(BACKOFF), ..Self::passing(why) }
    }

    /// The operator must change something about this instance.
    pub(super) const fn own_settings(why: &'a str) -> Self {
        Self { here_only: true, ..Self::settings(why) }
    }
}

pub(super) fn soon() -> TokenError {
    TokenError::Unavailable { reason: Reason::ProviderUnavailable, retry_after: Duration::from_secs(1) }
}

impl Accounts {
    /// Stores new tokens, however long it takes, then publishes them.
    pub(super) async fn keep(&self, attempt: &Attempt<'_>, tokens: Tokens) -> Result<Bearer, TokenError> {
        let (slot, account) = (attempt.slot, attempt.account);
        let mut new = self.seal(account.id, &tokens);
        new.missing_scopes = new.scopes.as_ref().and_then(|granted| self.missing_scopes(account, granted));
        // The lease is held meanwhile as well as the store lets it: nobody else should spend the old refresh token.
        match self.while_leased(account.id, self.save(account, &new)).await {
            Some(true) => {
                slot.recovered();
                self.overtaken(slot, account.id).await
            }
            Some(false) => self.lost(slot, account, tokens).await,
            None => {
                if let Some(refresh) = &tokens.refresh {
                    self.spill(account.id, refresh);
                }
                Err(soon())
            }
        }
    }

    /// Saves until the store has answered: the new refresh token may exist nowhere else. `false`: the account has moved
    /// on (or is gone), these tokens are not its current ones. `None`: the process ends and the store has not answered.
    async fn save(&self, account: &AccountRow, new: &NewTokens) -> Option<bool> {
        let store = &self.parts.store;
        let recovered = |after| self.record(account, "account.recovered").detail(json!({"after": after})).into_row();
        // Told once: the next answer is compared with what is stored now.
        let lost = new.scopes.as_ref().map(|granted| scopes::missing(&account.scopes, granted)).unwrap_or_default();
        let reduced = || self.record(account, "account.scope_reduced").detail(json!({"lost": lost})).into_row();
        let records: Vec<_> = (!lost.is_empty()).then(reduced).into_iter().collect();
        let records = records.as_slice();
        self.until_stored(account.id, || async move {
            let now = self.parts.clock.now();
            if store.save_tokens(account.id, account.generation, new, now, records, recovered).await? {
                return Ok(true);
            }
            // Not now. An earlier try may have failed without telling that it was stored.
            let stored = store.tokens(account.id).await?;
            Ok(stored.is_some_and(|row| row.access.as_ref() == Some(&new.access)))
        })
        .await
    }

    /// Does something with the store until it has answered. `None`: the process ends and it has not.
    pub(super) async fn until_stored<T, F>(&self, account: AccountId, work: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = store::Result<T>>,
    {
        let mut pause = Duration::from_millis(50);
        loop {
            match work().await {
                Ok(done) => return Some(done),
                Err(cause) => {
                    tracing::error!(account.id = %account, %cause, "new tokens can't be stored; trying again");
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.parts.shutdown.stopped() => return None,
            }
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// The tokens of a refresh that lost its race: a candidate while the account is there, given back when it is not.
    async fn lost(&self, slot: &Slot, account: &AccountRow, tokens: Tokens) -> Result<Bearer, TokenError> {
        match &tokens.refresh {
            Some(refresh) => self.keep_candidate(account.id, refresh).await,
            None if matches!(self.row(account.id).await, Err(TokenError::Gone)) => {
                self.give_up(account.id, "access_token", &tokens.access).await;
            }
            None => {}
        }
        self.overtaken(slot, account.id).await
    }

    /// Keeps a refresh token that is not the current one and may be good.
    async fn keep_candidate(&self, account: AccountId, refresh: &Secret<String>) {
        let (id, sealed) = self.seal_candidate(refresh);
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        let revived = |organization| self.revived(account, organization);
        let kept = self.until_stored(account, || store.insert_candidate(id, account, &sealed, now, revived)).await;
        self.kept(account, refresh, kept).await;
    }

    /// Keeps a refresh token that came in place of the current one, to be tried before it: where reuse revokes
    /// everything, the old one must not be tried first.
    pub(super) async fn keep_successor(&self, account: &AccountRow, refresh: &Secret<String>) {
        let (id, sealed) = self.seal_candidate(refresh);
        let (store, now) = (&self.parts.store, self.parts.clock.now());
        let revived = |organization| self.revived(account.id, organization);
        let insert = || store.insert_successor(id, account.id, &sealed, account.generation, now, revived);
        let kept = self.while_leased(account.id, self.until_stored(account.id, insert)).await;
        self.kept(account.id, refresh, kept).await;
    }

    /// Says that an account which was ended has a refresh token that is still to be tried.
    pub(super) fn revived(&self, account: AccountId, organization: OrgId) -> AuditRow {
        let detail = json!({"reason": Reason::ProviderUnavailable, "why": "another refresh token was received"});
        Record::new(self.parts.clock.now(), organization, &Actor::System, "account.degraded")
            .account(account)
            .detail(detail)
            .into_row()
    }

    /// A refresh token is never just dropped: not with an account that is gone, nor at the end of the process.
    async fn kept(&self, account: AccountId, refresh: &Secret<String>, kept: Option<bool>) {
        match kept {
            Some(true) => {}
            Some(false) => self.give_up(account, "refresh_token", refresh).await,
            None => self.spill(account, refresh),
        }
    }

    /// Tokens as they are stored.
    pub(super) fn seal(&self, id: AccountId, tokens: &Tokens) -> NewTokens {
        let row = id.to_string();
        let seal = |column, token: &Secret<String>| {
            self.parts.vault.seal(Place { table: "accounts", row: &row, column }, token.expose().as_bytes())
        };
        let now = self.parts.store.time();
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

    /// Notes passing trouble: the status becomes `degraded` (told once), the next try waits, on every instance. Answers
    /// what the row says when the account has moved on meanwhile; then nothing is noted.
    pub(super) async fn degrade(
        &self,
        attempt: &Attempt<'_>,
        setback: Setback<'_>,
    ) -> Option<Result<Bearer, TokenError>> {
        let (account, why, now) = (attempt.account, setback.why, self.parts.store.time());
        let pause = setback.pause.unwrap_or_else(|| backoff(attempt.lease.failures)).min(LONGEST_PAUSE);
        let unknown_since = setback.unknown.then(|| attempt.lease.unknown_since.unwrap_or(now));
        let failing = unknown_since.is_some_and(|since| now.since(since) >= FAILING);
        let reason = if failing { Reason::Failing } else { setback.reason };
        let (provider, retry_ms) = (&account.provider, pause.as_millis());
        if setback.unknown {
            tracing::error!(account.id = %account.id, provider, why, retry_ms, "a provider answers with an error that is not known");
        } else {
            tracing::warn!(account.id = %account.id, provider, why, retry_ms, "a refresh failed");
        }
        let record = self.record(account, "account.degraded").detail(json!({"reason": reason, "why": why})).into_row();
        let (generation, owner) = (attempt.lease.generation, self.parts.instance);
        let shared = if setback.here_only { Duration::ZERO } else { pause };
        let failed = Failed { generation, owner, reason, pause: shared, unknown_since };
        match self.parts.store.note_failure(account.id, &failed, self.parts.clock.now(), &record).await {
            Ok(true) => {}
            Ok(false) => return Some(self.overtaken(attempt.slot, account.id).await),
            Err(cause) => tracing::error!(account.id = %account.id, %cause, "a status can't be stored"),
        }
        attempt.slot.failed(reason, self.parts.clock.monotonic() + pause);
        None
    }

    /// The provider refused for good: disconnected, told once.
    pub(super) async fn end(
        &self,
        attempt: &mut Attempt<'_>,
        reason: Reason,
        code: &str,
    ) -> Result<Bearer, TokenError> {
        let (account, now) = (attempt.account, self.parts.clock.now());
        let record =
            self.record(account, "account.disconnected").detail(json!({"reason": reason, "code": code})).into_row();
        let (generation, owner) = (attempt.lease.generation, self.parts.instance);
        let ended = Ended { generation, owner, reason, checked_at: attempt.asked.then_some(now) };
        match self.parts.store.end_account(account.id, &ended, now, &record).await {
            Ok(true) => {
                attempt.resolved();
                tracing::warn!(account.id = %account.id, provider = account.provider, code, "an account is disconnected");
                attempt.slot.publish(Held::Disconnected { reason });
            }
            // Another instance said so first, or has the account now, or had a better answer: the row tells which.
            Ok(false) => return self.overtaken(attempt.slot, account.id).await,
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
