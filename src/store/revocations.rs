//! Tokens to be revoked at their provider: queued by a disconnect, retried until done.

use crate::clock::Timestamp;
use crate::ids::{AccountId, JobId, OrgId};
use crate::vault::Sealed;

use super::codec::read_json;
use super::db::{execute, fetch_all};
use super::{AuditRow, Captures, Error, NewRevocation, Result, Store, audit_insert};

/// One token to revoke.
#[derive(Clone)]
pub struct RevocationRow {
    /// Id.
    pub id: JobId,
    /// Organization.
    pub organization: OrgId,
    /// The account it was of.
    pub account: AccountId,
    /// Provider id.
    pub provider: String,
    /// Whose grant it is: another account of the same person may have come to share it since.
    pub subject: String,
    /// The account's inputs and captured values.
    pub captures: Captures,
    /// `refresh_token` or `access_token` (RFC 7009 §2.1).
    pub token_kind: String,
    /// The token. Place: table `revocations`, the id, column `token`.
    pub token: Sealed,
    /// Tries so far.
    pub attempts: i64,
    /// Made at.
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct Columns {
    id: JobId,
    organization: OrgId,
    account: AccountId,
    provider: String,
    subject: String,
    captures: String,
    token_kind: String,
    token: Vec<u8>,
    attempts: i64,
    created_at: i64,
}

impl TryFrom<Columns> for RevocationRow {
    type Error = Error;

    fn try_from(row: Columns) -> Result<Self> {
        Ok(Self {
            id: row.id,
            organization: row.organization,
            account: row.account,
            provider: row.provider,
            subject: row.subject,
            captures: read_json("revocations.captures", &row.captures)?,
            token_kind: row.token_kind,
            token: Sealed::from_bytes(row.token),
            attempts: row.attempts,
            created_at: Timestamp::from_millis(row.created_at),
        })
    }
}

impl Store {
    /// Queues the revocation of a token that came for an account which is gone. `false`: there never was such an account.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn queue_revocation(&self, account: AccountId, job: &NewRevocation, now: Timestamp) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let queued = execute!(
            &mut tx,
            "insert into revocations (id, organization, account, provider, subject, captures, token_kind, token, \
             attempts, next_at, created_at) \
             select $1, organization, id, provider, subject, captures, $3, $4, 0, $5, $5 from accounts where id = $2 \
             on conflict (id) do nothing",
            job.id,
            account,
            job.token_kind,
            job.token.as_bytes(),
            now.millis()
        )?;
        let there = fetch_all!(&mut tx, (JobId,), "select id from revocations where id = $1", job.id)?;
        tx.commit().await?;
        Ok(queued > 0 || !there.is_empty())
    }

    /// Claims up to `limit` jobs that are due: their next try is set to `retry_at` (which must be later than `now`), so
    /// that no other instance takes them meanwhile.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn claim_revocations(
        &self,
        limit: u32,
        now: Timestamp,
        retry_at: Timestamp,
    ) -> Result<Vec<RevocationRow>> {
        let mut tx = self.db.write().await?;
        // The outer condition is the claim: Postgres asks it again of a row that somebody else has just changed.
        let mut claimed = fetch_all!(
            &mut tx,
            Columns,
            "update revocations set next_at = $3 where next_at <= $2 \
             and id in (select id from revocations where next_at <= $2 order by next_at, id limit $1) \
             returning id, organization, account, provider, subject, captures, token_kind, token, attempts, created_at",
            i64::from(limit),
            now.millis(),
            retry_at.millis()
        )?;
        tx.commit().await?;
        claimed.sort_by_key(|job| job.id);
        claimed.into_iter().map(RevocationRow::try_from).collect()
    }

    /// Deletes a job and writes its outcome to the account's trail. A job that is gone already has its outcome there.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn finish_revocation(&self, id: JobId, record: &AuditRow) -> Result<()> {
        let mut tx = self.db.write().await?;
        if execute!(&mut tx, "delete from revocations where id = $1", id)? == 0 {
            return Ok(());
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await
    }

    /// Counts a failed try and sets when the next is due; `record` on the first failure.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn postpone_revocation(&self, id: JobId, next_at: Timestamp, record: Option<&AuditRow>) -> Result<()> {
        let mut tx = self.db.write().await?;
        let postponed = execute!(
            &mut tx,
            "update revocations set attempts = attempts + 1, next_at = $2 where id = $1",
            id,
            next_at.millis()
        )?;
        if postponed == 0 {
            return Ok(());
        }
        audit_insert::insert(&mut tx, record.map(std::slice::from_ref).unwrap_or_default()).await?;
        tx.commit().await
    }
}
