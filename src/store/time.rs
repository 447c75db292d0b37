//! The database's clock: the one clock that all instances share. What they must agree on, or what must survive a local
//! clock that was set, is told by it: leases, pauses, the ends of tokens.
//!
//! On SQLite it is the machine's own, so nothing trusts a moment in the future further than it can lie there.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::clock::{Clock, Timestamp};

use super::db::{Db, Session, fetch_optional};
use super::{Result, Store};

/// What is known of it here. Clones share it.
#[derive(Clone)]
pub(super) struct SharedTime {
    local: Clock,
    /// How far it was ahead of the local monotonic time when it was last asked, in ms.
    ahead: Arc<AtomicI64>,
}

/// Nobody has asked it yet.
const UNHEARD: i64 = i64::MIN;

impl SharedTime {
    pub(super) fn beside(local: Clock) -> Self {
        Self { local, ahead: Arc::new(AtomicI64::new(UNHEARD)) }
    }

    /// The local monotonic time, in ms.
    pub(super) fn monotonic(&self) -> i64 {
        i64::try_from(self.local.monotonic().as_millis()).unwrap_or(i64::MAX)
    }
}

impl Store {
    /// The same store beside this clock. A held clock stands for the database's, too: a test moves both or none.
    #[must_use]
    pub fn beside(self, clock: Clock) -> Self {
        Self { time: SharedTime::beside(clock), ..self }
    }

    /// Asks the database what time it is.
    ///
    /// # Errors
    /// [`super::Error::Database`].
    pub async fn now(&self) -> Result<Timestamp> {
        let mut session = self.db.read().await?;
        Ok(Timestamp::from_millis(self.database_now(&mut session).await?))
    }

    /// The database's time without asking: what it last said, and the time that has passed since. Before it was ever
    /// asked, the local clock's.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        match (self.time.local.beside(), self.time.ahead.load(Ordering::Relaxed)) {
            (Some(held), _) => held,
            (None, UNHEARD) => self.time.local.now(),
            (None, ahead) => Timestamp::from_millis(self.time.monotonic().saturating_add(ahead)),
        }
    }

    /// The database's clock, in ms since 1970, in whatever unit of work is going on.
    pub(super) async fn database_now(&self, session: &mut Session) -> Result<i64> {
        if let Some(held) = self.time.local.beside() {
            return Ok(held.millis());
        }
        let sql = match &self.db {
            Db::Sqlite { .. } => "select cast(unixepoch('subsec') * 1000 as integer)",
            Db::Postgres(_) => "select (extract(epoch from clock_timestamp()) * 1000)::bigint",
        };
        let now = fetch_optional!(session, (i64,), sql)?.map_or(0, |(now,)| now);
        self.time.ahead.store(now.saturating_sub(self.time.monotonic()), Ordering::Relaxed);
        Ok(now)
    }
}
