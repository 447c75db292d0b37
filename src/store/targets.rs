//! Targets: managed rows of accounts, static rows with a sealed credential, and system rows that stand for
//! `gateway.toml`'s `[targets.<slug>]` so that grants can point at them.

use crate::clock::Timestamp;
use crate::config::{Protection, Transport};
use crate::ids::{AccountId, OrgId, TargetId};
use crate::vault::Sealed;

use super::codec::{json, read_json, unreadable};
use super::db::{Session, execute, fetch_all, fetch_optional};
use super::{AuditRow, Error, Page, Paged, Result, Store, audit_insert, policy};

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
        /// How it is looked after.
        protection: Protection,
        /// How it is spoken to.
        transport: Transport,
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

/// `select_targets!("where …")`: the columns of [`TargetColumns`].
macro_rules! select_targets {
    ($rest:literal) => {
        concat!(
            "select id, organization, slug, name, kind, account, provider, capability, base_url, credential_kind, \
             credential, fence, protection, transport, created_at, updated_at from targets ",
            $rest
        )
    };
}
pub(super) use select_targets;

#[derive(sqlx::FromRow)]
pub(super) struct TargetColumns {
    id: TargetId,
    organization: Option<OrgId>,
    slug: String,
    name: String,
    kind: String,
    account: Option<AccountId>,
    provider: Option<String>,
    capability: Option<String>,
    base_url: Option<String>,
    credential_kind: Option<String>,
    credential: Option<Vec<u8>>,
    fence: Option<String>,
    protection: Option<String>,
    transport: Option<String>,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<TargetColumns> for TargetRow {
    type Error = Error;

    fn try_from(row: TargetColumns) -> Result<Self> {
        let missing = || unreadable("targets.kind", format_args!("a {} target lacks a column of its kind", row.kind));
        let kind = match row.kind.as_str() {
            "managed" => TargetKind::Managed {
                account: row.account.ok_or_else(missing)?,
                provider: row.provider.ok_or_else(missing)?,
                capability: row.capability.ok_or_else(missing)?,
            },
            "static" => TargetKind::Static {
                base_url: row.base_url.ok_or_else(missing)?,
                credential_kind: row.credential_kind.ok_or_else(missing)?,
                credential: row.credential.map(Sealed::from_bytes),
                fence: read_json("targets.fence", row.fence.as_deref().ok_or_else(missing)?)?,
                protection: read_json("targets.protection", row.protection.as_deref().ok_or_else(missing)?)?,
                transport: match row.transport {
                    Some(text) => read_json("targets.transport", &text)?,
                    None => Transport::default(),
                },
            },
            "system" => TargetKind::System,
            other => return Err(unreadable("targets.kind", format_args!("`{other}` is no kind"))),
        };
        Ok(Self {
            id: row.id,
            organization: row.organization,
            slug: row.slug,
            name: row.name,
            kind,
            created_at: Timestamp::from_millis(row.created_at),
            updated_at: Timestamp::from_millis(row.updated_at),
        })
    }
}

/// Inserts a target of any kind. The transaction must have raised the policy revision: that keeps the check for system
/// slugs true until the commit.
pub(super) async fn insert(tx: &mut Session, target: &TargetRow) -> Result<()> {
    let taken = fetch_optional!(
        &mut *tx,
        (TargetId,),
        "select id from targets where slug = $1 and (organization is null or $2 is null or organization = $2) limit 1",
        target.slug.as_str(),
        target.organization
    )?;
    if taken.is_some() {
        return Err(Error::Conflict);
    }
    let (mut kind, mut account, mut provider, mut capability) = ("system", None, None, None);
    let (mut base_url, mut credential_kind, mut credential, mut fence) = (None, None, None, None);
    let (mut protection, mut transport) = (None, None);
    match &target.kind {
        TargetKind::Managed { account: of, provider: by, capability: what } => {
            (kind, account, provider, capability) = ("managed", Some(*of), Some(by.as_str()), Some(what.as_str()));
        }
        TargetKind::Static {
            base_url: base,
            credential_kind: how,
            credential: sealed,
            fence: patterns,
            protection: care,
            transport: spoken,
        } => {
            (kind, base_url, credential_kind) = ("static", Some(base.as_str()), Some(how.as_str()));
            (credential, fence) = (sealed.as_ref().map(Sealed::as_bytes), Some(json(patterns)));
            protection = Some(json(care));
            transport = Some(json(spoken));
        }
        TargetKind::System => {}
    }
    execute!(
        tx,
        "insert into targets (id, organization, slug, name, kind, account, provider, capability, base_url, \
         credential_kind, credential, fence, protection, transport, created_at, updated_at) \
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        target.id,
        target.organization,
        target.slug.as_str(),
        target.name.as_str(),
        kind,
        account,
        provider,
        capability,
        base_url,
        credential_kind,
        credential,
        fence,
        protection,
        transport,
        target.created_at.millis(),
        target.updated_at.millis(),
    )?;
    Ok(())
}

impl Store {
    /// Stores a new static target.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when the slug is taken, also by a system target.
    pub async fn insert_target(&self, target: &TargetRow, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        insert(&mut tx, target).await?;
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Targets that an organization sees: its own and the system's.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn targets(&self, org: OrgId, page: &Page) -> Result<Paged<TargetRow>> {
        let mut read = self.db.read().await?;
        let sql = select_targets!("where (organization = $1 or organization is null) and id > $2 order by id limit $3");
        let rows = fetch_all!(&mut read, TargetColumns, sql, org, page.after(), page.rows())?;
        let rows = rows.into_iter().map(TargetRow::try_from).collect::<Result<_>>()?;
        Ok(page.cut(rows, |target: &TargetRow| target.id.to_string()))
    }

    /// One target by slug, as the organization sees it.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn target(&self, org: OrgId, slug: &str) -> Result<Option<TargetRow>> {
        let mut read = self.db.read().await?;
        let sql = select_targets!("where slug = $2 and (organization = $1 or organization is null)");
        fetch_optional!(&mut read, TargetColumns, sql, org, slug)?.map(TargetRow::try_from).transpose()
    }

    /// Saves name and kind of a static target.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn update_target(&self, target: &TargetRow, record: &AuditRow) -> Result<()> {
        let TargetKind::Static { base_url, credential_kind, credential, fence, protection, transport } = &target.kind
        else {
            return Err(Error::NotFound);
        };
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let changed = execute!(
            &mut tx,
            "update targets set name = $3, base_url = $4, credential_kind = $5, credential = $6, fence = $7, \
             protection = $8, transport = $9, updated_at = $10 where id = $1 and organization = $2 and kind = 'static'",
            target.id,
            target.organization,
            target.name.as_str(),
            base_url.as_str(),
            credential_kind.as_str(),
            credential.as_ref().map(Sealed::as_bytes),
            json(fence),
            json(protection),
            json(transport),
            target.updated_at.millis(),
        )?;
        if changed == 0 {
            return Err(Error::NotFound);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Deletes a static target and its grants. `false` when there was none.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_target(&self, org: OrgId, id: TargetId, record: &AuditRow) -> Result<bool> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        // The grants go with it: `on delete cascade`.
        let gone =
            execute!(&mut tx, "delete from targets where id = $1 and organization = $2 and kind = 'static'", id, org)?;
        if gone == 0 {
            return Ok(false);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Makes the system rows match `slugs` (slug, name): new ones are added, missing ones go with their grants. When
    /// nothing differs nothing is written, so a start leaves the policy revision alone.
    ///
    /// # Errors
    /// [`super::Error::Conflict`] when an organization uses a slug already.
    pub async fn sync_system_targets(&self, slugs: &[(String, String)], now: Timestamp) -> Result<()> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let sql = "select id, slug, name from targets where organization is null";
        let mut standing = fetch_all!(&mut tx, (TargetId, String, String), sql)?;
        let mut changed = false;
        for (slug, name) in slugs {
            let Some(at) = standing.iter().position(|(_, there, _)| there == slug) else {
                let kind = TargetKind::System;
                let (slug, name) = (slug.clone(), name.clone());
                let id = TargetId::new();
                let row = TargetRow { id, organization: None, slug, name, kind, created_at: now, updated_at: now };
                insert(&mut tx, &row).await?;
                changed = true;
                continue;
            };
            let (id, _, old_name) = standing.swap_remove(at);
            if old_name != *name {
                let sql = "update targets set name = $2, updated_at = $3 where id = $1";
                execute!(&mut tx, sql, id, name.as_str(), now.millis())?;
                changed = true;
            }
        }
        for (id, _, _) in standing {
            execute!(&mut tx, "delete from targets where id = $1", id)?;
            changed = true;
        }
        if changed { tx.commit().await } else { Ok(()) }
    }
}
