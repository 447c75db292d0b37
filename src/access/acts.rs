//! The acts that change access: keys, grants, static targets. Each writes its change and its audit record in one
//! transaction, then reloads the snapshot.

use ipnet::IpNet;

use crate::audit::Actor;
use crate::clock::Timestamp;
use crate::config::StaticCredential;
use crate::ids::{KeyId, OrgId};
use crate::store::{GrantAccess, GrantRow, KeyRow, TargetRow};

use super::{Access, AgentKey};

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

/// A key to be made.
pub struct NewKey {
    /// For people, 1 to 200 characters.
    pub name: String,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// Addresses it may come from; empty: any.
    pub allowed_ips: Vec<IpNet>,
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
}

/// A static target to be made.
pub struct NewTarget {
    /// `[a-z0-9-]{1,96}`.
    pub slug: String,
    /// For people.
    pub name: String,
    /// Base URL.
    pub base_url: String,
    /// Credential.
    pub credential: StaticCredential,
    /// Patterns; empty: `/**`.
    pub fence: Vec<String>,
}

/// Changes to a static target; `None` leaves a field.
#[derive(Default)]
pub struct TargetChange {
    /// New name.
    pub name: Option<String>,
    /// New base URL; needs the credential again (a stored secret is never sent somewhere new unseen).
    pub base_url: Option<String>,
    /// New credential.
    pub credential: Option<StaticCredential>,
    /// New fence.
    pub fence: Option<Vec<String>>,
}

impl Access {
    /// Makes a key; the answer holds it in clear, once.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn create_key(
        &self,
        _org: OrgId,
        _new: NewKey,
        _actor: &Actor,
    ) -> Result<(KeyRow, AgentKey), AccessError> {
        todo!()
    }
    /// Changes a key.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn update_key(
        &self,
        _org: OrgId,
        _id: KeyId,
        _change: KeyChange,
        _actor: &Actor,
    ) -> Result<KeyRow, AccessError> {
        todo!()
    }
    /// Revokes a key: the next request with it is refused. Revoking twice is fine.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn revoke_key(&self, _org: OrgId, _id: KeyId, _actor: &Actor) -> Result<KeyRow, AccessError> {
        todo!()
    }
    /// Gives the key a new secret; the old one counts for `grace` longer.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn rotate_key(
        &self,
        _org: OrgId,
        _id: KeyId,
        _grace: std::time::Duration,
        _actor: &Actor,
    ) -> Result<(KeyRow, AgentKey), AccessError> {
        todo!()
    }
    /// Makes or changes a grant.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn put_grant(
        &self,
        _org: OrgId,
        _key: KeyId,
        _slug: &str,
        _access: GrantAccess,
        _actor: &Actor,
    ) -> Result<GrantRow, AccessError> {
        todo!()
    }
    /// Takes a grant away.
    ///
    /// # Errors
    /// [`AccessError::TargetNotFound`] when there was none.
    pub async fn delete_grant(&self, _org: OrgId, _key: KeyId, _slug: &str, _actor: &Actor) -> Result<(), AccessError> {
        todo!()
    }
    /// Makes a static target.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn create_target(&self, _org: OrgId, _new: NewTarget, _actor: &Actor) -> Result<TargetRow, AccessError> {
        todo!()
    }
    /// Changes a static target.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn update_target(
        &self,
        _org: OrgId,
        _slug: &str,
        _change: TargetChange,
        _actor: &Actor,
    ) -> Result<TargetRow, AccessError> {
        todo!()
    }
    /// Deletes a static target and its grants.
    ///
    /// # Errors
    /// [`AccessError`].
    pub async fn delete_target(&self, _org: OrgId, _slug: &str, _actor: &Actor) -> Result<(), AccessError> {
        todo!()
    }
}
