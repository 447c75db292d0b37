//! Who may refresh an account now. A lease is three columns of the account's row, by the database's clock: no connection
//! and no lock is held while the provider is asked, and an instance that froze past its lease is fenced off by the
//! generation when it wakes.
//!
//! `refresh_started_at` outlives a lease that nobody ended: it says that a refresh token may have been spent without the
//! result being stored. Only a stored result, or an answer that surely spent nothing, clears it.
//!
//! A dead instance's lease ends by its time; on SQLite already with the next start, see `presence.rs`.

use crate::clock::Timestamp;
use crate::ids::{AccountId, CandidateId, InstanceId};
use crate::vault::Sealed;

use super::codec::word;
use super::db::{Db, Session, execute, fetch_all, fetch_optional};
use super::{Result, Status, Store};

/// Ends every lease, for when all who had one are known to be dead. Which refreshes they began stays known.
pub(super) const END_ALL: &str =
    "update accounts set lease_owner = null, lease_until = null where lease_until is not null";

/// A lease that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The generation it was taken at; what a save compares with.
    pub generation: i64,
    /// An earlier refresh began and its result was never stored: the refresh token may have been spent.
    pub maybe_spent: bool,
}

/// What trying to take a lease gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is ours.
    Won(Lease),
    /// Somebody else has it.
    Held,
    /// The account is gone.
    Gone,
}

/// A refresh token that was received and could not become the current one.
#[derive(Clone)]
pub struct CandidateRow {
    /// Id.
    pub id: CandidateId,
    /// Sealed. Place: table `token_candidates`, the id, column `token`.
    pub token: Sealed,
}

impl Store {
    /// The database's clock: the one clock that all instances share.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    async fn database_now(&self, session: &mut Session) -> Result<i64> {
        let sql = match &self.db {
            Db::Sqlite { .. } => "select cast(unixepoch('subsec') * 1000 as integer)",
            Db::Postgres(_) => "select (extract(epoch from clock_timestamp()) * 1000)::bigint",
        };
        Ok(fetch_optional!(session, (i64,), sql)?.map_or(0, |(now,)| now))
    }

    /// Takes the lease of an account for `span_ms`, if nobody holds it.
    ///
    /// # Errors
    /// [`super::Error::Database`]: nothing may be asked of the provider then.
    pub async fn take_lease(&self, id: AccountId, owner: InstanceId, span_ms: i64) -> Result<Taken> {
        let mut tx = self.db.write().await?;
        let now = self.database_now(&mut tx).await?;
        let before = fetch_optional!(
            &mut tx,
            (i64, Option<i64>),
            "select generation, refresh_started_at from accounts where id = $1 and removed_at is null",
            id
        )?;
        let Some((_, started)) = before else { return Ok(Taken::Gone) };
        let won = fetch_optional!(
            &mut tx,
            (i64,),
            "update accounts set lease_owner = $2, lease_until = $4, refresh_started_at = coalesce(refresh_started_at, $3) \
             where id = $1 and removed_at is null and (lease_until is null or lease_until <= $3) returning generation",
            id,
            owner,
            now,
            now.saturating_add(span_ms),
        )?;
        let Some((generation,)) = won else { return Ok(Taken::Held) };
        tx.commit().await?;
        Ok(Taken::Won(Lease { generation, maybe_spent: started.is_some() }))
    }

    /// Makes a lease that is ours last `span_ms` from now. `false`: it is not ours any more.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn renew_lease(&self, id: AccountId, owner: InstanceId, span_ms: i64) -> Result<bool> {
        let mut tx = self.db.write().await?;
        let now = self.database_now(&mut tx).await?;
        let renewed = execute!(
            &mut tx,
            "update accounts set lease_until = $3 where id = $1 and lease_owner = $2 and removed_at is null",
            id,
            owner,
            now.saturating_add(span_ms),
        )?;
        tx.commit().await?;
        Ok(renewed > 0)
    }

    /// Ends a lease that is ours. `spent`: the refresh token may have been spent, so the mark of it stays.
    ///
    /// # Errors
    /// [`super::Error::Database`]; the lease then ends by its time.
    pub async fn release_lease(&self, id: AccountId, owner: InstanceId, spent: bool) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "update accounts set lease_owner = null, lease_until = null, \
             refresh_started_at = case when $3 = 1 then refresh_started_at else null end \
             where id = $1 and lease_owner = $2",
            id,
            owner,
            i64::from(spent),
        )?;
        tx.commit().await
    }

    /// Accounts whose refresh began and was never resolved, and whose lease is over: what a crash leaves behind.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn unresolved_refreshes(&self, limit: u32) -> Result<Vec<AccountId>> {
        let mut session = self.db.read().await?;
        let now = self.database_now(&mut session).await?;
        let rows = fetch_all!(
            &mut session,
            (AccountId,),
            "select id from accounts where refresh_started_at is not null and removed_at is null \
             and status <> $1 and (lease_until is null or lease_until <= $2) order by refresh_started_at limit $3",
            word(Status::Disconnected),
            now,
            i64::from(limit),
        )?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }

    /// Keeps a refresh token that lost the race to be stored, so that it can still save the account. Of an account that
    /// is gone nothing is kept, and of any other the newest ten.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn insert_candidate(
        &self,
        id: CandidateId,
        account: AccountId,
        token: &Sealed,
        now: Timestamp,
    ) -> Result<()> {
        let mut tx = self.db.write().await?;
        execute!(
            &mut tx,
            "insert into token_candidates (id, account, token, received_at) \
             select $1, id, $3, $4 from accounts where id = $2 and removed_at is null on conflict (id) do nothing",
            id,
            account,
            token.as_bytes(),
            now.millis(),
        )?;
        execute!(
            &mut tx,
            "delete from token_candidates where account = $1 and id not in \
             (select id from token_candidates where account = $1 order by id desc limit 10)",
            account,
        )?;
        tx.commit().await
    }

    /// Candidates of an account, newest first.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn candidates(&self, account: AccountId) -> Result<Vec<CandidateRow>> {
        let mut session = self.db.read().await?;
        let rows = fetch_all!(
            &mut session,
            (CandidateId, Vec<u8>),
            "select id, token from token_candidates where account = $1 order by id desc limit 10",
            account
        )?;
        Ok(rows.into_iter().map(|(id, token)| CandidateRow { id, token: Sealed::from_bytes(token) }).collect())
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
