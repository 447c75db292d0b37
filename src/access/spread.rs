//! Learning what other instances changed: a look at the policy's revision at every hint, twice a second in any case. When
//! the store can't be asked for too long, nobody is let in: a revoked key must not work for ever because a database is
//! down.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::Guard;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::shutdown::Shutdown;

use super::{Access, Policy};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// The view is older than `store.max_stale`: nothing may be decided on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keys and grants could not be read for too long")]
pub struct Stale;

/// When the view was last known to be the newest. Real monotonic time, also under a held clock: it measures a database.
pub(super) struct Freshness {
    clock: Clock,
    seen_ms: AtomicU64,
    max_stale: Duration,
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Freshness {
    pub(super) fn new(max_stale: Duration) -> Self {
        let clock = Clock::system();
        let seen_ms = AtomicU64::new(millis(clock.monotonic()));
        Self { clock, seen_ms, max_stale }
    }

    fn renew(&self) {
        self.seen_ms.store(millis(self.clock.monotonic()), Ordering::Relaxed);
    }

    fn is_stale(&self) -> bool {
        let seen = Duration::from_millis(self.seen_ms.load(Ordering::Relaxed));
        self.clock.monotonic().saturating_sub(seen) > self.max_stale
    }
}

impl Access {
    /// The view of this moment. One load; hold it for one request and no longer.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn snapshot(&self) -> Result<Guard<Arc<Policy>>, Stale> {
        if self.freshness.is_stale() { Err(Stale) } else { Ok(self.policy.load()) }
    }

    /// Tells the revision of each new view.
    #[must_use]
    pub fn revisions(&self) -> watch::Receiver<i64> {
        self.revisions.subscribe()
    }

    /// The loop; ends when stopping begins.
    pub async fn run_spread(self: Arc<Self>, shutdown: Shutdown) {
        let mut changes = self.store.changes();
        loop {
            tokio::select! {
                () = changes.next(LOOK) => {}
                () = shutdown.stopping() => return,
            }
            self.step_spread().await;
        }
    }

    /// One look: reads the policy again when its revision moved. `false`: the store did not answer.
    pub async fn step_spread(&self) -> bool {
        let looked = match self.store.revision().await {
            Ok(revision) if revision == self.policy.load().revision() => Ok(()),
            Ok(_) => self.reload().await,
            Err(cause) => Err(cause.into()),
        };
        match looked {
            Ok(()) => {
                if self.freshness.is_stale() {
                    tracing::info!("keys and grants can be read again");
                }
                self.freshness.renew();
                true
            }
            Err(cause) => {
                tracing::warn!(%cause, "keys and grants can't be read; the last view counts for a while");
                false
            }
        }
    }
}
