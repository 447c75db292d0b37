//! Refresh tokens that were received and could not become the current one, so that they can still save the account.

use crate::clock::Timestamp;
use crate::ids::{AccountId, CandidateId, OrgId};
use crate::vault::Sealed;

use super::codec::word;
use super::db::{Session, execute, fetch_all, fetch_optional};
use super::{AuditRow, Reason, Result, Store, audit_insert};

/// One of them.
#[derive(Clone)]
pub struct CandidateRow {
    /// Id.
    pub id: CandidateId,
    /// Sealed. Place: table `token_candidates`, the id, column `token`.
    pub token: Sealed,
    /// It came in place of the refresh token of this generation, so it is the better one while that is the current one.
    pub successor_of: Option<i64>,
}

/// Whoever ended the account did not know of the token that is kept now.
async fn revive(
    tx: &mut Session,
    account: AccountId,
    now: Timestamp,
    time: i64,
    revived: impl FnOnce(OrgId) -> AuditRow,
) -> Result<()> {
    let organization = fetch_optional!(
        tx,
        (OrgId,),
        "update accounts set status = 'degraded', reason = $2, validity = 'unknown', updated_at = $3, standing_at = $4 \
         where id = $1 and status = 'disconnected' and removed_at is null returning organization",
        account,
        word(Reason::ProviderUnavailable),
        now.millis(),
        time,
    )?;
    match organization {
        Some((organization,)) => audit_insert::insert(tx, std::slice::from_ref(&revived(organization))).await,
        None => Ok(()),
    }
}

impl Store {
    /// Keeps a refresh token that lost the race to be stored, the newest ten of an account. An account that was ended
    /// meanwhile has hope again: it becomes `degraded` until somebody tries the token, and `revived` is written. `false`:
    /// the account is gone, and nothing of it is kept.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn insert_candidate(
        &self,
        id: CandidateId,
        account: AccountId,
        token: &Sealed,
        now: Timestamp,
        revived: impl FnOnce(OrgId) -> AuditRow,
    ) -> Result<bool> {
        self.insert(id, account, token, None, now, revived).await
    }

    /// As [`Store::insert_candidate`], of a refresh token that came in place of the one of `generation`.
    ///
    /// # Errors
    /// As [`Store::insert_candidate`].
    pub async fn insert_successor(
        &self,
        id: CandidateId,
        account: AccountId,
        token: &Sealed,
        generation: i64,
        now: Timestamp,
        revived: impl FnOnce(OrgId) -> AuditRow,
    ) -> Result<bool> {
        self.insert(id, account, token, Some(generation), now, revived).await
    }

    async fn insert(
        &self,
        id: CandidateId,
        account: AccountId,
        token: &Sealed,
        successor_of: Option<i64>,
        now: Timestamp,
        revived: impl FnOnce(OrgId) -> AuditRow,
    ) -> Result<bool> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "insert into token_candidates (id, account, token, received_at, successor_of) \
             select $1, id, $3, $4, $5 from accounts where id = $2 and removed_at is null on conflict (id) do nothing",
            id,
            account,
            token.as_bytes(),
            now.millis(),
            successor_of,
        )?;
        execute!(
            &mut tx,
            "delete from token_candidates where account = $1 and id not in \
             (select id from token_candidates where account = $1 order by id desc limit 10)",
            account,
        )?;
        let kept = fetch_optional!(&mut tx, (CandidateId,), "select id from token_candidates where id = $1", id)?;
        if kept.is_some() {
            let time = self.database_now(&mut tx).await?;
            revive(&mut tx, account, now, time, revived).await?;
        }
        tx.commit().await?;
        Ok(kept.is_some())
    }

    /// Candidates of an account, newest first.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn candidates(&self, account: AccountId) -> Result<Vec<CandidateRow>> {
        let mut read = self.db.read().await?;
        let rows = fetch_all!(
            &mut read,
            (CandidateId, Vec<u8>, Option<i64>),
            "select id, token, successor_of from token_candidates where account = $1 order by id desc",
            account
        )?;
        let row = |(id, token, successor_of)| CandidateRow { id, token: Sealed::from_bytes(token), successor_of };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Forgets a candidate that was tried.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn delete_candidate(&self, id: CandidateId) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(&mut tx, "delete from token_candidates where id = $1", id)?;
        tx.commit().await
    }
}
