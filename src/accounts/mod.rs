//! Connected accounts: fresh tokens for grants, and the account's life from connect to disconnect.
//!
//! A token is given for a [`Grant`](crate::access::Grant), never for an id: only a verdict makes a grant. The hot path is
//! `cache.rs`; the one place that may spend a refresh token is `refresh.rs`. No HTML and no HTTP status in here.

mod cache;
mod connect;
mod disconnect;
mod finish;
mod flight;
mod keeper;
mod managed;
mod outcome;
mod publish;
mod refresh;
mod scopes;
mod spill;
mod token;
mod validate;
mod view;
mod watch;

pub use cache::Bearer;
pub use connect::{Begin, Begun, Callback, ConnectError, Connected, Opened, Proof};
pub use disconnect::DisconnectError;
pub use keeper::Kept;
pub use token::TokenError;
pub use validate::{RefreshError, Validation};
pub use view::AccountView;

use std::path::PathBuf;
use std::sync::Arc;

use crate::access::Access;
use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::clock::{Clock, Timestamp};
use crate::config::Refresh;
use crate::ids::InstanceId;
use crate::oauth::OAuthClient;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::telemetry::Metrics;
use crate::vault::Vault;

/// What the accounts service works with.
pub struct Parts {
    /// Records.
    pub store: Store,
    /// Seals and opens tokens.
    pub vault: Arc<Vault>,
    /// Providers.
    pub catalog: Arc<Catalog>,
    /// Calls to providers.
    pub oauth: OAuthClient,
    /// The audit trail.
    pub audit: Audit,
    /// Reloaded when targets come and go.
    pub access: Arc<Access>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Wall time.
    pub clock: Clock,
    /// This process, as the owner of leases.
    pub instance: InstanceId,
    /// Where tasks run.
    pub shutdown: Shutdown,
    /// Where tokens wait that could not be stored before the end.
    pub spill: PathBuf,
    /// `[refresh]`.
    pub config: Refresh,
    /// The admin listener's public URL without a trailing slash: redirect URIs and reconnect links start with it.
    pub public_url: String,
}

/// The accounts service.
pub struct Accounts {
    parts: Parts,
    cache: cache::Cache,
    flights: flight::Flights,
    /// When this process began, by the database's clock: provider settings were read then.
    started: Timestamp,
    /// Wakes the loop that works off revocations.
    revocations: tokio::sync::Notify,
}

impl Accounts {
    /// A service over these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Self {
            started: parts.store.time(),
            parts,
            cache: cache::Cache::default(),
            flights: flight::Flights::default(),
            revocations: tokio::sync::Notify::new(),
        })
    }
}
