//! Targets: managed rows of accounts, static rows with a sealed credential, and system rows that stand for
//! `gateway.toml`'s `[targets.<slug>]` so that grants can point at them.

use crate::clock::Timestamp;
use crate::ids::{AccountId, OrgId, TargetId};
use crate::vault::Sealed;

use super::{AuditRow, Page, Paged, Result, Store};

/// What a target is.
#[derive(Clone)]
pub enum TargetKind {
    /// Made and removed with an account.
    Managed {
        /// The account.
        account: AccountId,
        /// Provider id.
        provider: String,
        /// Capability id.
        capability: String,
    },
    /// Made by an administrator.
    Static {
        /// Base URL.
        base_url: String,
        /// `bearer`, `basic`, `headers`, `query`, `none`.
        credential_kind: String,
        /// JSON of the credential, sealed. Place: table `targets`, the id, column `credential`.
        credential: Option<Sealed>,
        /// Patterns.
        fence: Vec<String>,
    },
    /// In `gateway.toml`.
    System,
}

/// One target.
#[derive(Clone)]
pub struct TargetRow {
    /// Id.
    pub id: TargetId,
    /// Organization; `None`: every one (system).
    pub organization: Option<OrgId>,
    /// Slug.
    pub slug: String,
    /// For people.
    pub name: String,
    /// What it is.
    pub kind: TargetKind,
    /// Made at.
    pub created_at: Timestamp,
    /// Last change.
    pub updated_at: Timestamp,
}

impl Store {
    /// Stores a new static target.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the slug is taken, also by a system target.
    pub async fn insert_target(&self, _target: &TargetRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Targets that an organization sees: its own and the system's.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn targets(&self, _org: OrgId, _page: &Page) -> Result<Paged<TargetRow>> {
        todo!()
    }
    /// One target by slug, as the organization sees it.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn target(&self, _org: OrgId, _slug: &str) -> Result<Option<TargetRow>> {
        todo!()
    }
    /// Saves name and kind of a static target.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn update_target(&self, _target: &TargetRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
    /// Deletes a static target and its grants. `false` when there was none.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_target(&self, _org: OrgId, _id: TargetId, _record: &AuditRow) -> Result<bool> {
        todo!()
    }
    /// Makes the system rows match `slugs` (slug, name): new ones are added, missing ones go with their grants.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when an organization uses a slug already.
    pub async fn sync_system_targets(&self, _slugs: &[(String, String)], _now: Timestamp) -> Result<()> {
        todo!()
    }
}
