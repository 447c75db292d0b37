//! What another instance did to an account: when the policy moves, an account that was disconnected here may have been
//! connected again there, so what is known of such accounts is forgotten.

use std::sync::Arc;

use super::Accounts;

impl Accounts {
    /// The loop; ends when stopping begins.
    pub async fn run_watch(self: Arc<Self>) {
        let mut revisions = self.parts.access.revisions();
        loop {
            tokio::select! {
                moved = revisions.changed() => if moved.is_err() { return },
                () = self.parts.shutdown.stopping() => return,
            }
            self.cache.forget_disconnected();
        }
    }
}
