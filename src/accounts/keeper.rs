//! The loop that keeps tokens good without anybody asking: refreshes that a crash left unresolved are resolved, accounts in
//! use are refreshed ahead of time, troubled ones are tried again, idle ones often enough that their refresh token does not
//! lapse, and people are told before a refresh token itself ends.
//!
//! What an agent waits for comes first: the keeper has half of each provider's calls at most. Accounts that were connected
//! together are spread by their id, so that they do not come due together for ever.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use serde_json::json;

use crate::audit::{Actor, Record};
use crate::ids::AccountId;
use crate::store::ENDING;

use super::Accounts;
use super::flight::Why;

/// Between two looks at what is due in memory.
const SOON: Duration = Duration::from_secs(2);
/// Between two looks through the store.
const LATER: Duration = Duration::from_secs(60);
/// An account is in use when a request wanted its token within this time.
const IN_USE: Duration = Duration::from_secs(3600);
/// An idle account's refresh token is used this long after its access token ended…
const IDLE: Duration = Duration::from_secs(20 * 3600);
/// …and this much later at most, by the account's id.
const IDLE_SPREAD: Duration = Duration::from_secs(4 * 3600);
/// Accounts of one round.
const ROUND: u32 = 200;

/// What a round did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Accounts whose refresh was begun (or joined) and ended, one way or the other.
    pub refreshed: usize,
    /// People who were told that a refresh token ends soon.
    pub warned: usize,
}

/// A share of `span` that an account always gets.
fn share(id: AccountId, span: Duration) -> Duration {
    let text = id.to_string();
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    span.mul_f64((hash >> 11) as f64 / (1u64 << 53) as f64)
}

impl Accounts {
    /// The loop; ends when stopping begins. The first round is at once: it finds what a crash left behind.
    pub async fn run_keeper(self: Arc<Self>) {
        let mut until_later = Duration::ZERO;
        loop {
            self.step_due().await;
            if until_later.is_zero() {
                self.step_store().await;
                until_later = LATER;
            }
            until_later = until_later.saturating_sub(SOON);
            tokio::select! {
                () = tokio::time::sleep(SOON) => {}
                () = self.parts.shutdown.stopping() => return,
            }
        }
    }

    /// One look at what is due now: unresolved refreshes, and accounts in use whose token is in its margin.
    pub async fn step_due(self: &Arc<Self>) -> Kept {
        let mut due: Vec<_> = match self.parts.store.unresolved_refreshes(ROUND).await {
            Ok(ids) => ids.into_iter().map(|id| (id, Why::Unresolved)).collect(),
            Err(cause) => {
                tracing::warn!(%cause, "unresolved refreshes can't be looked for");
                Vec::new()
            }
        };
        let now = self.parts.clock.monotonic();
        due.extend(
            self.cache
                .in_margin(now, now.saturating_sub(IN_USE), |id, margin| share(id, margin / 2))
                .into_iter()
                .map(|id| (id, Why::Soon)),
        );
        Kept { refreshed: self.refresh_all(due).await, warned: 0 }
    }

    /// One look through the store: troubled accounts, idle ones, and refresh tokens that end soon.
    pub async fn step_store(self: &Arc<Self>) -> Kept {
        match self.try_step_store().await {
            Ok(kept) => kept,
            Err(cause) => {
                tracing::warn!(%cause, "accounts can't be looked through; it is tried again");
                Kept::default()
            }
        }
    }

    async fn try_step_store(self: &Arc<Self>) -> Result<Kept, crate::store::Error> {
        let store = &self.parts.store;
        let (now, today) = (store.now().await?, self.parts.clock.now());
        let mut due: Vec<_> = store.degraded_accounts(ROUND).await?.into_iter().map(|id| (id, Why::Troubled)).collect();
        let idle = store.idle_accounts(now.before(IDLE), ROUND).await?;
        due.extend(
            idle.into_iter()
                .filter(|(id, ended)| now.since(*ended) >= IDLE + share(*id, IDLE_SPREAD))
                .map(|(id, _)| (id, Why::Dead)),
        );
        let mut warned = 0;
        for (id, org, ends) in store.ending_refresh_tokens(now.after(ENDING), ROUND).await? {
            let record = Record::new(today, org, &Actor::System, "account.reconnect_soon").account(id);
            let record = record.detail(json!({"refresh_expires_at": ends})).into_row();
            warned += usize::from(store.mark_reconnect_soon(id, now, &record).await?);
        }
        Ok(Kept { refreshed: self.refresh_all(due).await, warned })
    }

    /// Refreshes these, a few at a time, so that agents find free calls.
    async fn refresh_all(self: &Arc<Self>, due: Vec<(AccountId, Why)>) -> usize {
        let at_once = (self.parts.config.per_provider / 2).max(1);
        let now = self.parts.clock.monotonic();
        stream::iter(due)
            .map(|(id, why)| (id, self.cache.slot(id), why))
            .filter(|(_, slot, _)| std::future::ready(slot.may_try(now)))
            .map(|(id, slot, why)| async move {
                let (mut flight, _) = self.join(id, &slot, why);
                let _ = flight.wait_for(Option::is_some).await;
            })
            .buffer_unordered(at_once)
            .count()
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_and_stay() {
        let span = Duration::from_secs(1_000);
        let ids: Vec<_> = (0..1_000).map(|_| AccountId::new()).collect();
        let early = ids.iter().filter(|id| share(**id, span) < span / 2).count();
        assert!((350..650).contains(&early), "{early}");
        assert!(ids.iter().all(|id| share(*id, span) < span && share(*id, span) == share(*id, span)));
    }
}
