//! The loops that run beside requests. Started here and nowhere else; each ends when stopping begins.

use std::sync::Arc;
use std::time::Duration;

use crate::access::Access;
use crate::accounts::Accounts;
use crate::clock::Clock;
use crate::config::Config;
use crate::shutdown::Shutdown;
use crate::store::Store;

/// Between two rounds of tidying up.
const TIDY: Duration = Duration::from_secs(60);

pub(super) fn start(
    shutdown: &Shutdown,
    access: &Arc<Access>,
    accounts: &Arc<Accounts>,
    store: &Store,
    clock: &Clock,
    config: &Config,
) {
    shutdown.spawn(Arc::clone(access).run_spread(shutdown.clone()));
    shutdown.spawn(Arc::clone(accounts).run_watch());
    shutdown.spawn(Arc::clone(accounts).run_keeper());
    shutdown.spawn(Arc::clone(accounts).run_revocations());
    let (store, clock, stop, keep) = (store.clone(), clock.clone(), shutdown.clone(), config.audit.retention);
    shutdown.spawn(async move {
        loop {
            tokio::select! {
                () = tokio::time::sleep(TIDY) => {}
                () = stop.stopping() => return,
            }
            if let Err(cause) = tidy(&store, &clock, keep).await {
                tracing::warn!(%cause, "tidying up failed; it is tried again");
            }
        }
    });
}

/// Deletes what is over: connect flows, sessions, old audit records.
async fn tidy(store: &Store, clock: &Clock, keep: Duration) -> Result<(), crate::store::Error> {
    let now = clock.now();
    store.prune_flows(now).await?;
    store.prune_sessions(now).await?;
    store.prune_audit(now.before(keep)).await?;
    Ok(())
}
