//! Agent keys and grants. Each change bumps the policy revision in its own transaction.

use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::ids::{KeyId, OrgId, TargetId};

use super::{AuditRow, Page, Paged, Result, Store};

/// One agent key; the key itself is nowhere.
#[derive(Debug, Clone)]
pub struct KeyRow {
    /// Id.
    pub id: KeyId,
    /// Organization.
    pub organization: OrgId,
    /// For people.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// The key's first characters (`kw_Ab3x…`), to recognise it by.
    pub prefix: String,
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// Addresses it may come from; empty: any.
    pub allowed_ips: Vec<IpNet>,
    /// SHA-256 of the key before the last rotation, and until when it counts.
    pub previous: Option<([u8; 32], Timestamp)>,
    /// Made at.
    pub created_at: Timestamp,
    /// Last seen, to the minute.
    pub last_used_at: Option<Timestamp>,
    /// Revoked at.
    pub revoked_at: Option<Timestamp>,
}

/// How much a grant allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GrantAccess {
    /// Reading.
    Read,
    /// Reading and writing.
    Write,
}

/// One grant.
#[derive(Debug, Clone)]
pub struct GrantRow {
    /// Key.
    pub key: KeyId,
    /// Target.
    pub target: TargetId,
    /// The target's slug (also of system targets).
    pub slug: String,
    /// Access.
    pub access: GrantAccess,
    /// Made or changed at.
    pub created_at: Timestamp,
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn insert_key(&self, _key: &KeyRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Keys of an organization, revoked ones too.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn keys(&self, _org: OrgId, _page: &Page) -> Result<Paged<KeyRow>> {
        todo!()
    }
    /// One key.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn key(&self, _org: OrgId, _id: KeyId) -> Result<Option<KeyRow>> {
        todo!()
    }
    /// Saves name, expiry, addresses, hash, prefix, previous and `revoked_at` of a key.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn update_key(&self, _key: &KeyRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Notes when keys were last used.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn touch_keys(&self, _used: &[(KeyId, Timestamp)]) -> Result<()> {
        todo!()
    }
    /// Grants of a key, by slug.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn grants_of_key(&self, _org: OrgId, _key: KeyId) -> Result<Vec<GrantRow>> {
        todo!()
    }
    /// Makes or changes a grant. Key and target must be of the organization (system targets are rows too, of no one).
    ///
    /// # Errors
    /// [`super::Error::NotFound`] when key or target is not there.
    pub async fn put_grant(&self, _org: OrgId, _grant: &GrantRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Takes a grant away. `false` when there was none.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_grant(&self, _org: OrgId, _key: KeyId, _target: TargetId, _record: &AuditRow) -> Result<bool> {
        todo!()
    }
}
