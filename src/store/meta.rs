//! Small facts about the installation, and organizations.

use crate::clock::Timestamp;
use crate::ids::OrgId;

use super::db::{execute, fetch_all, fetch_optional};
use super::{AuditRow, Error, Result, Store, audit_insert};

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

#[derive(sqlx::FromRow)]
struct Columns {
    id: OrgId,
    name: String,
    created_at: i64,
}

impl From<Columns> for OrganizationRow {
    fn from(row: Columns) -> Self {
        Self { id: row.id, name: row.name, created_at: Timestamp::from_millis(row.created_at) }
    }
}

impl Store {
    /// A stored fact.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn fact(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut read = self.db.read().await?;
        let fact = fetch_optional!(&mut read, (Vec<u8>,), "select value from facts where name = $1", name)?;
        Ok(fact.map(|(value,)| value))
    }

    /// Stores a fact unless one stands there already; answers what stands there now.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn fact_or_insert(&self, name: &str, value: &[u8]) -> Result<Vec<u8>> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "insert into facts (name, value) values ($1, $2) on conflict (name) do nothing",
            name,
            value
        )?;
        let fact = fetch_optional!(&mut tx, (Vec<u8>,), "select value from facts where name = $1", name)?;
        tx.commit().await?;
        fact.map(|(value,)| value).ok_or(Error::NotFound)
    }

    /// All organizations, by name.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn organizations(&self) -> Result<Vec<OrganizationRow>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(&mut read, Columns, "select id, name, created_at from organizations order by name")?;
        Ok(rows.into_iter().map(OrganizationRow::from).collect())
    }

    /// One organization: by name, or by the text of its id.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn organization(&self, name: &str) -> Result<Option<OrganizationRow>> {
        let mut read = self.db.read().await?;
        // An id holds capitals and an underscore, a name neither: the two never meet.
        let sql = "select id, name, created_at from organizations where name = $1 or id = $1";
        Ok(fetch_optional!(&mut read, Columns, sql, name)?.map(OrganizationRow::from))
    }

    /// Makes an organization.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the name is taken.
    pub async fn insert_organization(&self, org: &OrganizationRow, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "insert into organizations (id, name, created_at) values ($1, $2, $3)",
            org.id,
            org.name.as_str(),
            org.created_at.millis()
        )?;
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Makes the organization `default` when there is none at all.
    pub(super) async fn ensure_organization(&self, now: Timestamp) -> Result<()> {
        let mut tx = self.db.write().await?;
        // The conflict is for two instances that start on an empty database at once.
        execute!(
            &mut tx,
            "insert into organizations (id, name, created_at) select $1, 'default', $2 \
             where not exists (select 1 from organizations) on conflict (name) do nothing",
            OrgId::new(),
            now.millis()
        )?;
        tx.commit().await
    }
}
