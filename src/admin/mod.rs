//! The people's listener: the REST API, signing in, the OAuth callbacks, health and metrics. A handler takes typed
//! input, calls one service method, and turns the result into a reply. Pages are `dashboard`'s.

pub mod auth;
pub mod error;
pub mod flow;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::access::Access;
use crate::accounts::Accounts;
use crate::audit::Audit;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::store::Store;
use crate::telemetry::Metrics;

/// What handlers and pages work with.
pub struct AdminParts {
    /// Records.
    pub store: Store,
    /// Keys, grants, targets.
    pub access: Arc<Access>,
    /// Accounts.
    pub accounts: Arc<Accounts>,
    /// Providers.
    pub catalog: Arc<Catalog>,
    /// The audit trail.
    pub audit: Audit,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Wall time.
    pub clock: Clock,
    /// This listener as people reach it, without a trailing slash: `http://127.0.0.1:8081`.
    pub public_url: String,
    /// The agent listener as agents reach it, without a trailing slash.
    pub proxy_url: String,
    /// SHA-256 of the admin token.
    pub token_hash: [u8; 32],
    /// Whether `/readyz` says yes.
    pub ready: Arc<AtomicBool>,
}

/// Shared by all handlers.
pub type AdminState = Arc<AdminParts>;
