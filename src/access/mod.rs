//! Who may do what: keys, grants and targets as one immutable snapshot that decides requests, and the acts that change
//! them. A change counts for the next request on this instance: every act reloads the snapshot before it returns.

mod acts;
mod keys;
mod policy;

pub use acts::{AccessError, KeyChange, NewKey, NewTarget, TargetChange};
pub use keys::{AgentKey, KeyError};
pub use policy::{Agent, Credential, Grant, Policy, Reject, Target, TargetKind, Verdict};

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::SystemTarget;
use crate::store::Store;
use crate::vault::Vault;

/// The access service.
pub struct Access {
    store: Store,
    vault: Arc<Vault>,
    catalog: Arc<Catalog>,
    clock: Clock,
    system: BTreeMap<String, SystemTarget>,
    policy: ArcSwap<Policy>,
    reload: tokio::sync::Mutex<()>,
}

impl Access {
    /// The view of this moment. One load; hold it for one request and no longer.
    #[must_use]
    pub fn snapshot(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// What `gateway.toml` says of a system target.
    #[must_use]
    pub fn system_target(&self, slug: &str) -> Option<&SystemTarget> {
        self.system.get(slug)
    }
}
