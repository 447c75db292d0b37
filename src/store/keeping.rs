//! What the keeper looks for: accounts in trouble, idle ones, and refresh tokens that end soon.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::{AccountId, OrgId};

use super::codec::read_word;
use super::db::{execute, fetch_all};
use super::{AuditRow, LONGEST_PAUSE, Result, Status, Store, audit_insert};

/// How long before its own end a refresh token is said to end soon.
pub const ENDING: Duration = Duration::from_secs(7 * 24 * 3_600);

impl Store {
    /// How many accounts there are in each status that any is in.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn account_counts(&self) -> Result<Vec<(Status, u64)>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(
            &mut read,
            (String, i64),
            "select status, count(*) from accounts where removed_at is null group by status"
        )?;
        let told = |(status, count): (String, i64)| Ok((read_word("status", &status)?, count.unsigned_abs()));
        rows.into_iter().map(told).collect()
    }

    /// Accounts in trouble whose pause is over, those whose was over first to begin with.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn degraded_accounts(&self, limit: u32) -> Result<Vec<AccountId>> {
        let mut read = self.db.read().await?;
        let now = self.database_now(&mut read).await?;
        let rows = fetch_all!(
            &mut read,
            (AccountId,),
            "select id from accounts where status = 'degraded' and removed_at is null \
             and (next_attempt_at is null or next_attempt_at <= $2 or next_attempt_at > $3) \
             order by next_attempt_at limit $1",
            i64::from(limit),
            now,
            Timestamp::from_millis(now).after(LONGEST_PAUSE).millis(),
        )?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Connected accounts with a refresh token whose access token ended before `ended`, and when it did; longest ago first.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn idle_accounts(&self, ended: Timestamp, limit: u32) -> Result<Vec<(AccountId, Timestamp)>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(
            &mut read,
            (AccountId, i64),
            "select id, access_expires_at from accounts where status = 'connected' and removed_at is null \
             and refresh_token is not null and access_expires_at < $1 order by access_expires_at limit $2",
            ended.millis(),
            i64::from(limit)
        )?;
        Ok(rows.into_iter().map(|(id, ended)| (id, Timestamp::from_millis(ended))).collect())
    }

    /// Accounts whose refresh token ends before `before` and whose people were not told yet.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn ending_refresh_tokens(
        &self,
        before: Timestamp,
        limit: u32,
    ) -> Result<Vec<(AccountId, OrgId, Timestamp)>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(
            &mut read,
            (AccountId, OrgId, i64),
            "select id, organization, refresh_expires_at from accounts where refresh_expires_at < $1 \
             and reconnect_soon_at is null and status <> 'disconnected' and removed_at is null limit $2",
            before.millis(),
            i64::from(limit)
        )?;
        Ok(rows.into_iter().map(|(id, org, ends)| (id, org, Timestamp::from_millis(ends))).collect())
    }

    /// Notes that people were told; writes `record` with it. `false`: another instance was faster.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn mark_reconnect_soon(&self, id: AccountId, now: Timestamp, record: &AuditRow) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let marked = execute!(
            &mut tx,
            "update accounts set reconnect_soon_at = $2 \
             where id = $1 and reconnect_soon_at is null and removed_at is null",
            id,
            now.millis()
        )?;
        if marked == 0 {
            return Ok(false);
        }
        audit_insert::insert(&mut tx, std::slice::from_ref(record)).await?;
        tx.commit().await?;
        Ok(true)
    }
}
