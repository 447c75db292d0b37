//! The catalog: what Keyward knows about providers, as data. One TOML file a provider, embedded in the binary;
//! `gateway.toml` may override fields or add providers with the same keys. A plain provider takes no Rust.
//!
//! Not here: anything that talks to a provider (that is `oauth` and `proxy`), anything stored (that is `store`).

mod capability;
mod check;
mod embedded;
mod inject;
mod keys;
mod load;
mod names;
mod pattern;
mod provider;
mod secrets;
mod target;
mod template;
#[cfg(test)]
mod tests;

pub use inject::{Inject, InjectError, InjectPlace};
pub use load::CatalogError;
pub use pattern::{Pattern, PatternError, Patterns};
pub use provider::{
    Capability, Captured, ClientAuth, ClientCredentials, FillError, Identity, Input, OAuth, OAuthFields, Pkce, Preset,
    Provider, Rotation,
};
pub use secrets::{Ready, Secrets};
pub use target::{Base, BaseError, Injection};

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::Env;

/// Every provider, by id.
#[derive(Debug)]
pub struct Catalog {
    providers: BTreeMap<String, Arc<Provider>>,
}

impl Catalog {
    /// The embedded providers with `overrides` (the `[providers]` table of `gateway.toml`) merged in, everything checked,
    /// and each provider's client credentials taken from the environment.
    ///
    /// # Errors
    /// All mistakes found, each naming its file (or `gateway.toml`) and key.
    pub fn load(overrides: &toml::Table, env: &Env) -> Result<Self, Vec<CatalogError>> {
        load::load(overrides, env).map(|providers| Self { providers })
    }

    /// One provider.
    #[must_use]
    pub fn provider(&self, id: &str) -> Option<&Arc<Provider>> {
        self.providers.get(id)
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.providers.values()
    }
}
