//! One type over two databases, and the macros that write each statement once.
//!
//! Both drivers take `$1` placeholders, `returning` and `on conflict`, so a statement is one text. A [`Session`] is one
//! connection of either database; [`execute!`], [`fetch_all!`] and [`fetch_optional!`] run a statement on it, expanding
//! the same lines once per database, and none of them waits for ever.

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sqlx::pool::PoolConnection;
use sqlx::{Database, PgPool, Postgres, Sqlite, SqlitePool, Transaction};

use super::presence::Presence;
use super::{Error, Result};

/// A statement that takes longer has failed, as far as its caller is concerned.
const STATEMENT_LIMIT: Duration = Duration::from_secs(5);

/// SQLite (one writer, several readers) or Postgres.
#[derive(Clone)]
pub(super) enum Db {
    Sqlite { write: SqlitePool, read: SqlitePool, presence: Arc<Presence> },
    Postgres(Arc<Postgresql>),
}

/// A pool that can be replaced. When a server stops answering, connections that were given up on are waited for by the
/// pool itself, and its permits with them (transact-rs/sqlx#4349): it would stay empty after the server is back.
pub(super) struct Postgresql {
    pool: ArcSwap<PgPool>,
    make: Box<dyn Fn() -> PgPool + Send + Sync>,
    replaced: Mutex<Instant>,
}

/// Between two replacements of a pool that gives no connections.
const REPLACE: Duration = Duration::from_secs(5);

impl Postgresql {
    /// Over pools made like this; they connect when they are used.
    pub(super) fn new(make: impl Fn() -> PgPool + Send + Sync + 'static) -> Self {
        let pool = ArcSwap::from_pointee(make());
        Self { pool, make: Box::new(make), replaced: Mutex::new(Instant::now()) }
    }

    pub(super) fn pool(&self) -> Arc<PgPool> {
        self.pool.load_full()
    }

    /// Takes something out of the pool; a pool that gives nothing in time is replaced.
    async fn take<T>(&self, take: impl AsyncFnOnce(&PgPool) -> Result<T, sqlx::Error>) -> Result<T> {
        let pool = self.pool();
        let taken = within(take(&pool)).await;
        if let Err(Error::Database(sqlx::Error::PoolTimedOut | sqlx::Error::Io(_))) = &taken {
            self.replace(&pool);
        }
        taken
    }

    fn replace(&self, stuck: &Arc<PgPool>) {
        let mut replaced = self.replaced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if Arc::ptr_eq(stuck, &self.pool()) && replaced.elapsed() >= REPLACE {
            tracing::warn!("the database gives no connections; a new pool is made");
            *replaced = Instant::now();
            self.pool.store(Arc::new((self.make)()));
        }
    }
}

/// One connection for one unit of work. A transaction that is dropped before [`Session::commit`] changes nothing.
pub(super) enum Session {
    Sqlite(Link<Sqlite>),
    Postgres(Link<Postgres>),
}

/// A connection, with a transaction on it or without.
pub(super) enum Link<DB: Database> {
    Connection(PoolConnection<DB>),
    Transaction(Transaction<'static, DB>),
}

impl<DB: Database> Link<DB> {
    pub(super) fn connection(&mut self) -> &mut DB::Connection {
        match self {
            Self::Connection(connection) => connection,
            Self::Transaction(transaction) => transaction,
        }
    }

    async fn commit(self) -> Result<()> {
        match self {
            Self::Connection(_) => Ok(()),
            Self::Transaction(transaction) => within(transaction.commit()).await,
        }
    }

    async fn commit_patiently(self) -> Result<()> {
        match self {
            Self::Connection(_) => Ok(()),
            Self::Transaction(transaction) => Ok(transaction.commit().await?),
        }
    }
}

impl Db {
    /// For one reading statement.
    pub(super) async fn read(&self) -> Result<Session> {
        Ok(match self {
            Self::Sqlite { read, .. } => Session::Sqlite(Link::Connection(within(read.acquire()).await?)),
            Self::Postgres(server) => {
                Session::Postgres(Link::Connection(server.take(async |pool| pool.acquire().await).await?))
            }
        })
    }

    /// For several reading statements that must see the same state.
    pub(super) async fn snapshot(&self) -> Result<Session> {
        Ok(match self {
            Self::Sqlite { read, .. } => Session::Sqlite(Link::Transaction(within(read.begin()).await?)),
            Self::Postgres(server) => {
                let begin = "begin isolation level repeatable read read only";
                Session::Postgres(Link::Transaction(server.take(async |pool| pool.begin_with(begin).await).await?))
            }
        })
    }

    /// For changes, committed together.
    pub(super) async fn write(&self) -> Result<Session> {
        Ok(match self {
            // Immediate: a transaction that reads first and then wants to write fails at once when another one wrote
            // meanwhile, whatever the busy timeout.
            Self::Sqlite { write, .. } => {
                Session::Sqlite(Link::Transaction(within(write.begin_with("begin immediate")).await?))
            }
            Self::Postgres(server) => {
                Session::Postgres(Link::Transaction(server.take(async |pool| pool.begin().await).await?))
            }
        })
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { write, read, presence } => {
                read.close().await;
                // The writer goes last: the last connection moves the write-ahead log into the file.
                write.close().await;
                presence.leave();
            }
            Self::Postgres(server) => {
                // A server that does not answer is not waited for.
                let _ = tokio::time::timeout(STATEMENT_LIMIT, server.pool().close()).await;
            }
        }
    }
}

impl Session {
    /// Makes the changes last. After an error it is unknown whether they do.
    pub(super) async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(link) => link.commit().await,
            Self::Postgres(link) => link.commit().await,
        }
    }

    /// As [`Session::commit`], however long it takes: for a transaction that holds a whole store.
    pub(super) async fn commit_patiently(self) -> Result<()> {
        match self {
            Self::Sqlite(link) => link.commit_patiently().await,
            Self::Postgres(link) => link.commit_patiently().await,
        }
    }

    /// Lets the statements of this transaction, and the pauses between them, take as long as they do: for work that
    /// somebody watches and can end.
    pub(super) async fn be_patient(&mut self) -> Result<()> {
        if let Self::Postgres(link) = self {
            let limits = "select set_config('statement_timeout', '0', true), \
                          set_config('idle_in_transaction_session_timeout', '0', true)";
            within(sqlx::query(limits).execute(link.connection())).await?;
        }
        Ok(())
    }
}

/// Waits for the database, but not for ever.
pub(super) async fn within<T>(work: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T> {
    match tokio::time::timeout(STATEMENT_LIMIT, work).await {
        Ok(done) => done.map_err(Error::from),
        Err(_) => Err(Error::Database(sqlx::Error::Io(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", STATEMENT_LIMIT.as_secs()),
        )))),
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind::{ForeignKeyViolation, UniqueViolation};
        match error {
            sqlx::Error::Database(told) if matches!(told.kind(), UniqueViolation) => Self::Conflict,
            sqlx::Error::Database(told) if matches!(told.kind(), ForeignKeyViolation) => Self::NotFound,
            sqlx::Error::ColumnDecode { index, source } => {
                Self::Unreadable { what: "column", problem: format!("{index}: {source}") }
            }
            other => Self::Database(other),
        }
    }
}

/// `on!(session, connection => expression)`: the expression, once for each database.
macro_rules! on {
    ($session:expr, $connection:ident => $work:expr) => {
        match $session {
            $crate::store::db::Session::Sqlite(link) => {
                let $connection = link.connection();
                $work
            }
            $crate::store::db::Session::Postgres(link) => {
                let $connection = link.connection();
                $work
            }
        }
    };
}

/// `execute!(session, "sql", arguments…)`: how many rows it touched.
macro_rules! execute {
    ($session:expr, $sql:expr $(, $argument:expr)* $(,)?) => {
        $crate::store::db::on!($session, connection => {
            let query = sqlx::query($sql)$(.bind($argument))*;
            $crate::store::db::within(query.execute(connection)).await.map(|done| done.rows_affected())
        })
    };
}

/// `fetch_all!(session, Row, "sql", arguments…)`: every row.
macro_rules! fetch_all {
    ($session:expr, $row:ty, $sql:expr $(, $argument:expr)* $(,)?) => {
        $crate::store::db::on!($session, connection => {
            let query = sqlx::query_as::<_, $row>($sql)$(.bind($argument))*;
            $crate::store::db::within(query.fetch_all(connection)).await
        })
    };
}

/// `fetch_optional!(session, Row, "sql", arguments…)`: the row, if there is one.
macro_rules! fetch_optional {
    ($session:expr, $row:ty, $sql:expr $(, $argument:expr)* $(,)?) => {
        $crate::store::db::on!($session, connection => {
            let query = sqlx::query_as::<_, $row>($sql)$(.bind($argument))*;
            $crate::store::db::within(query.fetch_optional(connection)).await
        })
    };
}

pub(super) use {execute, fetch_all, fetch_optional, on};
