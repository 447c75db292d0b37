//! What is stored, and the only code that speaks SQL. Each public method is one unit of work: one statement, or one
//! transaction. The nouns stand beside their SQL; columns that can't go together are an error on read.
//!
//! Secrets come in and go out as [`Sealed`](crate::vault::Sealed); nothing here can open one.

mod about;
mod accounts;
mod audit;
mod audit_insert;
mod candidates;
mod changes;
mod codec;
mod connected;
mod copy;
mod db;
mod disconnect;
mod flows;
mod keeping;
mod keys;
mod leases;
mod meta;
mod open;
mod policy;
mod presence;
mod refreshed;
mod reseal;
mod revocations;
mod sealed;
mod series;
mod sessions;
mod tables;
mod targets;
#[cfg(test)]
mod tests;
mod time;

pub use accounts::{AccountFilter, AccountRow, AccountTokens, Captures, Reason, Status, TargetRef, Validity};
pub use audit::{AuditFilter, AuditRow, REQUEST};
pub use candidates::CandidateRow;
pub use changes::Changes;
pub use connected::SaveConnected;
pub use copy::{Copied, CopyError};
pub use disconnect::{Disconnect, Disconnected, NewRevocation};
pub use flows::{FlowOpened, FlowRow};
pub use keeping::ENDING;
pub use keys::{GrantAccess, GrantRow, KeyRow};
pub use leases::{LONGEST_PAUSE, Lease, Taken};
pub use meta::OrganizationRow;
pub use policy::{PolicyAccount, PolicyGrant, PolicyKey, PolicyRows, PolicyTarget};
pub use refreshed::{Ended, Failed, NewTokens};
pub use reseal::{Resealed, Unopened};
pub use revocations::RevocationRow;
pub use sealed::Progress;
pub use sessions::SessionRow;
pub use targets::{TargetKind, TargetRow};

use crate::clock::{Clock, Timestamp};
use crate::config::StoreUrl;

/// The store; clones share its pools.
#[derive(Clone)]
pub struct Store {
    db: db::Db,
    time: time::SharedTime,
}

/// What a caller can do about it: nothing but say so, or treat a conflict as the caller's answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A uniqueness rule was broken: the name, slug or account exists already.
    #[error("already exists")]
    Conflict,
    /// The row to change is not there (or not in the state that the change needs).
    #[error("not found")]
    NotFound,
    /// The database holds something this binary does not understand.
    #[error("the store holds an unreadable {what}: {problem}")]
    Unreadable {
        /// Table or column.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The schema was made by a newer Keyward.
    #[error("the store's schema (version {found}) is newer than this keyward knows ({known}); run a newer keyward")]
    NewerSchema {
        /// In the database.
        found: i64,
        /// In this binary.
        known: i64,
    },
    /// The database failed or did not answer in time.
    #[error("the database failed: {0}")]
    Database(#[source] sqlx::Error),
    /// The migrations failed.
    #[error("migrating the store failed: {0}")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

/// Store results.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Where a list goes on and how much of it is wanted.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Rows wanted, 1 to 200.
    pub limit: u32,
    /// The id of the last row seen.
    pub after: Option<String>,
}

/// One page of a list, oldest first (audit: newest first).
#[derive(Debug, Clone)]
pub struct Paged<T> {
    /// The rows.
    pub items: Vec<T>,
    /// For the next page's `after`; `None` at the end.
    pub next: Option<String>,
}

impl Page {
    /// How many rows to ask for: one more than wanted tells whether there is a next page.
    fn rows(&self) -> i64 {
        i64::from(self.limit.clamp(1, 200)) + 1
    }

    fn after(&self) -> &str {
        self.after.as_deref().unwrap_or_default()
    }

    /// The wanted rows of those that [`Page::rows`] asked for.
    fn cut<T>(&self, mut rows: Vec<T>, id: impl Fn(&T) -> String) -> Paged<T> {
        let limit = self.limit.clamp(1, 200) as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(id);
        Paged { items: rows, next }
    }
}

impl Store {
    /// Opens the database and brings its schema up to date. `now` stamps the `default` organization when it is made.
    ///
    /// # Errors
    /// [`Error::NewerSchema`], [`Error::Migrate`], [`Error::Database`].
    pub async fn open(url: &StoreUrl, now: Timestamp) -> Result<Self> {
        let store = Self::open_as_is(url).await?;
        store.ensure_organization(now).await?;
        Ok(store)
    }

    /// As [`Store::open`], but makes no organization: for moving stores and looking after them.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub async fn open_as_is(url: &StoreUrl) -> Result<Self> {
        Ok(Self { db: open::open(url).await?, time: time::SharedTime::beside(Clock::system()) })
    }

    /// Whether somebody has this store open now. The database must exist.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn is_in_use(url: &StoreUrl) -> Result<bool> {
        open::in_use(url).await
    }

    /// The schema's version: the number of the newest migration.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn schema_version(&self) -> Result<i64> {
        let mut read = self.db.read().await?;
        let newest = db::fetch_optional!(&mut read, (i64,), open::NEWEST_APPLIED)?;
        newest.map(|(version,)| version).ok_or(Error::NotFound)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn ping(&self) -> Result<()> {
        self.revision().await.map(|_| ())
    }

    /// Closes every connection after what runs has finished.
    pub async fn close(&self) {
        self.db.close().await;
    }
}
