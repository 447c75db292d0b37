//! Who may do what: keys, grants and targets as one immutable snapshot that decides requests, and the acts that change
//! them. A change counts for the next request on this instance: every act reloads the snapshot before it returns.

mod acts;
mod compile;
mod credential;
mod keys;
mod limits;
mod policy;
mod spread;
mod targets;

pub use acts::{AccessError, KeyChange, NewKey};
pub use keys::AgentKey;
pub use limits::{Limited, NoRoom, Room};
pub use policy::{Agent, Caller, Credential, Fence, Grant, Policy, Reject, Target, TargetKind, Verdict};
pub use spread::Stale;
pub use targets::{NewTarget, TargetChange};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::{RateLimit, SystemTarget};
use crate::store::Store;
use crate::vault::Vault;

/// The access service.
pub struct Access {
    store: Store,
    vault: Arc<Vault>,
    clock: Clock,
    compiler: compile::Compiler,
    system: BTreeMap<String, SystemTarget>,
    policy: ArcSwap<Policy>,
    /// One reload at a time: a later one must never publish an earlier view.
    reload: tokio::sync::Mutex<()>,
    revisions: watch::Sender<i64>,
    freshness: spread::Freshness,
}

impl Access {
    /// Makes the system targets' rows match `system`, and reads the first snapshot.
    ///
    /// # Errors
    /// When a system target can't be used (in words for the operator), or the store fails.
    pub async fn open(
        store: Store,
        vault: Arc<Vault>,
        catalog: &Catalog,
        clock: Clock,
        system: BTreeMap<String, SystemTarget>,
        per_key: Option<RateLimit>,
        max_stale: Duration,
    ) -> anyhow::Result<Arc<Self>> {
        let compiler = compile::Compiler::new(catalog, &system, per_key, clock.clone())?;
        let slugs: Vec<_> = system.iter().map(|(slug, target)| (slug.clone(), target.name.clone())).collect();
        store
            .sync_system_targets(&slugs, clock.now())
            .await
            .context("a [targets] entry of gateway.toml can't be used: an organization has a target of that name")?;
        let access = Self {
            store,
            vault,
            clock,
            compiler,
            system,
            policy: ArcSwap::default(),
            reload: tokio::sync::Mutex::default(),
            revisions: watch::Sender::new(0),
            freshness: spread::Freshness::new(max_stale),
        };
        access.reload().await?;
        Ok(Arc::new(access))
    }

    /// A target of `gateway.toml`.
    #[must_use]
    pub fn system_target(&self, slug: &str) -> Option<&SystemTarget> {
        self.system.get(slug)
    }

    /// Reads everything again and makes it the view of this moment.
    ///
    /// # Errors
    /// When the store fails; the old view stays.
    pub async fn reload(&self) -> anyhow::Result<()> {
        let _one = self.reload.lock().await;
        let rows = self.store.policy().await.context("reading the policy")?;
        let policy = self.compiler.compile(rows, &self.vault, &self.policy.load());
        let revision = policy.revision();
        self.policy.store(Arc::new(policy));
        self.revisions.send_replace(revision);
        Ok(())
    }
}
