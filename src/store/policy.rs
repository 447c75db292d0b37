//! Everything that decides a request, read in one consistent snapshot.

use ipnet::IpNet;

use crate::clock::Timestamp;
use crate::config::RateLimit;
use crate::ids::{AccountId, KeyId, OrgId, TargetId};

use super::codec::{read_json, read_word};
use super::db::{Session, execute, fetch_all, fetch_optional};
use super::keys::{KeyColumns, select_keys};
use super::targets::{TargetColumns, select_targets};
use super::{Captures, GrantAccess, KeyRow, Result, Store, TargetRow, changes, codec};

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
    /// Its own limits.
    pub rate_limit: Option<RateLimit>,
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

/// The snapshot: usable keys, and what their grants reach.
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

/// Raises the revision. It comes first in every transaction that changes policy: the row's lock makes such
/// transactions run one after another, so what one checks still holds when it writes (on Postgres too).
pub(super) async fn raise(tx: &mut Session) -> Result<()> {
    execute!(tx, "update policy_revision set revision = revision + 1")?;
    changes::announce(tx).await
}

async fn revision(session: &mut Session) -> Result<i64> {
    let row = fetch_optional!(session, (i64,), "select revision from policy_revision")?;
    row.map(|(revision,)| revision).ok_or_else(|| codec::unreadable("policy_revision", "it has no row"))
}

impl Store {
    /// Reads it all, in one read transaction.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn policy(&self) -> Result<PolicyRows> {
        let mut tx = self.db.snapshot().await?;
        let revision = revision(&mut tx).await?;
        let keys = fetch_all!(&mut tx, KeyColumns, select_keys!("where revoked_at is null"))?;
        // An account without a grant is nobody's business here, and most may have none.
        let targets = fetch_all!(
            &mut tx,
            TargetColumns,
            select_targets!(
                "where id in (select target from grants where agent_key in \
                 (select id from keys where revoked_at is null))"
            )
        )?;
        let grants = fetch_all!(
            &mut tx,
            (KeyId, TargetId, String),
            "select agent_key, target, access from grants \
             where agent_key in (select id from keys where revoked_at is null)"
        )?;
        let accounts = fetch_all!(
            &mut tx,
            (AccountId, String, String),
            "select id, provider, captures from accounts where removed_at is null and id in \
             (select account from targets where id in (select target from grants where agent_key in \
             (select id from keys where revoked_at is null)))"
        )?;
        tx.commit().await?;

        Ok(PolicyRows {
            revision,
            keys: keys.into_iter().map(|row| KeyRow::try_from(row).map(PolicyKey::from)).collect::<Result<_>>()?,
            targets: targets.into_iter().map(TargetRow::try_from).collect::<Result<_>>()?,
            grants: grants
                .into_iter()
                .map(|(key, target, access)| {
                    Ok(PolicyGrant { key, target, access: read_word("grants.access", &access)? })
                })
                .collect::<Result<_>>()?,
            accounts: accounts
                .into_iter()
                .map(|(id, provider, captures)| {
                    Ok(PolicyAccount { id, provider, captures: read_json("accounts.captures", &captures)? })
                })
                .collect::<Result<_>>()?,
        })
    }

    /// The revision alone.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn revision(&self) -> Result<i64> {
        revision(&mut self.db.read().await?).await
    }
}

impl From<KeyRow> for PolicyKey {
    fn from(row: KeyRow) -> Self {
        Self {
            id: row.id,
            organization: row.organization,
            name: row.name,
            hash: row.hash,
            expires_at: row.expires_at,
            allowed_ips: row.allowed_ips,
            rate_limit: row.rate_limit,
            previous: row.previous,
        }
    }
}
