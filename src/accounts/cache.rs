//! Access tokens in memory, as ready header values. Reading one takes no lock and no await.
//!
//! ```text
//! account ──▶ shard (immutable map, swapped) ──▶ Slot ──▶ Held::Live { ready credential, soon, dead }
//!                                                     └─▶ Held::Disconnected { reason }
//! ```
//! A slot is filled only from a row that is stored (persist before publish), and forgotten when its account changes hands.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::catalog::{Injection, Ready, Secrets};
use crate::ids::AccountId;
use crate::store::Reason;

/// How long a refresh that an upstream's 401 asked for is trusted, at most.
const DOUBT: Duration = Duration::from_secs(30);

/// What goes into one request: a ready credential and the generation it is of.
#[derive(Clone)]
pub struct Bearer {
    pub(super) ready: Arc<Ready>,
    pub(super) generation: i64,
}

impl Bearer {
    /// The ready credential.
    #[must_use]
    pub fn injection(&self) -> &Injection {
        self.ready.injection()
    }

    /// What of it must not come back in an answer.
    #[must_use]
    pub fn secrets(&self) -> &Secrets {
        self.ready.secrets()
    }
    /// Which token this is; grows with each refresh (0: a static credential, which never changes).
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.generation
    }
}

/// What is known of an account's token. Times are monotonic (`Clock::monotonic`).
pub(super) enum Held {
    /// A token to use.
    Live {
        /// The ready credential.
        bearer: Bearer,
        /// From here on a refresh should run.
        soon: Duration,
        /// From here on it is no good.
        dead: Duration,
    },
    /// There is none until a person reconnects.
    Disconnected {
        /// Why.
        reason: Reason,
    },
}

/// One account's place.
#[derive(Default)]
pub(super) struct Slot {
    held: ArcSwapOption<Held>,
    /// Monotonic ms before which no refresh is tried: the backoff of a provider in trouble.
    retry_at: AtomicU64,
    /// Monotonic ms, to the second, at which a request last wanted the token.
    used_at: AtomicU64,
    trouble: Mutex<Trouble>,
}

/// What went wrong lately.
#[derive(Default, Clone, Copy)]
pub(super) struct Trouble {
    /// Why the last refresh failed, if it did.
    pub(super) reason: Option<Reason>,
    /// The generation that a doubt brought, and until when it is not doubted itself.
    trusted: Option<(i64, Duration)>,
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Slot {
    pub(super) fn held(&self) -> arc_swap::Guard<Option<Arc<Held>>> {
        self.held.load()
    }

    pub(super) fn publish(&self, held: Held) {
        self.held.store(Some(Arc::new(held)));
    }

    /// Notes that a request wants the token. Written once a second at most: the line is shared between cores.
    pub(super) fn used(&self, now: Duration) {
        let now = millis(now);
        if now.saturating_sub(self.used_at.load(Ordering::Relaxed)) >= 1_000 {
            self.used_at.store(now, Ordering::Relaxed);
        }
    }

    /// Whether a refresh may be tried at `now`.
    pub(super) fn may_try(&self, now: Duration) -> bool {
        millis(now) >= self.retry_at.load(Ordering::Relaxed)
    }

    /// How long until one may be tried.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        Duration::from_millis(self.retry_at.load(Ordering::Relaxed).saturating_sub(millis(now)))
    }

    /// Whether the token of `generation` came from a doubt a moment ago.
    pub(super) fn is_trusted(&self, generation: i64, now: Duration) -> bool {
        self.trouble().trusted.is_some_and(|(trusted, until)| trusted == generation && now < until)
    }

    /// Notes that a doubt brought the token of `generation`. A short-lived one is trusted for the first quarter of
    /// what is left of it: servers count in whole seconds, and refuse it up to a second before its end is due here.
    pub(super) fn trust(&self, generation: i64, now: Duration) {
        let left = match self.held().as_deref() {
            Some(Held::Live { dead, .. }) => dead.saturating_sub(now),
            Some(Held::Disconnected { .. }) | None => Duration::ZERO,
        };
        self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner).trusted =
            Some((generation, now + DOUBT.min(left / 4)));
    }

    pub(super) fn trouble(&self) -> Trouble {
        *self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Notes a failure: no further try before `until`.
    pub(super) fn failed(&self, reason: Reason, until: Duration) {
        let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        trouble.reason = Some(reason);
        self.retry_at.store(millis(until), Ordering::Relaxed);
    }

    /// Notes a success.
    pub(super) fn recovered(&self) {
        let mut trouble = self.trouble.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *trouble = Trouble { trusted: trouble.trusted, ..Trouble::default() };
        self.retry_at.store(0, Ordering::Relaxed);
    }
}

const SHARDS: usize = 64;

type Shard = HashMap<AccountId, Arc<Slot>>;

/// Slots by account. A shard's map is copied when an account enters or leaves it, never on reading.
pub(super) struct Cache {
    hasher: RandomState,
    shards: Box<[ArcSwap<Shard>]>,
}

impl Default for Cache {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::default()).collect();
        Self { hasher: RandomState::new(), shards }
    }
}

impl Cache {
    fn shard(&self, id: AccountId) -> &ArcSwap<Shard> {
        &self.shards[(self.hasher.hash_one(id) as usize) % SHARDS]
    }

    /// The account's slot, made empty when there is none.
    pub(super) fn slot(&self, id: AccountId) -> Arc<Slot> {
        let shard = self.shard(id);
        if let Some(slot) = shard.load().get(&id) {
            return Arc::clone(slot);
        }
        let fresh = Arc::new(Slot::default());
        let before = shard.rcu(|map| {
            let mut map = Shard::clone(map);
            map.entry(id).or_insert_with(|| Arc::clone(&fresh));
            map
        });
        // Whoever came first won; `rcu` answers the map that was replaced.
        before.get(&id).cloned().or_else(|| shard.load().get(&id).cloned()).unwrap_or(fresh)
    }

    /// Accounts used since `used` whose token lives and is in its margin for longer than `delay(id, margin)`.
    pub(super) fn in_margin(
        &self,
        now: Duration,
        used: Duration,
        delay: impl Fn(AccountId, Duration) -> Duration,
    ) -> Vec<AccountId> {
        let mut found = Vec::new();
        for shard in &self.shards {
            for (id, slot) in shard.load().iter() {
                if let Some(Held::Live { soon, dead, .. }) = slot.held().as_deref()
                    && now >= *soon + delay(*id, dead.saturating_sub(*soon))
                    && slot.used_at.load(Ordering::Relaxed) >= millis(used)
                {
                    found.push(*id);
                }
            }
        }
        found
    }

    /// Forgets an account of which something else is known than whether it is `disconnected`.
    pub(super) fn correct(&self, id: AccountId, disconnected: bool) {
        let wrong = |slot: &Arc<Slot>| match slot.held().as_deref() {
            Some(Held::Live { .. }) => disconnected,
            Some(Held::Disconnected { .. }) => !disconnected,
            None => false,
        };
        if self.shard(id).load().get(&id).is_some_and(wrong) {
            self.forget(id);
        }
    }

    /// Forgets what is known of an account: the next request reads its row. Requests that hold the old slot finish with
    /// what they have.
    pub(super) fn forget(&self, id: AccountId) {
        self.shard(id).rcu(|map| {
            let mut map = Shard::clone(map);
            map.remove(&id);
            map
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slot_per_account_until_it_is_forgotten() {
        let cache = Cache::default();
        let id = AccountId::new();
        let slot = cache.slot(id);
        assert!(Arc::ptr_eq(&slot, &cache.slot(id)));
        assert!(!Arc::ptr_eq(&slot, &cache.slot(AccountId::new())));
        cache.forget(id);
        assert!(!Arc::ptr_eq(&slot, &cache.slot(id)));
    }

    #[test]
    fn a_token_that_a_doubt_brought_is_trusted_for_a_moment() {
        let slot = Slot::default();
        let ready = Arc::new(Ready::new(Injection::Headers(Vec::new())));
        for (life, trusted) in [(4, 1), (3_600, 30)] {
            let seconds = Duration::from_secs;
            let bearer = Bearer { ready: Arc::clone(&ready), generation: 7 };
            slot.publish(Held::Live { bearer, soon: seconds(life), dead: seconds(life) });
            slot.trust(7, Duration::ZERO);
            assert!(slot.is_trusted(7, seconds(trusted) - Duration::from_millis(1)));
            assert!(!slot.is_trusted(7, seconds(trusted)) && !slot.is_trusted(8, Duration::ZERO));
        }
    }

    #[test]
    fn failures_hold_tries_back_until_a_success() {
        let slot = Slot::default();
        assert!(slot.may_try(Duration::ZERO));
        slot.failed(Reason::ProviderUnavailable, Duration::from_secs(2));
        assert!(!slot.may_try(Duration::from_secs(1)));
        assert_eq!(slot.wait(Duration::from_secs(1)), Duration::from_secs(1));
        assert!(slot.may_try(Duration::from_secs(2)));
        slot.recovered();
        assert!(slot.may_try(Duration::ZERO) && slot.trouble().reason.is_none());
    }
}
