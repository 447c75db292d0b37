//! Agent keys and grants. Each change bumps the policy revision in its own transaction.

use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::{KeyId, OrgId, TargetId};

use super::codec::{json, millis, read_hash, read_json, read_time, read_word, unreadable, word};
use super::db::{execute, fetch_all, fetch_optional};
use super::{AuditRow, Error, Page, Paged, Result, Store, audit_insert, policy};

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
    /// Its own limits; `None`: what `gateway.toml` says.
    pub rate_limit: Option<RateLimit>,
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

/// `select_keys!("where …")`: the columns of [`KeyColumns`].
macro_rules! select_keys {
    ($rest:literal) => {
        concat!(
            "select id, organization, name, hash, prefix, expires_at, allowed_ips, rate_limit, previous_hash, \
             previous_until, created_at, last_used_at, revoked_at from keys ",
            $rest
        )
    };
}
pub(super) use select_keys;

#[derive(sqlx::FromRow)]
pub(super) struct KeyColumns {
    id: KeyId,
    organization: OrgId,
    name: String,
    hash: Vec<u8>,
    prefix: String,
    expires_at: Option<i64>,
    allowed_ips: String,
    rate_limit: Option<String>,
    previous_hash: Option<Vec<u8>>,
    previous_until: Option<i64>,
    created_at: i64,
    last_used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl TryFrom<KeyColumns> for KeyRow {
    type Error = Error;

    fn try_from(row: KeyColumns) -> Result<Self> {
        let previous = match (row.previous_hash, read_time(row.previous_until)) {
            (Some(hash), Some(until)) => Some((read_hash("keys.previous_hash", &hash)?, until)),
            (None, None) => None,
            _ => return Err(unreadable("keys.previous_hash", "it has no end, or an end has no hash")),
        };
        Ok(Self {
            id: row.id,
            organization: row.organization,
            name: row.name,
            hash: read_hash("keys.hash", &row.hash)?,
            prefix: row.prefix,
            expires_at: read_time(row.expires_at),
            allowed_ips: read_json("keys.allowed_ips", &row.allowed_ips)?,
            rate_limit: row.rate_limit.map(|limit| read_json("keys.rate_limit", &limit)).transpose()?,
            previous,
            created_at: Timestamp::from_millis(row.created_at),
            last_used_at: read_time(row.last_used_at),
            revoked_at: read_time(row.revoked_at),
        })
    }
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// [`super::Error::NotFound`] when there is no such organization.
    pub async fn insert_key(&self, key: &KeyRow, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        execute!(
            &mut tx,
            "insert into keys (id, organization, name, hash, prefix, expires_at, allowed_ips, rate_limit, previous_hash, \
             previous_until, created_at, last_used_at, revoked_at) \
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            key.id,
            key.organization,
            key.name.as_str(),
            &key.hash[..],
            key.prefix.as_str(),
            millis(key.expires_at),
            json(&key.allowed_ips),
            key.rate_limit.as_ref().map(json),
            key.previous.as_ref().map(|(hash, _)| &hash[..]),
            key.previous.map(|(_, until)| until.millis()),
            key.created_at.millis(),
            millis(key.last_used_at),
            millis(key.revoked_at),
        )?;
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Keys of an organization, revoked ones too.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn keys(&self, org: OrgId, page: &Page) -> Result<Paged<KeyRow>> {
        let mut read = self.db.read().await?;
        let sql = select_keys!("where organization = $1 and id > $2 order by id limit $3");
        let rows = fetch_all!(&mut read, KeyColumns, sql, org, page.after(), page.rows())?;
        let rows = rows.into_iter().map(KeyRow::try_from).collect::<Result<_>>()?;
        Ok(page.cut(rows, |key: &KeyRow| key.id.to_string()))
    }

    /// One key.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn key(&self, org: OrgId, id: KeyId) -> Result<Option<KeyRow>> {
        let mut read = self.db.read().await?;
        let sql = select_keys!("where organization = $1 and id = $2");
        fetch_optional!(&mut read, KeyColumns, sql, org, id)?.map(KeyRow::try_from).transpose()
    }

    /// Saves name, expiry, addresses, limits, hash, prefix, previous and `revoked_at` of a key. A revoked key stays revoked,
    /// since the moment it first was, whatever a slower change brings.
    ///
    /// # Errors
    /// [`super::Error::NotFound`].
    pub async fn update_key(&self, key: &KeyRow, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let changed = execute!(
            &mut tx,
            "update keys set name = $3, hash = $4, prefix = $5, expires_at = $6, allowed_ips = $7, \
             rate_limit = $8, previous_hash = $9, previous_until = $10, revoked_at = coalesce(revoked_at, $11) \
             where id = $1 and organization = $2",
            key.id,
            key.organization,
            key.name.as_str(),
            &key.hash[..],
            key.prefix.as_str(),
            millis(key.expires_at),
            json(&key.allowed_ips),
            key.rate_limit.as_ref().map(json),
            key.previous.as_ref().map(|(hash, _)| &hash[..]),
            key.previous.map(|(_, until)| until.millis()),
            millis(key.revoked_at),
        )?;
        if changed == 0 {
            return Err(Error::NotFound);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Notes when keys were last used.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn touch_keys(&self, used: &[(KeyId, Timestamp)]) -> Result<()> {
        // In one order everywhere: two instances that note the same keys must not wait for each other in a circle.
        let mut used = used.to_vec();
        used.sort_unstable();
        let mut tx = self.db.write().await?;
        for (key, at) in used {
            execute!(
                &mut tx,
                "update keys set last_used_at = $2 where id = $1 and (last_used_at is null or last_used_at < $2)",
                key,
                at.millis()
            )?;
        }
        tx.commit().await
    }

    /// Grants of a key, by slug.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn grants_of_key(&self, org: OrgId, key: KeyId) -> Result<Vec<GrantRow>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(
            &mut read,
            (KeyId, TargetId, String, String, i64),
            "select g.agent_key, g.target, t.slug, g.access, g.created_at from grants g \
             join keys k on k.id = g.agent_key join targets t on t.id = g.target \
             where k.organization = $1 and k.id = $2 order by t.slug",
            org,
            key
        )?;
        rows.into_iter()
            .map(|(key, target, slug, access, created_at)| {
                let access = read_word("grants.access", &access)?;
                Ok(GrantRow { key, target, slug, access, created_at: Timestamp::from_millis(created_at) })
            })
            .collect()
    }

    /// Makes or changes a grant. Key and target must be of the organization (system targets are rows too, of no one).
    ///
    /// # Errors
    /// [`super::Error::NotFound`] when key or target is not there.
    pub async fn put_grant(&self, org: OrgId, grant: &GrantRow, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let put = execute!(
            &mut tx,
            "insert into grants (agent_key, target, access, created_at) \
             select k.id, t.id, $4, $5 from keys k, targets t \
             where k.id = $2 and k.organization = $1 \
             and t.id = $3 and (t.organization = $1 or t.organization is null) \
             on conflict (agent_key, target) do update set access = excluded.access, created_at = excluded.created_at",
            org,
            grant.key,
            grant.target,
            word(grant.access),
            grant.created_at.millis()
        )?;
        if put == 0 {
            return Err(Error::NotFound);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Takes a grant away. `false` when there was none.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_grant(&self, org: OrgId, key: KeyId, target: TargetId, record: &AuditRow) -> Result<bool> {
        let mut tx = self.db.write().await?;
        policy::raise(&mut tx).await?;
        let gone = execute!(
            &mut tx,
            "delete from grants where agent_key = $2 and target = $3 \
             and agent_key in (select id from keys where organization = $1)",
            org,
            key,
            target
        )?;
        if gone == 0 {
            return Ok(false);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(true)
    }
}
