//! What other instances did to accounts: one that was disconnected there is refused here as well, one that came back is
//! used again. Accounts whose standing changed are looked for twice a second, and when the policy moves.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;

use super::Accounts;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How far back a look goes behind the last: a change may be seen this long after its time was taken.
const OVERLAP: Duration = Duration::from_secs(30);

impl Accounts {
    /// The loop; ends when stopping begins.
    pub async fn run_watch(self: Arc<Self>) {
        let mut revisions = self.parts.access.revisions();
        let mut since = self.started.before(OVERLAP);
        loop {
            tokio::select! {
                moved = revisions.changed() => if moved.is_err() { return },
                () = tokio::time::sleep(LOOK) => {}
                () = self.parts.shutdown.stopping() => return,
            }
            match self.step_watch(since).await {
                Ok(seen) => since = seen.before(OVERLAP),
                Err(cause) => {
                    tracing::warn!(%cause, "it can't be seen what became of accounts elsewhere; it is tried again")
                }
            }
        }
    }

    /// One look at the changes since then. Answers when it was made.
    async fn step_watch(&self, since: Timestamp) -> crate::store::Result<Timestamp> {
        let now = self.parts.store.now().await?;
        for (id, disconnected) in self.parts.store.standings(since).await? {
            self.cache.correct(id, disconnected);
        }
        Ok(now)
    }
}
