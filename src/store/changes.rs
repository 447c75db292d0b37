//! How an instance learns that another one changed what decides requests: notifications where the database has them, and
//! in any case a look now and then. A notification is a hint to look, never the news itself, so losing one costs at most
//! the time to the next look.

use std::time::Duration;

use sqlx::postgres::PgListener;

use crate::clock::Timestamp;
use crate::ids::AccountId;

use super::codec::read_word;
use super::db::{Db, Session, execute, fetch_all, within};
use super::{Error, Result, Status, Store};

const CHANNEL: &str = "keyward_policy";

/// Waits for hints.
pub struct Changes {
    store: Store,
    listener: Option<PgListener>,
}

/// Tells the other instances, when the transaction commits.
pub(super) async fn announce(tx: &mut Session) -> Result<()> {
    if matches!(tx, Session::Postgres(_)) {
        execute!(tx, "select pg_notify('keyward_policy', '')")?;
    }
    Ok(())
}

impl Store {
    /// A waiter for changes.
    #[must_use]
    pub fn changes(&self) -> Changes {
        Changes { store: self.clone(), listener: None }
    }

    /// Accounts that went to or came from `disconnected` at `since` or later, by the database's clock, and whether they
    /// are disconnected now.
    ///
    /// # Errors
    /// [`Error::Database`].
    pub async fn standings(&self, since: Timestamp) -> Result<Vec<(AccountId, bool)>> {
        let mut read = self.db.read().await?;
        let sql = "select id, status from accounts where standing_at >= $1 and removed_at is null";
        let rows = fetch_all!(&mut read, (AccountId, String), sql, since.millis())?;
        let told = |(id, status): (AccountId, String)| {
            Ok((id, read_word::<Status>("accounts.status", &status)? == Status::Disconnected))
        };
        rows.into_iter().map(told).collect()
    }
}

impl Changes {
    /// Resolves when something may have changed: at a notification, when notifications may have been lost, or after
    /// `at_most`.
    pub async fn next(&mut self, at_most: Duration) {
        let Db::Postgres(_) = &self.store.db else {
            return tokio::time::sleep(at_most).await;
        };
        let waited = async {
            if self.listener.is_none() {
                self.listener = self.listen().await.ok();
            }
            match &mut self.listener {
                Some(listener) => listener.try_recv().await.ok().flatten().is_some(),
                // No connection to listen on: looking is all that is left.
                None => std::future::pending().await,
            }
        };
        if let Ok(false) = tokio::time::timeout(at_most, waited).await {
            // The connection was lost, and perhaps notifications with it: a new one next time, a look now.
            self.listener = None;
        }
    }

    async fn listen(&self) -> Result<PgListener> {
        let Db::Postgres(server) = &self.store.db else { return Err(Error::NotFound) };
        let mut listener = within(PgListener::connect_with(&server.pool())).await?;
        within(listener.listen(CHANNEL)).await?;
        Ok(listener)
    }
}
