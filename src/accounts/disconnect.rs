//! The end of an account: gone here at once, revoked at the provider by a stored job that is retried until done.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::audit::{Actor, Record};
use crate::catalog::Provider;
use crate::ids::{AccountId, JobId, OrgId};
use crate::oauth;
use crate::secret::Secret;
use crate::store::{
    self, AccountTokens, AuditRow, CandidateRow, Disconnect, Disconnected, NewRevocation, RevocationRow, Status,
    TargetRef,
};
use crate::vault::Place;

use super::Accounts;

/// Jobs of one round.
const ROUND: u32 = 20;
/// How long a claimed job is left alone: longer than a call takes.
const CLAIM: Duration = Duration::from_secs(2 * 60);
/// How often the loop looks by itself, for retries and for jobs of other instances.
const PAUSE: Duration = Duration::from_secs(30);
/// Tries until a job is given up, about a day after the first.
const TRIES: i64 = 10;
/// How often a disconnect is decided anew: each time a whole refresh came between reading and removing.
const DECISIONS: u32 = 10;

/// Why an account was not disconnected.
#[derive(Debug, thiserror::Error)]
pub enum DisconnectError {
    /// No such account.
    #[error("there is no such account")]
    NotFound,
    /// Grants would go with it, and nobody said that this is all right.
    #[error("{grants} grants use this account's targets")]
    NeedsConfirmation {
        /// How many.
        grants: i64,
    },
    /// Our side failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<store::Error> for DisconnectError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => Self::NotFound,
            error => Self::Internal(error.into()),
        }
    }
}

impl Accounts {
    /// Erases tokens, targets and grants in one transaction, reloads the policy, and queues the revocation.
    ///
    /// Runs as a task of its own: once the rows are gone, the policy in memory must follow, whoever hangs up.
    ///
    /// # Errors
    /// [`DisconnectError`].
    pub async fn disconnect(
        self: &Arc<Self>,
        org: OrgId,
        id: AccountId,
        confirm: bool,
        actor: Actor,
    ) -> Result<Vec<TargetRef>, DisconnectError> {
        let accounts = Arc::clone(self);
        let task = self.parts.shutdown.spawn(async move { accounts.disconnect_task(org, id, confirm, &actor).await });
        task.await.map_err(|_| anyhow::anyhow!("disconnecting an account broke off"))?
    }

    async fn disconnect_task(
        &self,
        org: OrgId,
        id: AccountId,
        confirm: bool,
        actor: &Actor,
    ) -> Result<Vec<TargetRef>, DisconnectError> {
        for _ in 0..DECISIONS {
            let row = self.parts.store.tokens(id).await?;
            let row = row.filter(|row| row.account.organization == org).ok_or(DisconnectError::NotFound)?;
            match self.remove(&row, confirm, actor).await? {
                Disconnected::Done(targets) => {
                    self.revocations.notify_one();
                    let reloaded = self.parts.access.reload().await;
                    self.cache.forget(id);
                    reloaded?;
                    return Ok(targets);
                }
                Disconnected::NeedsConfirmation { grants } => {
                    return Err(DisconnectError::NeedsConfirmation { grants });
                }
                // New tokens came meanwhile: those are the ones to revoke.
                Disconnected::Moved => {}
            }
        }
        Err(DisconnectError::Internal(anyhow::anyhow!("the account's tokens change all the time")))
    }

    /// Removes an account as it was read, or not at all.
    async fn remove(&self, row: &AccountTokens, confirm: bool, actor: &Actor) -> store::Result<Disconnected> {
        let account = &row.account;
        let candidates = self.parts.store.candidates(account.id).await?;
        let shared = self.is_shared(&account.provider, &account.subject, account.id).await?;
        let revocations = if shared { Vec::new() } else { self.to_revoke(row, &candidates) };
        let word = match (shared, revocations.is_empty()) {
            (true, _) => "shared_grant",
            (false, true) => "none",
            (false, false) => "queued",
        };
        let now = self.parts.clock.now();
        let record = Record::new(now, account.organization, actor, "account.disconnected")
            .account(account.id)
            .detail(json!({"reason": "requested", "provider": account.provider, "revocation": word}));
        let wish = Disconnect {
            organization: account.organization,
            account: account.id,
            generation: account.generation,
            candidates: candidates.iter().map(|candidate| candidate.id).collect(),
            confirm,
            revocations,
            at: now,
        };
        let done = self.parts.store.disconnect(&wish, &record.into_row()).await?;
        if matches!(done, Disconnected::Done(_)) {
            let provider = &account.provider;
            tracing::info!(account.id = %account.id, provider, revocation = word, "an account is disconnected");
        }
        Ok(done)
    }

    /// What to revoke: the refresh token, which takes the access tokens with it (RFC 7009 §2.1), else the access token;
    /// and refresh tokens that lost a race, which may be good still.
    fn to_revoke(&self, row: &AccountTokens, candidates: &[CandidateRow]) -> Vec<NewRevocation> {
        let refresh = self.opened(row, "refresh_token").map(|token| ("refresh_token", token));
        let current = refresh.or_else(|| Some(("access_token", self.opened(row, "access_token")?)));
        let candidates = candidates.iter().filter_map(|candidate| Some(("refresh_token", self.candidate(candidate)?)));
        current.into_iter().chain(candidates).map(|(kind, token)| self.job(kind, &token)).collect()
    }

    fn job(&self, token_kind: &'static str, token: &Secret<String>) -> NewRevocation {
        let id = JobId::new();
        let token = self.parts.vault.seal(token_place(&id.to_string()), token.expose().as_bytes());
        NewRevocation { id, token_kind, token }
    }

    /// Queues the revocation of a token that came for an account which was disconnected meanwhile: it stays so, and what
    /// comes of it is told where the rest of its end is.
    pub(super) async fn give_up(&self, account: AccountId, kind: &'static str, token: &Secret<String>) {
        let (job, store) = (self.job(kind, token), &self.parts.store);
        let now = self.parts.clock.now();
        let queued = self.until_stored(account, || store.queue_revocation(account, &job, now));
        match queued.await {
            Some(true) => self.revocations.notify_one(),
            Some(false) => {
                tracing::error!(account.id = %account, "a token of an account that never was is not revoked")
            }
            None => {
                tracing::error!(account.id = %account, "a token that nobody wants could not be revoked before the end")
            }
        }
    }

    pub(super) fn candidate(&self, candidate: &CandidateRow) -> Option<Secret<String>> {
        let row = candidate.id.to_string();
        let place = Place { table: "token_candidates", row: &row, column: "token" };
        let opened = self.parts.vault.open_text(place, &candidate.token);
        opened.inspect_err(|cause| tracing::error!(%cause, "a candidate does not open, and is not revoked")).ok()
    }

    /// As [`Accounts::shares_grant`], by the provider's id. A provider that is not there any more shares nothing.
    async fn is_shared(&self, provider: &str, subject: &str, except: AccountId) -> store::Result<bool> {
        match self.parts.catalog.provider(provider) {
            Some(provider) => self.shares_grant(provider, subject, Some(except)).await,
            None => Ok(false),
        }
    }

    /// Whether another account that works hangs on the same grant at the provider: the same person through the same
    /// client, in another organization or for another product. Many providers (Google among them) keep one grant for a
    /// person and a client, and revoking any of its tokens ends all of them.
    pub(super) async fn shares_grant(
        &self,
        provider: &Provider,
        subject: &str,
        except: Option<AccountId>,
    ) -> store::Result<bool> {
        if provider.oauth.revoke_url.is_none() {
            return Ok(false);
        }
        let client = provider.client.as_ref().map(|client| &client.id);
        let siblings: Vec<_> = self
            .parts
            .catalog
            .iter()
            .filter(|other| other.oauth.revoke_url == provider.oauth.revoke_url)
            .filter(|other| other.client.as_ref().map(|client| &client.id) == client)
            .map(|other| other.id.as_str())
            .collect();
        for organization in self.parts.store.organizations().await? {
            for sibling in &siblings {
                let found = self.parts.store.account_by_subject(organization.id, sibling, subject).await?;
                if found.is_some_and(|a| Some(a.id) != except && a.status != Status::Disconnected) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// The loop that works off revocations; ends when stopping begins.
    pub async fn run_revocations(self: Arc<Self>) {
        let stopping = self.parts.shutdown.clone();
        loop {
            // A round that is broken off costs nothing: its jobs come up again, and revoking twice is revoking.
            let tried = tokio::select! {
                biased;
                () = stopping.stopping() => return,
                tried = self.step_revocations() => tried,
            };
            match tried {
                Ok(tried) if tried >= ROUND as usize => continue,
                Ok(_) => {}
                Err(cause) => tracing::error!(%cause, "revocations can't be worked off"),
            }
            tokio::select! {
                () = stopping.stopping() => return,
                () = self.revocations.notified() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    /// One round of it: claims due jobs, tries each once. Answers how many were tried.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn step_revocations(&self) -> anyhow::Result<usize> {
        let now = self.parts.clock.now();
        let jobs = self.parts.store.claim_revocations(ROUND, now, now.after(CLAIM)).await?;
        for worked in join_all(jobs.iter().map(|job| self.work(job))).await {
            worked?;
        }
        Ok(jobs.len())
    }

    async fn work(&self, job: &RevocationRow) -> store::Result<()> {
        let store = &self.parts.store;
        // Asked before each try: the person may have connected again meanwhile, and the grant is that account's now.
        if self.is_shared(&job.provider, &job.subject, job.account).await? {
            return store.finish_revocation(job.id, &self.outcome(job, "shared_grant", None)).await;
        }
        let finished = match self.try_revoking(job).await {
            Ok(true) => self.outcome(job, "ok", None),
            Ok(false) => self.outcome(job, "not_supported", None),
            Err(failure) if job.attempts + 1 >= TRIES => self.outcome(job, "gave_up", Some(&failure.code)),
            Err(failure) => {
                let code = &failure.code;
                tracing::warn!(account.id = %job.account, provider = job.provider, code, "a revocation failed");
                let pause = backoff(job.attempts).max(failure.retry_after.unwrap_or_default());
                let detail = json!({"provider": job.provider, "code": code});
                let first = (job.attempts == 0).then(|| self.job_record(job, "account.revoke_failed", detail));
                let next = self.parts.clock.now().after(pause);
                return store.postpone_revocation(job.id, next, first.as_ref()).await;
            }
        };
        store.finish_revocation(job.id, &finished).await
    }

    async fn try_revoking(&self, job: &RevocationRow) -> Result<bool, Failure> {
        let provider = self.parts.catalog.provider(&job.provider).ok_or_else(|| Failure::of("unknown_provider"))?;
        let token = self.parts.vault.open_text(token_place(&job.id.to_string()), &job.token).map_err(|cause| {
            tracing::error!(account.id = %job.account, %cause, "a token to revoke does not open");
            Failure::of("sealed")
        })?;
        let revoked = self.parts.oauth.revoke(provider, &job.captures, &token, &job.token_kind).await;
        revoked.map_err(|error| match error {
            oauth::Error::Transient { retry_after, .. } => {
                Failure { retry_after, ..Failure::of("provider_unavailable") }
            }
            oauth::Error::Rejected { code, .. }
            | oauth::Error::Misconfigured { code }
            | oauth::Error::Unknown { code } => Failure { code, retry_after: None },
            // An answer about tokens; a revocation has none.
            oauth::Error::Unusable { .. } => Failure::of("provider_unavailable"),
        })
    }

    fn outcome(&self, job: &RevocationRow, outcome: &str, code: Option<&str>) -> AuditRow {
        let detail = json!({"provider": job.provider, "outcome": outcome, "tries": job.attempts + 1, "code": code});
        self.job_record(job, "account.revoked_at_provider", detail)
    }

    fn job_record(&self, job: &RevocationRow, action: &'static str, detail: serde_json::Value) -> AuditRow {
        Record::new(self.parts.clock.now(), job.organization, &Actor::System, action)
            .account(job.account)
            .detail(detail)
            .into_row()
    }
}

/// A try that failed.
struct Failure {
    code: String,
    retry_after: Option<Duration>,
}

impl Failure {
    fn of(code: &str) -> Self {
        Self { code: code.to_owned(), retry_after: None }
    }
}

const fn token_place(job: &str) -> Place<'_> {
    Place { table: "revocations", row: job, column: "token" }
}

/// 1, 3, 9 … minutes, 6 hours at most.
fn backoff(attempts: i64) -> Duration {
    let steps = u32::try_from(attempts.clamp(0, 6)).unwrap_or(6);
    Duration::from_secs(60 * 3u64.pow(steps)).min(Duration::from_secs(6 * 60 * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_six_hours() {
        let minutes: Vec<_> = (0..TRIES).map(|attempts| backoff(attempts).as_secs() / 60).collect();
        assert_eq!(minutes, [1, 3, 9, 27, 81, 243, 360, 360, 360, 360]);
        assert_eq!(backoff(-1), backoff(0));
    }
}
