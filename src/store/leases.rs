//! Who may refresh an account now. A lease is three columns of the account's row, by the database's clock: no connection
//! and no lock is held while the provider is asked. An instance that froze past its lease is fenced off when it wakes:
//! its word about the account counts only while the lease is its own, and its tokens only while the generation is theirs.
//!
//! `refresh_started_at` outlives a lease that nobody ended: it says that a refresh token may have been spent without the
//! result being stored. Only a stored result, or an answer that surely spent nothing, clears it.
//!
//! After a failure nobody gets a lease until the pause is over (`next_attempt_at`), whichever instance failed.
//!
//! A dead instance's lease ends by its time; on SQLite already with the next start, see `presence.rs`.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::ids::{AccountId, InstanceId};

use super::codec::{read_time, word};
use super::db::{execute, fetch_all, fetch_optional};
use super::{Result, Status, Store};

/// Ends every lease, for when all who had one are known to be dead. Which refreshes they began stays known.
pub(super) const END_ALL: &str =
    "update accounts set lease_owner = null, lease_until = null where lease_until is not null";

/// The longest pause after a failure. One that ends later than this from now was written before the clock was set back.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// A lease that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The generation it was taken at; what a save compares with.
    pub generation: i64,
    /// An earlier refresh began and its result was never stored: the refresh token may have been spent.
    pub maybe_spent: bool,
    /// Refreshes that failed in passing since the last that did not.
    pub failures: u32,
    /// Since when the provider has said nothing but what nobody understands.
    pub unknown_since: Option<Timestamp>,
}

/// What trying to take a lease gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is ours.
    Won(Lease),
    /// Somebody else has it.
    Held,
    /// Nobody gets it for this long: the last refresh failed.
    Resting(Duration),
    /// The account is gone.
    Gone,
}

#[derive(sqlx::FromRow)]
struct Columns {
    generation: i64,
    lease_until: Option<i64>,
    refresh_started_at: Option<i64>,
    refresh_failures: i64,
    next_attempt_at: Option<i64>,
    unknown_since: Option<i64>,
}

impl Columns {
    /// How long nobody may try, from `now` on.
    fn rest(&self, now: i64) -> Option<Duration> {
        let rest = u64::try_from(self.next_attempt_at?.saturating_sub(now)).ok()?;
        Some(Duration::from_millis(rest)).filter(|rest| !rest.is_zero() && *rest <= LONGEST_PAUSE)
    }
}

impl Store {
    /// Takes the lease of an account for `span_ms`, if nobody holds it and no pause is on.
    ///
    /// # Errors
    /// [`super::Error::Database`]: nothing may be asked of the provider then.
    pub async fn take_lease(&self, id: AccountId, owner: InstanceId, span_ms: i64) -> Result<Taken> {
        self.lease(id, owner, span_ms, false).await
    }

    /// As [`Store::take_lease`], whatever pause is on: a person asks, or the operator has changed something.
    ///
    /// # Errors
    /// As [`Store::take_lease`].
    pub async fn take_lease_at_once(&self, id: AccountId, owner: InstanceId, span_ms: i64) -> Result<Taken> {
        self.lease(id, owner, span_ms, true).await
    }

    async fn lease(&self, id: AccountId, owner: InstanceId, span_ms: i64, at_once: bool) -> Result<Taken> {
        let mut tx = self.db.write().await?;
        let now = self.database_now(&mut tx).await?;
        // A lease that ends later than one taken now was taken before the clock was set back.
        let latest = now.saturating_add(span_ms.saturating_mul(2));
        let won = fetch_optional!(
            &mut tx,
            Columns,
            "update accounts set lease_owner = $2, lease_until = $4 \
             where id = $1 and removed_at is null \
             and (lease_until is null or lease_until <= $3 or lease_until > $5) \
             and ($6 = 1 or next_attempt_at is null or next_attempt_at <= $3 or next_attempt_at > $7) \
             returning generation, lease_until, refresh_started_at, refresh_failures, next_attempt_at, unknown_since",
            id,
            owner,
            now,
            now.saturating_add(span_ms),
            latest,
            i64::from(at_once),
            now.saturating_add(i64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(i64::MAX)),
        )?;
        let Some(won) = won else {
            let sql = "select generation, lease_until, refresh_started_at, refresh_failures, next_attempt_at, \
                       unknown_since from accounts where id = $1 and removed_at is null";
            let Some(row) = fetch_optional!(&mut tx, Columns, sql, id)? else { return Ok(Taken::Gone) };
            let held = row.lease_until.is_some_and(|until| until > now && until <= latest);
            return Ok(row.rest(now).filter(|_| !held && !at_once).map_or(Taken::Held, Taken::Resting));
        };
        if won.refresh_started_at.is_none() {
            execute!(&mut tx, "update accounts set refresh_started_at = $2 where id = $1", id, now)?;
        }
        tx.commit().await?;
        Ok(Taken::Won(Lease {
            generation: won.generation,
            maybe_spent: won.refresh_started_at.is_some(),
            failures: u32::try_from(won.refresh_failures).unwrap_or(u32::MAX),
            unknown_since: read_time(won.unknown_since),
        }))
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

    /// Accounts whose refresh began and was never resolved, whose lease is over and whose pause is: what a crash leaves
    /// behind.
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
             and status <> $1 and (lease_until is null or lease_until <= $2) \
             and (next_attempt_at is null or next_attempt_at <= $2 or next_attempt_at > $4) \
             order by refresh_started_at limit $3",
            word(Status::Disconnected),
            now,
            i64::from(limit),
            now.saturating_add(i64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(i64::MAX)),
        )?;
        Ok(rows.into_iter().map(|(id,)| id).collect())
    }
}
