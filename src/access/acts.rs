//! The acts that change keys and grants. Each writes its change and its audit record in one transaction, then reloads
//! the snapshot: the change counts for the next request.

use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;

use crate::audit::{Actor, Record};
use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::{KeyId, OrgId};
use crate::store::{self, GrantAccess, GrantRow, KeyRow};

use super::{Access, AgentKey};

/// The longest name, in characters.
const NAME: usize = 200;
/// The longest grace of a rotation.
const GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why an act did not happen.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No such key.
    #[error("there is no such key")]
    KeyNotFound,
    /// No such target.
    #[error("there is no such target")]
    TargetNotFound,
    /// The slug is taken.
    #[error("`{0}` already exists")]
    AlreadyExists(String),
    /// Managed and system targets can't be changed.
    #[error("this target is managed")]
    ManagedTarget,
    /// A value can't be accepted; says which and why.
    #[error("{0}")]
    BadRequest(String),
    /// Our side failed.
    #[error(transparent)]
    Internal(#[from] anyhow::Error),
}

impl From<store::Error> for AccessError {
    fn from(error: store::Error) -> Self {
        Self::Internal(error.into())
    }
}

/// A key to be made.
pub struct NewKey {
    /// For people, 1 to 200 characters.
    pub name: String,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// Addresses it may come from; empty: any.
    pub allowed_ips: Vec<IpNet>,
    /// Its own limits; `None`: what `gateway.toml` says.
    pub rate_limit: Option<RateLimit>,
}

/// Changes to a key; `None` leaves a field.
#[derive(Default)]
pub struct KeyChange {
    /// New name.
    pub name: Option<String>,
    /// New expiry (`Some(None)`: never).
    pub expires_at: Option<Option<Timestamp>>,
    /// New addresses.
    pub allowed_ips: Option<Vec<IpNet>>,
    /// New limits (`Some(None)`: what `gateway.toml` says).
    pub rate_limit: Option<Option<RateLimit>>,
}

/// A name for people: trimmed, 1 to 200 characters, no control characters.
pub(super) fn checked_name(name: &str) -> Result<String, AccessError> {
    let name = name.trim();
    if name.is_empty() || name.chars().count() > NAME || name.chars().any(char::is_control) {
        return Err(AccessError::BadRequest(format!("name: 1 to {NAME} characters, no control characters")));
    }
    Ok(name.to_owned())
}

impl Access {
    pub(super) fn record(&self, org: OrgId, actor: &Actor, action: &'static str) -> Record {
        Record::new(self.clock.now(), org, actor, action)
    }

    async fn key(&self, org: OrgId, id: KeyId) -> Result<KeyRow, AccessError> {
        self.store.key(org, id).await?.ok_or(AccessError::KeyNotFound)
    }

    /// A key that was not revoked: what changes may be made to.
    async fn live_key(&self, org: OrgId, id: KeyId) -> Result<KeyRow, AccessError> {
        let key = self.key(org, id).await?;
        if key.revoked_at.is_some() {
            return Err(AccessError::BadRequest("this key was revoked; make a new one".to_owned()));
        }
        Ok(key)
    }

    async fn save_key(&self, key: &KeyRow, record: Record) -> Result<(), AccessError> {
        let record = record.key(key.id).detail(json!({"name": key.name})).into_row();
        match self.store.update_key(key, &record).await {
            Err(store::Error::NotFound) => return Err(AccessError::KeyNotFound),
            other => other?,
        }
        Ok(self.reload().await?)
    }

    fn checked_expiry(&self, expires_at: Option<Timestamp>) -> Result<Option<Timestamp>, AccessError> {
        match expires_at {
            Some(end) if end <= self.clock.now() => {
                Err(AccessError::BadRequest("expires_at: must be in the future".to_owned()))
            }
            other => Ok(other),
        }
    }

    /// Makes a key; the answer holds it in clear, once.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn create_key(&self, org: OrgId, new: NewKey, actor: &Actor) -> Result<(KeyRow, AgentKey), AccessError> {
        let secret = AgentKey::generate();
        let key = KeyRow {
            id: KeyId::new(),
            organization: org,
            name: checked_name(&new.name)?,
            hash: secret.hash(),
            prefix: secret.prefix(),
            expires_at: self.checked_expiry(new.expires_at)?,
            allowed_ips: new.allowed_ips,
            rate_limit: new.rate_limit,
            previous: None,
            created_at: self.clock.now(),
            last_used_at: None,
            revoked_at: None,
        };
        let record = self.record(org, actor, "key.created").key(key.id).detail(json!({"name": key.name}));
        self.store.insert_key(&key, &record.into_row()).await?;
        self.reload().await?;
        Ok((key, secret))
    }

    /// Changes a key.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn update_key(
        &self,
        org: OrgId,
        id: KeyId,
        change: KeyChange,
        actor: &Actor,
    ) -> Result<KeyRow, AccessError> {
        let mut key = self.live_key(org, id).await?;
        if let Some(name) = change.name {
            key.name = checked_name(&name)?;
        }
        if let Some(expires_at) = change.expires_at {
            key.expires_at = self.checked_expiry(expires_at)?;
        }
        if let Some(allowed_ips) = change.allowed_ips {
            key.allowed_ips = allowed_ips;
        }
        if let Some(rate_limit) = change.rate_limit {
            key.rate_limit = rate_limit;
        }
        self.save_key(&key, self.record(org, actor, "key.updated")).await?;
        Ok(key)
    }

    /// Revokes a key: the next request with it is refused. Revoking twice is fine.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn revoke_key(&self, org: OrgId, id: KeyId, actor: &Actor) -> Result<KeyRow, AccessError> {
        let mut key = self.key(org, id).await?;
        if key.revoked_at.is_none() {
            key.revoked_at = Some(self.clock.now());
            key.previous = None;
            self.save_key(&key, self.record(org, actor, "key.revoked")).await?;
        }
        Ok(key)
    }

    /// Gives the key a new secret; the old one counts for `grace` longer (30 days at most).
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn rotate_key(
        &self,
        org: OrgId,
        id: KeyId,
        grace: Duration,
        actor: &Actor,
    ) -> Result<(KeyRow, AgentKey), AccessError> {
        if grace > GRACE {
            return Err(AccessError::BadRequest("grace: 30 days at most".to_owned()));
        }
        let mut key = self.live_key(org, id).await?;
        let secret = AgentKey::generate();
        key.previous = (!grace.is_zero()).then(|| (key.hash, self.clock.now().after(grace)));
        key.hash = secret.hash();
        key.prefix = secret.prefix();
        self.save_key(&key, self.record(org, actor, "key.rotated")).await?;
        Ok((key, secret))
    }

    /// Makes or changes a grant.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn put_grant(
        &self,
        org: OrgId,
        key: KeyId,
        slug: &str,
        access: GrantAccess,
        actor: &Actor,
    ) -> Result<GrantRow, AccessError> {
        self.live_key(org, key).await?;
        let target = self.store.target(org, slug).await?.ok_or(AccessError::TargetNotFound)?;
        let grant = GrantRow { key, target: target.id, slug: target.slug, access, created_at: self.clock.now() };
        let record =
            self.record(org, actor, "grant.set").key(key).target(&grant.slug).detail(json!({"access": access}));
        match self.store.put_grant(org, &grant, &record.into_row()).await {
            // The key or the target went away between reading and writing.
            Err(store::Error::NotFound) => return Err(AccessError::TargetNotFound),
            other => other?,
        }
        self.reload().await?;
        Ok(grant)
    }

    /// Takes a grant away.
    ///
    /// # Errors
    /// [`AccessError::TargetNotFound`] when there was none.
    pub async fn delete_grant(&self, org: OrgId, key: KeyId, slug: &str, actor: &Actor) -> Result<(), AccessError> {
        self.key(org, key).await?;
        let target = self.store.target(org, slug).await?.ok_or(AccessError::TargetNotFound)?;
        let record = self.record(org, actor, "grant.removed").key(key).target(slug).into_row();
        if !self.store.delete_grant(org, key, target.id, &record).await? {
            return Err(AccessError::TargetNotFound);
        }
        Ok(self.reload().await?)
    }
}
