//! Small facts about the installation, and organizations.

use crate::clock::Timestamp;
use crate::ids::OrgId;

use super::{AuditRow, Result, Store};

/// A tenant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrganizationRow {
    /// Id.
    pub id: OrgId,
    /// `[a-z0-9-]{1,64}`, as it stands in URLs.
    pub name: String,
    /// Made at.
    pub created_at: Timestamp,
}

impl Store {
    /// A stored fact.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn fact(&self, _name: &str) -> Result<Option<Vec<u8>>> {
        todo!()
    }
    /// Stores a fact unless one stands there already; answers what stands there now.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn fact_or_insert(&self, _name: &str, _value: &[u8]) -> Result<Vec<u8>> {
        todo!()
    }
    /// All organizations, by name.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn organizations(&self) -> Result<Vec<OrganizationRow>> {
        todo!()
    }
    /// One organization: by name, or by the text of its id.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn organization(&self, _name: &str) -> Result<Option<OrganizationRow>> {
        todo!()
    }
    /// Makes an organization.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the name is taken.
    pub async fn insert_organization(&self, _org: &OrganizationRow, _record: &AuditRow) -> Result<()> {
        todo!()
    }
}
