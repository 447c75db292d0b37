//! Everything that decides a request, read in one consistent snapshot.

use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::ids::{AccountId, KeyId, OrgId, TargetId};

use super::{Captures, GrantAccess, Result, Store, TargetRow};

/// A usable (not revoked) key.
pub struct PolicyKey {
    /// Id.
    pub id: KeyId,
    /// Organization.
    pub organization: OrgId,
    /// For people.
    pub name: String,
    /// SHA-256 of the key.
    pub hash: [u8; 32],
    /// Refused from then on.
    pub expires_at: Option<Timestamp>,
    /// Addresses it may come from; empty: any.
    pub allowed_ips: Vec<IpNet>,
    /// The key before the last rotation, and until when it counts.
    pub previous: Option<([u8; 32], Timestamp)>,
}

/// A target.
pub type PolicyTarget = TargetRow;

/// A grant.
pub struct PolicyGrant {
    /// Key.
    pub key: KeyId,
    /// Target.
    pub target: TargetId,
    /// Access.
    pub access: GrantAccess,
}

/// What a managed target needs to know of its account.
pub struct PolicyAccount {
    /// Id.
    pub id: AccountId,
    /// Provider id.
    pub provider: String,
    /// Inputs and captured values.
    pub captures: Captures,
}

/// The snapshot.
pub struct PolicyRows {
    /// Grows with every change of the rest.
    pub revision: i64,
    /// Keys.
    pub keys: Vec<PolicyKey>,
    /// Targets.
    pub targets: Vec<PolicyTarget>,
    /// Grants.
    pub grants: Vec<PolicyGrant>,
    /// Accounts.
    pub accounts: Vec<PolicyAccount>,
}

impl Store {
    /// Reads it all, in one read transaction.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn policy(&self) -> Result<PolicyRows> {
        todo!()
    }
    /// The revision alone.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn revision(&self) -> Result<i64> {
        todo!()
    }
}
